"""push to the Hub, against a recorded HfApi: chunked commits, nothing twice, the manifest last."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from softlabels.algebra.append import append
from softlabels.builder.config import AppendConfig
from softlabels.errors import ConfigError, IntegrityError, RemoteError
from softlabels.format.manifest import MANIFEST, load_manifest
from softlabels.store.remote import hub
from softlabels.store.remote.hub import push_to_hub
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.store.made_up import files_of

pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install -e '.[dev]'")
URL = "hf://datasets/owner/name"


class HubHTTPError(OSError):
    """Stands for `HfHubHTTPError`."""


class RepositoryNotFoundError(HubHTTPError):
    """By its name, as huggingface_hub has it."""


class Hub:
    """A dataset repository in memory. Parquet files are large files, as the Hub's defaults have it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files: dict[str, bytes] = {}
        self.commits: list[list[str]] = []
        self.fails_after: int | None = None
        self.loses: str | None = None

    def repo_info(self, repo_id, repo_type, revision):
        assert (repo_id, repo_type) == ("owner/name", "dataset")
        return SimpleNamespace(sha=f"{len(self.commits):040x}")

    def list_repo_tree(self, repo_id, repo_type, revision, recursive):
        yield SimpleNamespace(path="data", tree_id="0")
        for name, data in self.files.items():
            large = name.endswith(".parquet")
            yield SimpleNamespace(
                path=name,
                size=len(data),
                blob_id=hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
                lfs=SimpleNamespace(sha256=hashlib.sha256(data).hexdigest()) if large else None,
            )

    def create_commit(
        self, repo_id, repo_type, revision, operations, commit_message, parent_commit
    ):
        if parent_commit != f"{len(self.commits):040x}":
            raise HubHTTPError("412: the branch has moved")
        if self.fails_after == len(self.commits):
            raise HubHTTPError("504: try again")
        for operation in operations:
            with operation.as_file() as file:
                data = file.read()
            self.files[operation.path_in_repo] = (
                data[:-1] if operation.path_in_repo == self.loses else data
            )
        self.commits.append([o.path_in_repo for o in operations])
        return SimpleNamespace(oid=f"{len(self.commits):040x}")

    def hf_hub_download(self, repo_id, repo_type, revision, filename):
        path = self._folder / f"{len(self.commits)}" / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.files[filename])
        return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    corpus = write_corpus(folder / "text", documents=2)
    build_tiny(folder / "store", corpus, shard_rows=2, limit_rows=14, licence="CC-BY-4.0")
    return folder / "store"


@pytest.fixture
def api(tmp_path, monkeypatch) -> Hub:
    monkeypatch.setattr(hub, "FILES_AT_ONCE", 3)
    return Hub(tmp_path / "downloads")


def test_commits_are_small_and_the_manifest_is_last(made, api):
    done = push_to_hub(made, URL, api=api)
    assert api.files == files_of(made)
    assert done.shards_moved == 7
    assert all(len(c) <= 3 for c in api.commits)
    assert api.commits[-1] == [MANIFEST]
    assert all(MANIFEST not in c for c in api.commits[:-1])
    shards = [n for c in api.commits[:3] for n in c]
    assert all(n.startswith("data/") for n in shards)


def test_bytes_of_a_commit_are_limited(made, api, monkeypatch):
    monkeypatch.setattr(hub, "BYTES_AT_ONCE", 1)
    push_to_hub(made, URL, api=api)
    assert all(len(c) == 1 for c in api.commits)


def test_a_second_push_commits_nothing(made, api):
    push_to_hub(made, URL, api=api)
    before = len(api.commits)
    assert push_to_hub(made, URL, api=api).files_moved == 0
    assert len(api.commits) == before


def test_a_broken_push_goes_on(made, api):
    api.fails_after = 2
    with pytest.raises(RemoteError, match=r"the Hub refuses \(504: try again\); run the same"):
        push_to_hub(made, URL, api=api)
    assert MANIFEST not in api.files
    api.fails_after = None
    assert push_to_hub(made, URL, api=api).shards_moved == 1
    assert api.files == files_of(made)


def test_what_arrived_otherwise_is_found_before_the_manifest(made, api):
    api.loses = load_manifest(made).shards[3].name
    with pytest.raises(IntegrityError, match="what is listed there is not what was sent"):
        push_to_hub(made, URL, api=api)
    assert MANIFEST not in api.files


def test_a_folder_of_the_repository(made, api):
    push_to_hub(made, f"{URL}@v1/stores/a", api=api)
    assert api.files == {f"stores/a/{n}": d for n, d in files_of(made).items()}


def test_another_store_there_is_kept(made, built, api, tmp_path):
    push_to_hub(made, URL, api=api)
    corpus = write_corpus(tmp_path / "text")
    build_tiny(tmp_path / "other", corpus, k=3, limit_rows=14, shard_rows=2, licence="MIT")
    with pytest.raises(IntegrityError, match="holds another store"):
        push_to_hub(tmp_path / "other", URL, api=api)
    assert api.files == files_of(made)


@pytest.mark.parametrize("name", ["README.md", "plan.json", "data/train-00001-of-00007.parquet"])
def test_what_no_record_proves_ours_is_not_replaced(made, api, name):
    api.files = {name: b"theirs", ".gitattributes": b"theirs, too"}
    with pytest.raises(IntegrityError, match=rf"{name}: is there, and no record .*to a folder"):
        push_to_hub(made, URL, api=api)
    assert api.commits == []
    push_to_hub(made, f"{URL}/stores/a", api=api)
    assert {name: b"theirs", ".gitattributes": b"theirs, too"}.items() <= api.files.items()


def test_a_grown_store_takes_the_place_of_the_one_that_it_contains(made, api, tmp_path):
    (tmp_path / "new.txt").write_text("Of quite another thing. " * 20)
    config = AppendConfig(teacher="fake:tiny", corpus=(f"text:{tmp_path}/new.txt",))
    append(made, config, tmp_path / "grown", teacher=TinyTeacher())
    push_to_hub(made, URL, api=api)
    api.files["README.md"] = b"edited there"
    before = dict(api.files)
    with pytest.raises(IntegrityError, match=r"README.md: is there, and no record"):
        push_to_hub(tmp_path / "grown", URL, api=api)
    assert api.files == before
    api.files["README.md"] = (made / "README.md").read_bytes()
    api.fails_after = len(api.commits) + 2
    with pytest.raises(RemoteError, match="the Hub refuses"):
        push_to_hub(tmp_path / "grown", URL, api=api)
    api.fails_after = None
    push_to_hub(tmp_path / "grown", URL, api=api)
    assert api.files == files_of(tmp_path / "grown")


def test_no_licence_no_repository_too_many_shards(made, built, api, monkeypatch):
    with pytest.raises(ConfigError, match="licence 'unknown': not stated"):
        push_to_hub(built, URL, api=api)

    def missing(**_):
        raise RepositoryNotFoundError("404")

    monkeypatch.setattr(api, "repo_info", missing)
    with pytest.raises(ConfigError, match=r"no such dataset repository.*hf repo create"):
        push_to_hub(made, URL, api=api)
    monkeypatch.setattr(hub, "FOLDER_LIMIT", 6)
    with pytest.raises(ConfigError, match="7 shards, a folder on the Hub holds at most 6"):
        push_to_hub(made, URL, api=api)


def test_a_damaged_store_is_not_sent(made, api, tmp_path):
    store = Path(shutil.copytree(made, tmp_path / "store"))
    next((store / "data").iterdir()).write_bytes(b"x")
    with pytest.raises(IntegrityError, match="nothing was sent"):
        push_to_hub(store, URL, api=api)
    assert api.commits == []
