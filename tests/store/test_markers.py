"""Empty objects that consoles make for folders are no files, whatever a command does; others' files are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from softlabels.cli.main import main
from softlabels.errors import IntegrityError, PlanError
from softlabels.format.layout import FOLDERS
from softlabels.format.pages import FOLDER as PAGES
from softlabels.making.claims import CLAIMS
from softlabels.making.place import HELD, PAGE, everything
from softlabels.making.place.commit import COMMITS
from softlabels.making.place.repair import repair_at
from softlabels.making.quarantine import QUARANTINE
from softlabels.making.status import status_in
from softlabels.store.remote.bucket import BucketPlace, probe
from softlabels.store.remote.markers import is_marker
from softlabels.store.remote.pull import pull
from softlabels.store.remote.push import push
from softlabels.store.verify import verify_store
from tests.fakes import build_tiny
from tests.store.made_up import files_of
from tests.store.s3 import delete, environment, get, put, s3_server

JOB = {"limit_rows": 4, "shard_rows": 2, "batch_tokens": 64, "licence": "CC-BY-4.0"}
MARKED = ["", *(f"{folder}/" for folder in (*FOLDERS, QUARANTINE))]


@pytest.fixture(scope="module")
def server():
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(server, tmp_path, monkeypatch, request) -> str:
    """Address of a prefix, in which a console has made all folders that a store may have."""
    for name, value in environment(server, tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    for name in MARKED:
        put(server, f"{request.node.name}/{name}", b"")
    return f"s3://bucket/{request.node.name}"


@pytest.fixture(scope="module")
def built(tmp_path_factory, corpus) -> Path:
    store = tmp_path_factory.mktemp("built") / "store"
    build_tiny(store, corpus, **JOB)
    return store


def check_markers(server: str, bucket: str) -> None:
    """They are there, as they were."""
    for name in MARKED:
        assert get(server, f"{bucket.removeprefix('s3://bucket/')}/{name}") == b""


def test_folders_of_a_store_are_those_that_may_be_marked():
    assert {PAGES, CLAIMS, HELD, COMMITS} <= {*FOLDERS}
    assert all(is_marker(name, 0) for name in MARKED)
    assert not any(is_marker(n, 0) for n in ("claims/notes/", "notes/", "plan.json", "claimsx"))
    assert not any(is_marker(name, 1) for name in MARKED), "somebody wrote there"


def test_a_store_is_built_looked_at_repaired_and_pulled_among_them(
    server, bucket, built, corpus, tmp_path
):
    place = BucketPlace(bucket)
    assert [list(everything(place, f)) for f in ("", *FOLDERS)] == [[]] * (1 + len(FOLDERS))
    probe(place)
    build_tiny(bucket, corpus, **JOB)
    assert {e.name for e in everything(place, "")} == set(files_of(built))
    assert verify_store(bucket).problems == []
    status = status_in(place)
    assert (status.complete, status.held) == (True, ())
    shard = sorted(n for n in files_of(built) if n.startswith("data/"))[1]
    delete(server, f"{bucket.removeprefix('s3://bucket/')}/{shard}")
    repair = repair_at(bucket)
    assert (repair.rebuild, repair.problems) == ([shard], [])
    build_tiny(bucket, corpus, **JOB)
    assert repair_at(bucket).whole
    pull(bucket, tmp_path / "pulled")
    assert verify_store(tmp_path / "pulled").problems == []
    check_markers(server, bucket)


def test_a_store_is_pushed_among_them(server, bucket, built):
    push(built, bucket)
    assert verify_store(bucket).problems == []
    check_markers(server, bucket)


def test_what_is_not_empty_is_somebodys(server, bucket, built, corpus, tmp_path):
    mine = f"{bucket.removeprefix('s3://bucket/')}/claims/"
    put(server, mine, b"mine")
    with pytest.raises(PlanError, match="is not empty and not a store"):
        build_tiny(bucket, corpus, **JOB)
    with pytest.raises(IntegrityError, match="claims: is there, and no record"):
        push(built, bucket)
    delete(server, mine)
    push(built, bucket)
    put(server, mine, b"mine")
    (problem,) = verify_store(bucket).problems
    assert "claims: no record of the store names it" in problem
    assert [p for p in repair_at(bucket).problems if "claims: no record" in p]
    assert CliRunner().invoke(main, ["verify", bucket]).exit_code == 1


def test_a_page_of_which_one_is_a_marker_is_not_the_last(server, bucket):
    """Who lists goes on until a page has fewer than `PAGE` names."""
    prefix = bucket.removeprefix("s3://bucket/")
    for i in range(PAGE + 1):
        put(server, f"{prefix}/claims/{i:08d}.json", b"free\n")
    place = BucketPlace(bucket)
    assert len(place.list(HELD)) == PAGE
    assert len(list(everything(place, HELD))) == PAGE + 1
