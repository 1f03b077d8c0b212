"""A file is there whole or not at all, whatever fails; what the dead left is removed, and nothing else."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from softlabels.core import durable
from softlabels.core.durable import (
    STALE_SECONDS,
    is_temporary,
    publish,
    publish_link,
    replace,
    sweep,
    temporary_beside,
)
from softlabels.core.processes import Process, this_process
from softlabels.errors import IntegrityError, StoreError
from softlabels.making.plan import check_folder
from softlabels.store.tokenizer_files import read_files
from tests.store.made_up import files_of

DATA = b"some bytes\n" * 1000


def temporary_files(folder):
    return [p for p in folder.rglob("*") if p.name.startswith(".tmp-")]


# -- publish --------------------------------------------------------------------------------------


def test_publish_makes_the_file_and_its_folders_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    assert publish(path, DATA) is True
    assert files_of(tmp_path) == {"a/b/file": DATA}


def test_publish_leaves_what_is_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"first")
    assert publish(path, DATA) is False
    assert files_of(tmp_path) == {"file": b"first"}


def test_one_of_many_publishers_wins_and_its_bytes_are_whole(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([i]) * 100_000 for i in range(8)]
    won = []
    start = threading.Barrier(len(contents))

    def run(content):
        start.wait()
        if publish(path, content):
            won.append(content)

    threads = [threading.Thread(target=run, args=(c,)) for c in contents]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(won) == 1
    assert files_of(tmp_path) == {"file": won[0]}


SAYS = {
    errno.ENOSPC: "the disk is full: free space",
    errno.EDQUOT: "your quota is used up: free space",
    errno.EROFS: "the file system is read-only: choose another --out",
    errno.EACCES: "permission denied: check the owner of the folder",
    errno.EPERM: "does the file system support hard links?",
    errno.EOPNOTSUPP: "the file system has no hard links: choose another --out",
    errno.EIO: os.strerror(errno.EIO),
    errno.ENOTDIR: "a folder of this path is a file: choose another --out",
}
CALLS = ["mkdir", "open", "write", "fsync", "read", "link"]


class FullDisk:
    """A file that takes half of what is written to it."""

    def __init__(self, file, error):
        self.file, self.error = file, error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        raise self.error


def break_call(m, call, code):
    """Make one system call fail, once it comes from `publish`."""
    error = OSError(code, os.strerror(code))

    def fail(*_args, **_kwargs):
        raise error

    if call in ("fsync", "link"):
        m.setattr(os, call, fail)
    elif call == "mkdir":
        m.setattr(Path, "mkdir", fail)
    elif call == "read":
        m.setattr(Path, "read_bytes", fail)
    else:
        opened = Path.open

        def open_(self, mode="r", *args, **kwargs):
            if "x" not in mode:
                return opened(self, mode, *args, **kwargs)
            if call == "open":
                raise error
            return FullDisk(opened(self, mode, *args, **kwargs), error)

        m.setattr(Path, "open", open_)


@pytest.mark.parametrize("code", list(SAYS), ids=errno.errorcode.get)
@pytest.mark.parametrize("call", CALLS)
def test_a_failing_system_call_leaves_nothing_and_says_what_to_do(
    tmp_path, monkeypatch, call, code
):
    path = tmp_path / "data" / "shard.parquet"
    with monkeypatch.context() as m:
        break_call(m, call, code)
        with pytest.raises(StoreError) as e:
            publish(path, DATA)
    assert str(e.value).startswith(f"{path}: ")
    assert SAYS[code] in str(e.value)
    assert str(e.value).endswith(
        "then run the same command again (a training run: with --resume); what is finished is kept"
    )
    assert files_of(tmp_path) == {}
    assert publish(path, DATA) is True
    assert files_of(tmp_path) == {"data/shard.parquet": DATA}


def test_a_folder_that_cannot_be_made_durable_is_reported_and_the_file_is_whole(
    tmp_path, monkeypatch
):
    synced = []

    def fsync(handle):
        synced.append(handle)
        if len(synced) == 2:  # the file, then the folder
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", fsync)
        with pytest.raises(StoreError, match="Input/output error"):
            publish(tmp_path / "file", DATA)
    assert len(synced) == 2
    assert files_of(tmp_path) == {"file": DATA}


def test_file_and_folder_are_synced_before_publish_returns(tmp_path, monkeypatch):
    events = []
    fsync, link = os.fsync, os.link

    def spy_fsync(handle):
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")  # noqa: PTH112
        fsync(handle)

    def spy_link(*args):
        events.append("link")
        link(*args)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to tell what is synced")
    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "link", spy_link)
    publish(tmp_path / "file", DATA)
    assert events == ["file", "link", "folder"]


def test_bytes_that_come_back_different_are_not_published(tmp_path, monkeypatch):
    read = Path.read_bytes
    with monkeypatch.context() as m:
        m.setattr(Path, "read_bytes", lambda self: read(self)[:-1] + b"?")
        with pytest.raises(IntegrityError, match="differs from what was written; check the disk"):
            publish(tmp_path / "file", DATA)
    assert files_of(tmp_path) == {}


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "data").write_bytes(b"x")
    with pytest.raises(StoreError, match="data"):
        publish(tmp_path / "data" / "file", DATA)
    assert files_of(tmp_path) == {"data": b"x"}


@pytest.mark.parametrize("call", ["fsync", "link", "unlink"])
def test_a_process_that_dies_while_publishing_leaves_only_what_sweep_removes(tmp_path, call):
    path = tmp_path / "data" / "file"
    path.parent.mkdir()
    code = (
        "import os, sys, pathlib\n"
        "from softlabels.core.durable import publish\n"
        f"path, call = pathlib.Path(sys.argv[1]), {call!r}\n"
        "die = lambda *a, **k: os._exit(9)\n"
        "setattr(pathlib.Path if call == 'unlink' else os, call, die)\n"
        "publish(path, b'some bytes\\n' * 1000)\n"
    )
    root = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, check=False)
    assert run.returncode == 9
    assert path.exists() == (call == "unlink")
    (left,) = temporary_files(tmp_path)
    assert sweep(tmp_path) == [left]
    assert publish(path, DATA) == (call != "unlink")
    assert files_of(tmp_path) == {"data/file": DATA}


# -- sweep ----------------------------------------------------------------------------------------


@pytest.fixture
def other_process():
    """A process that lives until it is told to end, and its name."""
    code = "from softlabels.core.processes import this_process; print(this_process(), flush=True); input()"
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root
    )
    assert process.stdout is not None
    name = Process.parse(process.stdout.readline().decode().strip())
    assert name is not None
    yield process, name
    if process.poll() is None:
        process.communicate(b"\n")


def temporary(folder, process, *, age=0.0, name="train-00000-of-00002.parquet"):
    path = folder / "data" / f".tmp-{process}-0a1b2c3d-{name}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"half")
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_sweep_leaves_the_files_of_the_living_and_removes_those_of_the_dead(
    tmp_path, other_process
):
    process, name = other_process
    theirs = temporary(tmp_path, name, age=10 * STALE_SECONDS)
    assert sweep(tmp_path) == []
    assert theirs.exists()
    process.communicate(b"\n")
    assert sweep(tmp_path) == [theirs]
    assert not theirs.exists()


def test_sweep_removes_what_an_earlier_process_of_the_same_pid_left(tmp_path):
    """A container restarts with the same pid."""
    me = this_process()
    earlier = temporary(tmp_path, dataclasses.replace(me, started="1"))
    mine = temporary(tmp_path, me, age=2 * STALE_SECONDS)
    assert sweep(tmp_path) == [earlier]
    assert mine.exists()  # a thread of ours is at it


@pytest.mark.parametrize("field", ["host", "boot", "space"])
def test_of_a_process_that_cannot_be_looked_at_only_the_age_counts(tmp_path, field):
    """Two containers may share a host's name, and then see different processes under one pid."""
    elsewhere = {"host": "elsewhere", "boot": "0123456789ab", "space": "4"}[field]
    there = dataclasses.replace(this_process(), pid=999_999, **{field: elsewhere})
    young = temporary(tmp_path, there, age=STALE_SECONDS - 600)
    ahead = temporary(tmp_path, there, age=600 - STALE_SECONDS, name="ahead.json")
    old = temporary(tmp_path, there, age=STALE_SECONDS + 600, name="plan.json")
    in_2099 = temporary(tmp_path, there, age=-73 * 365.25 * 86400, name="copied.json")
    assert set(sweep(tmp_path)) == {old, in_2099}
    assert young.exists()
    assert ahead.exists()


@pytest.mark.parametrize(
    "host", ["{host}-{dead}", "a-{host}", "{host}.example.org", "{host}x", "{dead}-{host}"]
)
def test_a_host_whose_name_resembles_ours_is_another_host(tmp_path, other_process, host):
    """`node-17` is not pid 17 of `node`."""
    process, name = other_process
    process.communicate(b"\n")
    there = dataclasses.replace(name, host=host.format(host=name.host, dead=name.pid))
    theirs = temporary(tmp_path, there)
    assert sweep(tmp_path) == []
    assert theirs.exists()


def test_the_names_of_an_older_version_are_ours_and_go_by_age(tmp_path):
    """They do not say the namespace, so that their pid may be anybody's."""
    host = this_process().host
    young, old = temporary(tmp_path, f"{host}-999999"), temporary(tmp_path, f"{host}-17-999999")
    assert is_temporary(young.name)
    os.utime(old, (0, 0))
    assert sweep(tmp_path) == ([old] if sys.platform.startswith("linux") else [young, old])


def test_other_programs_temporary_files_are_theirs_however_old(tmp_path):
    host = this_process().host
    names = [
        ".tmp-",
        ".tmp-x",
        f".tmp-{host}-",
        f".tmp-{host}-{10**40}-a",
        ".tmp-pull-a",
        ".tmp-1-2",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (0, 0))
    assert sweep(tmp_path) == []
    assert files_of(tmp_path) == dict.fromkeys(names, b"")
    assert not any(is_temporary(name) for name in names)


def test_a_temporary_name_is_ours_and_short_enough_for_any_name(tmp_path):
    for name in ("plan.json", "x" * 255, "\N{GRINNING FACE}" * 63):
        beside = temporary_beside(tmp_path / name)
        assert is_temporary(beside.name)
        beside.write_bytes(b"")
    assert sweep(tmp_path) == []  # of the living


def test_sweep_of_a_folder_that_is_not_there(tmp_path):
    assert sweep(tmp_path / "nowhere") == []


# -- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["publish", "publish_link", "replace"])
def test_new_folders_are_durable_in_their_parents(tmp_path, monkeypatch, how):
    synced = []
    fsync = os.fsync

    def spy(handle):
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to tell what is synced")
    source = tmp_path / "source"
    source.write_bytes(DATA)
    monkeypatch.setattr(os, "fsync", spy)
    path = tmp_path / "a" / "b" / "file"
    if how == "publish_link":
        publish_link(path, source)
    else:
        {"publish": publish, "replace": replace}[how](path, DATA)
    folders = [p for p in synced if p.is_dir()]
    assert folders == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]


def test_what_another_process_published_is_made_durable_before_it_is_built_upon(
    tmp_path, monkeypatch
):
    path = tmp_path / "file"
    path.write_bytes(b"first")
    synced = []
    monkeypatch.setattr(durable, "sync_folder", synced.append)
    assert publish(path, DATA) is False
    assert synced == [tmp_path]


def test_a_link_to_nowhere_is_no_folder(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"is no folder \(a link to nowhere\?\): choose another"):
        publish(tmp_path / "out" / "file", b"x")


def test_a_folder_that_cannot_be_listed_is_not_empty(tmp_path, monkeypatch):
    """A transient error would leave what a dead process left, and nobody would say so."""

    def listing(folder):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(folder))

    monkeypatch.setattr(os, "scandir", listing)
    with pytest.raises(StoreError, match=re.escape(str(tmp_path))):
        durable.leftovers(tmp_path)
    with pytest.raises(StoreError, match=re.escape(str(tmp_path))):
        check_folder(tmp_path)
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        read_files(tmp_path)  # a tokenizer that lacks a file would be another one


def test_a_folder_that_is_gone_holds_nothing(tmp_path):
    assert durable.leftovers(tmp_path / "gone") == []
