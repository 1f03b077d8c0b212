"""Publishing: a file is there whole or not at all, whatever fails, and nothing published is written again."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from softlabels.errors import IntegrityError, StoreError
from softlabels.store.commit import (
    STALE_SECONDS,
    adopt_shard,
    commit_path,
    commit_shard,
    committed,
    publish,
    sweep,
)
from softlabels.store.manifest import Commit, load_manifest
from softlabels.store.plan import load_plan
from softlabels.store.records import read_record
from softlabels.store.verify import verify_store
from tests.fakes import build_tiny
from tests.store.made_up import files_of, reseal

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
    assert str(e.value).endswith("then run the same command again; finished shards are kept")
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
    code = (
        "import os, sys, pathlib\n"
        "from softlabels.store.commit import publish\n"
        f"path, call = pathlib.Path(sys.argv[1]), {call!r}\n"
        "die = lambda *a, **k: os._exit(9)\n"
        "setattr(pathlib.Path if call == 'unlink' else os, call, die)\n"
        "publish(path, b'some bytes\\n' * 1000)\n"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, check=False)
    assert run.returncode == 9
    assert path.exists() == (call == "unlink")
    (left,) = temporary_files(tmp_path)
    assert sweep(tmp_path) == [left]
    assert publish(path, DATA) == (call != "unlink")
    assert files_of(tmp_path) == {"data/file": DATA}


# -- sweep ----------------------------------------------------------------------------------------


HOST = socket.gethostname()


@pytest.fixture
def other_process():
    """A process that lives until it is told to end."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    if process.poll() is None:
        process.communicate(b"\n")


def temporary(folder, host, pid, *, age=0.0, name="train-00000-of-00002.parquet"):
    path = folder / "data" / f".tmp-{host}-{pid}-0a1b2c3d-{name}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"half")
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_sweep_leaves_the_files_of_the_living_and_removes_those_of_the_dead(
    tmp_path, other_process
):
    theirs = temporary(tmp_path, HOST, other_process.pid, age=10 * STALE_SECONDS)
    assert sweep(tmp_path) == []
    assert theirs.exists()
    other_process.communicate(b"\n")
    assert sweep(tmp_path) == [theirs]
    assert not theirs.exists()


def test_a_process_of_another_user_is_alive(tmp_path, monkeypatch, other_process):
    theirs = temporary(tmp_path, HOST, other_process.pid)

    def kill(_pid, _signal):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as m:
        m.setattr(os, "kill", kill)
        assert sweep(tmp_path) == []
    assert theirs.exists()


def test_sweep_takes_its_own_pid_for_an_earlier_life(tmp_path):
    """A container restarts with the same pid."""
    mine = temporary(tmp_path, HOST, os.getpid())
    assert sweep(tmp_path) == [mine]


def test_sweep_removes_another_hosts_files_only_when_old(tmp_path):
    young = temporary(tmp_path, "elsewhere", 1, age=STALE_SECONDS - 600)
    old = temporary(tmp_path, "elsewhere", 2, age=STALE_SECONDS + 600)
    assert sweep(tmp_path) == [old]
    assert young.exists()


@pytest.mark.parametrize(
    "host", ["{host}-{dead}", "a-{host}", "{host}.example.org", "{host}x", "{dead}-{host}"]
)
def test_a_host_whose_name_resembles_ours_is_another_host(tmp_path, other_process, host):
    """`node-17` is not pid 17 of `node`."""
    other_process.communicate(b"\n")
    dead = other_process.pid
    theirs = temporary(tmp_path, host.format(host=HOST, dead=dead), dead)
    assert sweep(tmp_path) == []
    assert theirs.exists()


def test_names_that_no_writer_gives_are_swept_when_old(tmp_path):
    for i, name in enumerate([".tmp-", ".tmp-x", f".tmp-{HOST}-", f".tmp-{HOST}-{10**40}-a"]):
        path = tmp_path / name
        path.write_bytes(b"")
        assert sweep(tmp_path) == []
        os.utime(path, (0, i))
        assert sweep(tmp_path) == [path]


def test_sweep_touches_nothing_else(store):
    before = files_of(store)
    for path in store.rglob("*"):
        os.utime(path, (0, 0))
    assert sweep(store) == []
    assert files_of(store) == before
    assert sweep(store / "nowhere") == []


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
    adopted = adopt_shard(unfinished, plan, shard)
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
    assert adopt_shard(unfinished, plan, shard) is None
    assert not commit_path(unfinished, shard).exists()


@pytest.mark.parametrize("what", ["empty", "garbage", "torn", "flipped", "another shard"])
def test_a_wrong_orphan_is_removed(unfinished, what):
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
    assert adopt_shard(unfinished, plan, shard) is None
    assert not path.exists()
    assert not commit_path(unfinished, shard).exists()
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
    assert adopt_shard(unfinished, plan, shard) is None
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
    commit = commit_shard(unfinished, plan, shard, data, original.statistics, 1.5)
    assert links == [path, record]
    assert path.read_bytes() == data
    assert (commit.sha256, commit.seconds) == (original.sha256, 1.5)
    assert committed(unfinished, plan, shard) == commit
    assert temporary_files(unfinished) == []


def test_commit_shard_adopts_what_another_builder_published_first(unfinished):
    plan = plan_of(unfinished)
    shard = plan.shards[0]
    path, record = unfinished / shard.name, commit_path(unfinished, shard)
    data, original = path.read_bytes(), read_record(record, Commit)
    record.unlink()
    ours = data + b"different bytes of the same shard"
    commit = commit_shard(unfinished, plan, shard, ours, original.statistics, 1.5)
    assert path.read_bytes() == data
    assert commit.sha256 == original.sha256
    again = commit_shard(unfinished, plan, shard, ours, original.statistics, 1.5)
    assert again == commit  # the record is there already, and stays


def test_commit_shard_replaces_a_wrong_file_that_no_record_names(unfinished):
    plan = plan_of(unfinished)
    shard = plan.shards[0]
    path, record = unfinished / shard.name, commit_path(unfinished, shard)
    data, original = path.read_bytes(), read_record(record, Commit)
    record.unlink()
    path.write_bytes(b"foreign")
    commit_shard(unfinished, plan, shard, data, original.statistics, 1.5)
    assert path.read_bytes() == data
    assert committed(unfinished, plan, shard) is not None


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
