"""Folders that came by mail, links and all: whatever writes below one, nothing outside of it is touched."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from softlabels.core.inside import inside, open_part
from softlabels.core.records import file_record
from softlabels.errors import IntegrityError, StoreError
from softlabels.making.place import FolderPlace
from softlabels.making.repair import repair_store
from softlabels.store.remote.pull import COMING, MARKER, pull
from softlabels.store.verify import verify_store
from tests.fakes import build_tiny, write_corpus
from tests.store.made_up import write_sealed

KEYS = "keys/authorized_keys"
"""A file of the attacker's store: any name may be beside the shards."""
THEIRS = b"ssh-ed25519 the attacker's\n"
MINE = b"my own, of which there is no copy\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, corpus) -> Path:
    """A good store, and a file beside it. Read only."""
    store = tmp_path_factory.mktemp("theirs") / "store"
    build_tiny(store, corpus, limit_rows=4, shard_rows=2)
    (store / KEYS).parent.mkdir()
    (store / KEYS).write_bytes(THEIRS)
    raw = json.loads((store / "manifest.json").read_bytes())
    record = file_record(THEIRS)
    raw["files"][KEYS] = {"sha256": record.sha256, "bytes": record.bytes}
    write_sealed(store / "manifest.json", raw)
    return store


@pytest.fixture(scope="module")
def address(theirs):
    """Where it is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = partial(Quiet, directory=str(theirs))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def outside(tmp_path) -> Path:
    """The user's own folder."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("authorized_keys", "train-00000-of-00002.parquet", "00000.json", "notes"):
        (folder / name).write_bytes(MINE)
    return folder


def tree(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Bytes, inode and time of whatever is in a folder."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*")}
    return {
        n: (p.read_bytes() if p.is_file() else b"", p.stat().st_ino, p.stat().st_mtime_ns)
        for n, p in found.items()
    }


def part_of(theirs: Path, name: str) -> str:
    """What `pull` calls a file that is on its way."""
    data = (theirs / name).read_bytes()
    folder, _, last = name.rpartition("/")
    coming = f"{COMING}{last}-{file_record(data).sha256[:16]}"
    return f"{folder}/{coming}" if folder else coming


def test_without_a_link_it_is_pulled(theirs, address, tmp_path):
    """Otherwise the next tests would show nothing."""
    pull(address, tmp_path / "part", rows=2)
    pull(address, tmp_path / "part")
    assert (tmp_path / "part" / KEYS).read_bytes() == THEIRS
    assert verify_store(tmp_path / "part").problems == []


@pytest.mark.parametrize("mailed", ["an empty folder", "a part"])
@pytest.mark.parametrize("link", ["keys", "data", "commits", "tokenizer"])
def test_pull_writes_through_no_folder_that_is_a_link(
    theirs, address, tmp_path, outside, mailed, link
):
    folder = tmp_path / "mailed"
    folder.mkdir()
    if mailed == "a part":
        pull(address, folder, rows=2)
        shutil.rmtree(folder / link)
    (folder / link).symlink_to("../outside")
    before = tree(outside)
    with pytest.raises(StoreError, match=rf"{link}: is a link, .*put a real folder in its place"):
        pull(address, folder)
    assert tree(outside) == before


LEADS: dict[str, Callable[[Path, Path], None]] = {
    "to a file": lambda path, outside: path.symlink_to(outside / "notes"),
    "to nothing yet": lambda path, outside: path.symlink_to(outside / "new"),
    "to a pipe": lambda path, outside: os.mkfifo(path),
    "by a second name": lambda path, outside: path.hardlink_to(outside / "notes"),
}


@pytest.mark.parametrize("mailed", ["an empty folder", "a part"])
@pytest.mark.parametrize("leads", LEADS)
@pytest.mark.parametrize("name", [KEYS, "README.md", "data/train-00000-of-00002.parquet"])
def test_pull_appends_to_no_file_but_its_own(
    theirs, address, tmp_path, outside, mailed, leads, name
):
    folder = tmp_path / "mailed"
    if mailed == "a part":
        pull(address, folder, rows=2)
        (folder / name).unlink(missing_ok=True)
    part = folder / part_of(theirs, name)
    part.parent.mkdir(parents=True, exist_ok=True)
    LEADS[leads](part, outside)
    before = tree(outside)
    with pytest.raises(StoreError, match=r"(move it away|choose another folder)") as e:
        pull(address, folder)
    assert str(part) in str(e.value)
    assert tree(outside) == before


@pytest.mark.parametrize("name", [MARKER, "README.md", KEYS, "part.json", "manifest.json.sig"])
def test_a_link_with_the_name_of_a_file_is_not_followed(address, tmp_path, outside, name):
    folder = tmp_path / "mailed"
    pull(address, folder, rows=2)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside / "notes")
    before = tree(outside)
    try:
        pull(address, folder)
    except StoreError as e:
        assert str(folder / name) in str(e)  # noqa: PT017  either is good
    assert tree(outside) == before


def test_the_folder_itself_may_be_reached_through_links(address, tmp_path):
    (tmp_path / "disk" / "stores").mkdir(parents=True)
    (tmp_path / "here").symlink_to("disk")
    (tmp_path / "disk" / "store").symlink_to("stores")
    pull(address, tmp_path / "here" / "store", rows=2)
    pull(address, tmp_path / "here" / "store")
    assert verify_store(tmp_path / "disk" / "stores").problems == []
    (tmp_path / "disk" / "stores" / KEYS).write_bytes(b"damaged")
    pull(address, tmp_path / "here" / "store")
    assert verify_store(tmp_path / "disk" / "stores").problems == []


# -- an unfinished store, which the receiver goes on with, or repairs -------------------------------


@pytest.mark.parametrize("link", ["data", "commits", "claims", "quarantine"])
@pytest.mark.parametrize("work", ["build", "repair"])
def test_nothing_is_built_or_repaired_through_a_link(tmp_path, outside, corpus, link, work):
    store = tmp_path / "mailed"
    build_tiny(store, corpus, limit_rows=4, shard_rows=2)
    (store / "manifest.json").unlink()
    (store / "commits" / "00000.json").unlink()
    shard = store / "data" / "train-00000-of-00002.parquet"
    if link == "quarantine":
        shard.write_bytes(b"is judged, and would be moved")
    elif work == "build":
        shard.unlink()
    if (store / link).exists():
        for file in (store / link).iterdir():
            if not (outside / file.name).exists():
                shutil.copy(file, outside)
        shutil.rmtree(store / link)
    elif link == "claims":
        (outside / "00000-0.json").write_bytes(MINE)
    (store / link).symlink_to("../outside")
    before = tree(outside)
    go_on = partial(build_tiny, store, corpus, limit_rows=4, shard_rows=2)
    with pytest.raises(StoreError, match=rf"{link}: is a link, .*put a real folder in its place"):
        go_on() if work == "build" else repair_store(store)
    assert tree(outside) == before


def test_a_place_that_is_a_folder_leads_nowhere_else(tmp_path, outside):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "data").symlink_to("../outside")
    place, before = FolderPlace(tmp_path / "store"), tree(outside)
    for work in (
        lambda: place.create("data/new", b"theirs"),
        lambda: place.remove("data/notes"),
    ):
        with pytest.raises(StoreError, match="is a link"):
            work()
    assert tree(outside) == before


# -- the two helpers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a\\b", "a//b", "./a"])
def test_a_name_that_leads_out_is_refused(tmp_path, name):
    with pytest.raises(IntegrityError, match="is not the name of a file in it"):
        inside(tmp_path, name)


def test_a_system_without_the_flag_refuses_links_too(tmp_path, outside, monkeypatch):
    monkeypatch.delattr(os, "O_NOFOLLOW", raising=False)
    (tmp_path / "part").symlink_to(outside / "notes")
    with pytest.raises(StoreError, match="is a link"):
        open_part(tmp_path / "part")
    with open_part(tmp_path / "own") as file:
        file.write(b"half")
    with open_part(tmp_path / "own") as file:
        file.write(b"whole")
    assert (tmp_path / "own").read_bytes() == b"halfwhole"
    assert (tmp_path / "own").stat().st_mode & 0o111 == 0


def test_a_link_that_comes_between_the_look_and_the_opening_is_refused(
    tmp_path, outside, monkeypatch
):
    (tmp_path / "part").symlink_to(outside / "notes")
    monkeypatch.setattr("softlabels.core.inside._is_link", lambda _: False)
    with pytest.raises(StoreError, match="is a link"):
        open_part(tmp_path / "part")
    assert (outside / "notes").read_bytes() == MINE
