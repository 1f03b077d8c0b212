"""Committing: what was published is adopted or made again, and never written to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from softlabels.core.durable import publish
from softlabels.core.records import read_record
from softlabels.errors import IntegrityError
from softlabels.format.manifest import Commit, load_manifest
from softlabels.making.commit import (
    adopt_shard,
    commit_path,
    commit_shard,
    committed,
    look,
    withdraw,
)
from softlabels.making.plan import load_plan
from softlabels.making.repair import repair_store
from softlabels.store.verify import verify_store
from tests.fakes import build_tiny
from tests.store.made_up import files_of, reseal

# -- adopting and committing ----------------------------------------------------------------------


@pytest.fixture
def unfinished(store):
    """A store whose builder died before the manifest."""
    (store / "manifest.json").unlink()
    return store


def plan_of(store):
    plan = load_plan(store)
    assert plan is not None
    return plan


def test_a_good_orphan_is_adopted(built, unfinished):
    plan = plan_of(unfinished)
    shard = plan.shards[1]
    path = commit_path(unfinished, shard)
    original = read_record(path, Commit)
    path.unlink()
    data = (unfinished / shard.name).read_bytes()
    adopted = adopt_shard(unfinished, plan, shard, notice=print)
    assert adopted is not None
    assert adopted == read_record(path, Commit) == committed(unfinished, plan, shard)
    assert (unfinished / shard.name).read_bytes() == data
    for field in ("plan_digest", "index", "name", "sha256", "bytes", "rows", "positions"):
        assert getattr(adopted, field) == getattr(original, field)
    assert adopted.statistics == original.statistics
    assert adopted.seconds == 0


def test_a_build_that_goes_on_adopts_and_ends_with_the_same_content(built, unfinished, corpus):
    for i in (0, 2):
        (unfinished / f"commits/{i:05d}.json").unlink()
    shards = {n: d for n, d in files_of(unfinished).items() if n.startswith("data/")}
    times = {n: (unfinished / n).stat().st_mtime_ns for n in shards}
    (unfinished / "README.md").unlink()
    build_tiny(unfinished, corpus, limit_rows=8, shard_rows=3, temperature=(1.0, 2.0))
    assert {n: d for n, d in files_of(unfinished).items() if n.startswith("data/")} == shards
    assert {n: (unfinished / n).stat().st_mtime_ns for n in shards} == times
    assert verify_store(unfinished).problems == []
    one, two = load_manifest(built), load_manifest(unfinished)
    assert one.content_digest == two.content_digest
    assert one.statistics == two.statistics


def test_no_orphan(unfinished):
    plan = plan_of(unfinished)
    shard = plan.shards[0]
    (unfinished / shard.name).unlink()
    commit_path(unfinished, shard).unlink()
    assert adopt_shard(unfinished, plan, shard, notice=print) is None
    assert not commit_path(unfinished, shard).exists()


@pytest.mark.parametrize("what", ["empty", "garbage", "torn", "flipped", "another shard"])
def test_a_wrong_orphan_is_moved_aside(unfinished, what):
    """No record says whose it is: it may be the user's own, since the names are the Hub's."""
    plan = plan_of(unfinished)
    shard = plan.shards[0]
    path = unfinished / shard.name
    whole = path.read_bytes()
    page = whole.index(b"\x28\xb5\x2f\xfd") + 20  # inside the first compressed page
    path.write_bytes(
        {
            "empty": b"",
            "garbage": b"PAR1" * 1000,
            "torn": whole[:-100],
            "flipped": whole[:page] + bytes([whole[page] ^ 1]) + whole[page + 1 :],
            "another shard": (unfinished / plan.shards[1].name).read_bytes(),
        }[what]
    )
    commit_path(unfinished, shard).unlink()
    found, said = path.read_bytes(), list[str]()
    assert adopt_shard(unfinished, plan, shard, notice=said.append) is None
    assert not path.exists()
    assert not commit_path(unfinished, shard).exists()
    (aside,) = (unfinished / "quarantine").iterdir()
    assert aside.read_bytes() == found
    assert said[0].startswith(f"moved {path} to {aside}, since no record of the store names it (")
    assert (unfinished / plan.shards[1].name).exists()


def test_a_planned_shard_of_other_inputs_is_not_adopted(unfinished, tmp_path, corpus):
    """Rows that count right but are not the plan's: the corpus changed."""
    other = tmp_path / "other"
    texts = tmp_path / "text"
    texts.mkdir()
    (texts / "0.txt").write_text("Call me Ishmael. " * 60)
    build_tiny(other, f"text:{texts}/*.txt", limit_rows=8, shard_rows=3, temperature=(1.0, 2.0))
    plan = plan_of(unfinished)
    shard = plan.shards[0]
    (unfinished / shard.name).write_bytes((other / shard.name).read_bytes())
    commit_path(unfinished, shard).unlink()
    assert adopt_shard(unfinished, plan, shard, notice=print) is None
    assert not (unfinished / shard.name).exists()


def test_commit_shard_publishes_the_shard_and_then_its_record(built, unfinished, monkeypatch):
    plan = plan_of(unfinished)
    shard = plan.shards[0]
    path, record = unfinished / shard.name, commit_path(unfinished, shard)
    data, original = path.read_bytes(), read_record(record, Commit)
    path.unlink()
    record.unlink()
    links = []
    link = os.link
    monkeypatch.setattr(os, "link", lambda a, b: (links.append(Path(b)), link(a, b)))
    commit = commit_shard(unfinished, plan, shard, data, original.statistics, 1.5, notice=print)
    assert links == [path, record]
    assert path.read_bytes() == data
    assert (commit.sha256, commit.seconds) == (original.sha256, 1.5)
    assert committed(unfinished, plan, shard) == commit
    assert list(unfinished.rglob(".tmp-*")) == []


def test_commit_shard_adopts_what_another_builder_published_first(unfinished):
    plan = plan_of(unfinished)
    shard = plan.shards[0]
    path, record = unfinished / shard.name, commit_path(unfinished, shard)
    data, original = path.read_bytes(), read_record(record, Commit)
    record.unlink()
    ours = data + b"different bytes of the same shard"
    commit = commit_shard(unfinished, plan, shard, ours, original.statistics, 1.5, notice=print)
    assert path.read_bytes() == data
    assert commit.sha256 == original.sha256
    again = commit_shard(unfinished, plan, shard, ours, original.statistics, 1.5, notice=print)
    assert again == commit  # the record is there already, and stays


def test_commit_shard_moves_a_wrong_file_aside_that_no_record_names(unfinished):
    plan = plan_of(unfinished)
    shard = plan.shards[0]
    path, record = unfinished / shard.name, commit_path(unfinished, shard)
    data, original = path.read_bytes(), read_record(record, Commit)
    record.unlink()
    path.write_bytes(b"foreign")
    commit_shard(unfinished, plan, shard, data, original.statistics, 1.5, notice=print)
    assert path.read_bytes() == data
    assert committed(unfinished, plan, shard) is not None
    (aside,) = (unfinished / "quarantine").iterdir()
    assert aside.read_bytes() == b"foreign"


def test_committed(unfinished):
    plan = plan_of(unfinished)
    for shard in plan.shards:
        record = committed(unfinished, plan, shard)
        assert record is not None
        assert (record.index, record.name) == (shard.index, shard.name)
        assert (record.rows, record.positions) == (shard.rows, shard.positions)
    commit_path(unfinished, plan.shards[0]).unlink()
    assert committed(unfinished, plan, plan.shards[0]) is None


@pytest.mark.parametrize("change", ["missing", "torn", "longer", "flipped"])
def test_committed_finds_a_damaged_shard(unfinished, change):
    plan = plan_of(unfinished)
    path = unfinished / plan.shards[0].name
    whole = path.read_bytes()
    if change == "missing":
        path.unlink()
    else:
        flipped = bytes([whole[0] ^ 1]) + whole[1:]
        path.write_bytes({"torn": whole[:-1], "longer": whole + b"\0", "flipped": flipped}[change])
    with pytest.raises(IntegrityError, match=path.name):
        committed(unfinished, plan, plan.shards[0])


@pytest.mark.parametrize(
    "changes", [{"index": 1}, {"name": "data/x.parquet"}, {"plan_digest": "0" * 64}]
)
def test_committed_refuses_the_record_of_something_else(unfinished, changes):
    plan = plan_of(unfinished)
    path = commit_path(unfinished, plan.shards[0])
    reseal(path, **changes)
    with pytest.raises(IntegrityError, match=r"00000\.json: belongs to another plan or shard"):
        committed(unfinished, plan, plan.shards[0])


# -- withdrawing ----------------------------------------------------------------------------------


def test_only_the_shard_that_was_judged_is_withdrawn(unfinished):
    """A builder that stood still must not withdraw what another has made meanwhile."""
    shard = plan_of(unfinished).shards[0]
    path, record = unfinished / shard.name, commit_path(unfinished, shard)
    whole, original = path.read_bytes(), record.read_bytes()
    path.write_bytes(whole[:-1])
    seen = look(unfinished, shard)
    assert withdraw(unfinished, shard, seen) != []
    assert not path.exists()
    assert not record.exists()
    publish(path, whole)
    publish(record, original)
    before = files_of(unfinished)
    assert withdraw(unfinished, shard, seen) == []
    assert files_of(unfinished) == before


@pytest.mark.parametrize("which", ["shard", "record"])
def test_what_appears_between_the_look_and_the_move_gets_its_name_back(
    unfinished, monkeypatch, which
):
    shard = plan_of(unfinished).shards[0]
    path = unfinished / shard.name if which == "shard" else commit_path(unfinished, shard)
    whole = path.read_bytes()
    path.write_bytes(b"damaged")
    seen = look(unfinished, shard)
    rename = Path.rename

    def late(self, target):
        if self == path:
            path.unlink()
            path.write_bytes(whole)  # by another builder
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    withdraw(unfinished, shard, seen)
    assert path.read_bytes() == whole


def test_quarantine_is_known_to_verify_and_repair_and_kept_by_both(store):
    """No stranger, no problem, said, and never swept."""
    shard = plan_of(store).shards[0]
    withdraw(store, shard, look(store, shard))
    (aside,) = (store / "quarantine").iterdir()
    os.utime(aside, (0, 0))
    name = f"quarantine/{aside.name}"
    assert verify_store(store).quarantine == [name]
    assert not [p for p in verify_store(store).problems if name in p]
    repaired = repair_store(store)
    assert repaired.quarantine == [name]
    assert repaired.problems == []
    assert aside.exists()
