"""Sealed folders: whole or not at all, replaced and removed only where their record proves them ours."""

import errno
import os
import shutil
from pathlib import Path

import msgspec
import pytest

from softlabels.core import folders
from softlabels.core.folder_lock import LOCK, FolderLock
from softlabels.core.folder_record import FOLDER, RECORD, check_folder, seal_folder, write_seal
from softlabels.core.folders import (
    GOING,
    filling,
    mend_folders,
    publish_folder,
    remove_folder,
    sweep_folders,
)
from softlabels.errors import FormatError, IntegrityError, RunError, StoreError


class Killed(BaseException):
    """The process dies here."""


def made(final: Path, content: bytes = b"one", notices: list[str] | None = None) -> Path:
    with filling(final) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "a.bin").write_bytes(content)
        (temporary / "inner" / "b.bin").write_bytes(content * 2)
        seal_folder(temporary, kind="student", step=3)
        publish_folder(temporary, final, [].append if notices is None else notices.append)
    return final


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_a_folder_says_what_each_of_its_files_must_be(tmp_path):
    folder = made(tmp_path / "f")
    record = check_folder(folder)
    assert sorted(record.files) == ["a.bin", "inner/b.bin"]
    assert (record.kind, record.step) == ("student", 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f"]
    for name in ("a.bin", "inner/b.bin"):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        flipped = bytearray((copy / name).read_bytes())
        flipped[-1] ^= 1
        (copy / name).write_bytes(flipped)
        with pytest.raises(IntegrityError, match=rf"{name}: sha256 is .* altered"):
            check_folder(copy)
        check_folder(copy, contents=False)
        (copy / name).unlink()
        with pytest.raises(IntegrityError, match=rf"{name}: cannot be read"):
            check_folder(copy)
        shutil.rmtree(copy)
    with pytest.raises(FileNotFoundError):
        check_folder(tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "error"),
    [
        (b'"step": 3', b'"step": 4', IntegrityError),
        (b'"a.bin"', b'"../a.bin"', IntegrityError),
        (b'"version": "1.0"', b'"version": "2.0"', FormatError),
        (b'"format": "softlabels-folder"', b'"format": "other"', FormatError),
        (b"{", b"[", IntegrityError),
    ],
)
def test_an_altered_record_is_refused(tmp_path, before, after, error):
    path = made(tmp_path / "f") / RECORD
    data = path.read_bytes()
    assert before in data
    path.write_bytes(data.replace(before, after, 1))
    with pytest.raises(error):
        check_folder(path.parent)


def test_a_record_with_a_right_digest_may_still_name_no_file_outside(tmp_path):
    folder = made(tmp_path / "f")
    record = check_folder(folder)
    (tmp_path / "outside").write_bytes(b"mine")
    for name in ("../outside", "/etc/passwd", "inner/../../outside", "a//b", "."):
        files = {name: record.files["a.bin"]}
        write_seal(folder, FOLDER, msgspec.structs.replace(record, files=files))
        with pytest.raises(IntegrityError, match="not the name of a file in it"):
            check_folder(folder)
        assert folders._proven(folder) is None


def test_ours_is_replaced_and_nothing_is_said(tmp_path):
    notices = []
    made(tmp_path / "f", notices=notices)
    made(tmp_path / "f", b"two", notices)
    assert (tmp_path / "f" / "a.bin").read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert notices == []


@pytest.mark.parametrize("change", ["added", "added below", "altered", "unsealed", "link", "file"])
def test_what_is_not_proven_ours_is_moved_aside_whole(tmp_path, change):
    folder = made(tmp_path / "f")
    match change:
        case "added":
            (folder / "notes.txt").write_text("mine")
        case "added below":
            (folder / "inner" / "notes.txt").write_text("mine")
        case "altered":
            (folder / "a.bin").write_bytes(b"two")
        case "unsealed":
            (folder / RECORD).unlink()
        case "link":
            (folder / "a.bin").unlink()
            (tmp_path / "elsewhere").write_bytes(b"one")
            (folder / "a.bin").symlink_to(tmp_path / "elsewhere")
        case "file":
            shutil.rmtree(folder)
            folder.write_text("mine")
    before = snapshot(folder) if folder.is_dir() else folder.read_text()
    notices = []
    made(folder, b"new", notices)
    kept = tmp_path / "f.kept-1"
    assert (snapshot(kept) if kept.is_dir() else kept.read_text()) == before
    assert check_folder(folder)
    (said,) = notices
    assert "f.kept-1" in said
    assert "nothing of it was removed" in said
    (folder / "again.txt").write_text("mine, too")
    made(folder, b"newer", notices)
    assert (tmp_path / "f.kept-2" / "again.txt").read_text() == "mine, too"
    assert (snapshot(kept) if kept.is_dir() else kept.read_text()) == before


def test_a_file_that_comes_while_a_folder_is_replaced_stays(tmp_path, monkeypatch):
    folder = made(tmp_path / "f")
    proven = folders._proven

    def meanwhile(path: Path) -> list[str] | None:
        found = proven(path)
        (path / "late.txt").write_text("mine")
        return found

    monkeypatch.setattr(folders, "_proven", meanwhile)
    notices = []
    made(folder, b"two", notices)
    assert (tmp_path / "f.kept-1" / "late.txt").read_text() == "mine"
    assert len(notices) == 1


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    folder = made(tmp_path / "f")
    before = snapshot(folder)
    rename = Path.rename

    def full(path: Path, to: Path) -> Path:
        if to == folder and not path.name.startswith(GOING):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return rename(path, to)

    with monkeypatch.context() as m:
        m.setattr(Path, "rename", full)
        with pytest.raises(StoreError, match="the disk is full"):
            made(folder, b"two")
    assert snapshot(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("nth", range(1, 12))
@pytest.mark.parametrize("mine", [False, True], ids=["ours", "with a user's file"])
def test_a_kill_at_any_call_of_a_replacement_loses_nothing(tmp_path, monkeypatch, nth, mine):
    folder = made(tmp_path / "f")
    if mine:
        (folder / "notes.txt").write_text("mine")
    calls = 0

    def dying(call):
        def died(*args, **options):
            nonlocal calls
            calls += 1
            if calls == nth:
                raise Killed
            return call(*args, **options)

        return died

    with monkeypatch.context() as m:
        for name in ("rename", "unlink", "rmdir"):
            m.setattr(Path, name, dying(getattr(Path, name)))
        m.setattr(folders.shutil, "rmtree", lambda *_, **__: None)  # a dead process cleans nothing
        try:
            made(folder, b"two")
            finished = True
        except Killed:
            finished = False
    mend_folders(tmp_path, [].append)
    assert check_folder(folder).files  # the old or the new one, whole
    assert not list(tmp_path.glob(f"{GOING}*"))
    if mine:
        notes = [*tmp_path.glob("f/notes.txt"), *tmp_path.glob("f.kept-*/notes.txt")]
        assert [p.read_text() for p in notes] == ["mine"]
    made(folder, b"two")  # as the command would that is given again
    assert [p.name for p in tmp_path.glob("f.kept-*")] == (["f.kept-1"] if mine else [])
    made(folder, b"three")
    assert (folder / "a.bin").read_bytes() == b"three"
    assert finished or calls == nth


def test_a_removal_that_was_killed_goes_on(tmp_path, monkeypatch):
    folder = made(tmp_path / "f")
    with monkeypatch.context() as m:
        unlink = Path.unlink
        m.setattr(Path, "unlink", lambda p, **o: unlink(p, **o) if p.name == "a.bin" else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            remove_folder(folder, [].append)
    mend_folders(tmp_path, [].append)
    assert list(tmp_path.iterdir()) == []


def test_every_file_and_folder_is_durable_before_the_name_is(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())

    rename = Path.rename

    def renamed(path: Path, target: Path) -> Path:
        synced.append(target)
        return rename(path, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("names of open files are shown by Linux only")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", renamed)
    made(tmp_path / "new" / "f")
    at = synced.index(tmp_path / "new" / "f")
    before = {p.name for p in synced[:at]}
    assert {"a.bin", "b.bin", RECORD, "inner"} <= before
    assert tmp_path in synced[:at]  # the new folder's own name
    assert synced[at + 1] == tmp_path / "new"


def test_temporary_folders_of_the_dead_are_swept_and_no_others(tmp_path):
    with filling(tmp_path / "f") as mine:
        dead = tmp_path / mine.name.replace(f".{os.getpid()}.", f".{2**22 + 1}.")
        assert dead != mine
        dead.mkdir()
        (dead / "half").write_text("x")
        foreign = tmp_path / ".tmp-other"
        foreign.mkdir()
        sweep_folders(tmp_path)
        assert not dead.exists()
        assert mine.exists()
        assert foreign.exists()


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="the disk is full"):
        made(tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_has_one_holder_until_its_process_ends(tmp_path):
    with FolderLock(tmp_path / "run", [].append) as first:
        first.acquire()
        second = FolderLock(tmp_path / "run", [].append)
        with pytest.raises(RunError, match=rf"another run is writing there.*{os.getpid()}"):
            second.acquire()
    with FolderLock(tmp_path / "run", [].append) as third:
        third.acquire()
    assert [p.name for p in (tmp_path / "run").iterdir()] == [LOCK]


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    import fcntl

    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    notices = []
    with FolderLock(tmp_path, notices.append) as lock:
        lock.acquire()
    assert "cannot be locked here" in notices[0]


@pytest.mark.parametrize("torn", [b"host-83d349a0ac45.40265", b"\0" * 40])
def test_a_lock_that_a_power_failure_tore_still_locks(tmp_path, torn):
    (tmp_path / LOCK).write_bytes(torn)
    with FolderLock(tmp_path, [].append) as lock:
        lock.acquire()
        assert (tmp_path / LOCK).read_bytes() == torn
        with pytest.raises(RunError, match="another run"):
            FolderLock(tmp_path, [].append).acquire()
