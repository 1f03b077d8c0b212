"""Sealed folders: one that appears whole and durable, says of each file what it must be, and is removed only as ours.

The flow of publishing: a temporary folder beside the final name is filled -> its record is written, with size and
sha256 of each file -> fsync of every file and folder -> the final name, by one rename. What lies under that name
already is first moved out of the way: to a hidden name, if its record proves every byte of it ours, and removed once
the new one is there; else to a name of its own, `NAME.kept-1`, where it stays. A process that dies in between leaves
the old folder under its hidden name, and `mend_folders` puts it back.

A record proves a folder ours if each file in it is one that the record lists, with the recorded bytes. It is looked at
after the folder was moved, so that nobody changes it meanwhile, and then only the listed files are removed, each by its
name: never a tree.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

import msgspec

from softlabels.durable import explained, is_left, make_folder, sync_folder, temporary_beside
from softlabels.errors import FormatError, IntegrityError, StoreError
from softlabels.store.records import Record, canonical, read_record_file, seal

__all__ = [
    "RECORD",
    "FileRecord",
    "FolderRecord",
    "Seal",
    "SealedRecord",
    "check_folder",
    "describe_files",
    "filling",
    "mend_folders",
    "publish_folder",
    "read_record",
    "read_seal",
    "remove_folder",
    "seal_folder",
    "sweep_folders",
    "write_seal",
]

RECORD = "softlabels.json"
GOING = ".going-"
"""Before the name of a folder that was moved out of the way and is removed next."""
BLOCK = 2**20

Notice = Callable[[str], None]


class FileRecord(Record, frozen=True, kw_only=True):
    """One file of a sealed folder."""

    sha256: str
    bytes: int


class SealedRecord(Record, frozen=True, kw_only=True):
    """What the record of every sealed folder says."""

    format: str
    version: str
    files: dict[str, FileRecord]
    """All but the record itself; names of files in folders with `/`."""
    digest: str
    """Over all of the above."""


class FolderRecord(SealedRecord, frozen=True, kw_only=True):
    """`softlabels.json`: of a checkpoint or a student."""

    kind: str
    """`checkpoint` or `student`."""
    step: int | None
    """After which it was made; None of a student that no run made."""


R = TypeVar("R", bound=SealedRecord)


@dataclass(frozen=True)
class Seal(Generic[R]):
    """A kind of record: the name of its file, what its `format` says, and its type."""

    file: str
    format: str
    version: str
    record: type[R]
    remedy: str
    """What to do about a damaged folder."""


FOLDER = Seal(
    RECORD, "softlabels-folder", "1.0", FolderRecord, "take another copy of it, or make it again"
)


# -- the record -----------------------------------------------------------------------------------


def describe_files(folder: Path, *, without: str) -> dict[str, FileRecord]:
    """Size and sha256 of each file of a folder, and of the folders in it, but for the record's own."""
    return {
        name: FileRecord(sha256=_digest(path), bytes=path.stat().st_size)
        for name, path in sorted(_entries(folder).items())
        if name != without and not _is_folder(path)
    }


def _entries(folder: Path) -> dict[str, Path]:
    """All that lies in a folder and below, by name; links are not followed."""
    found = (Path(root, n) for root, dirs, files in os.walk(folder) for n in [*dirs, *files])
    return {path.relative_to(folder).as_posix(): path for path in found}


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def seal_folder(folder: Path, *, kind: str, step: int | None = None) -> FolderRecord:
    """Write the record of a folder that holds all it will hold."""
    files = describe_files(folder, without=RECORD)
    record = FolderRecord(
        format=FOLDER.format, version=FOLDER.version, files=files, digest="", kind=kind, step=step
    )
    return write_seal(folder, FOLDER, record)


def write_seal(folder: Path, kind: Seal[R], record: R) -> R:
    """Write a record with its digest."""
    sealed = seal(record)
    (folder / kind.file).write_bytes(canonical(sealed))
    return sealed


def check_folder(folder: Path, *, contents: bool = True) -> FolderRecord:
    """Compare a folder's files with its record, as `read_seal`."""
    return read_seal(folder, FOLDER, contents=contents)


def read_record(folder: Path) -> FolderRecord:
    """A folder's record alone; raises as `read_seal`."""
    return _read_record(folder, FOLDER)


def read_seal(folder: Path, kind: Seal[R], *, contents: bool = True) -> R:
    """Read a folder's record and compare its files with it; others than the listed ones are of no concern.

    Args:
        folder: to be read.
        kind: of record.
        contents: False to look at the files' sizes only.

    Raises:
        FileNotFoundError, NotADirectoryError: it has no record (callers say what that means).
        FormatError: the record is of another kind or of a newer version.
        IntegrityError: the record or a file is missing or altered.
        StoreError: a file cannot be read now.
    """
    record = _read_record(folder, kind)
    for name, file in record.files.items():
        if not _is_plain(name):
            raise IntegrityError(
                f"{folder / kind.file}: {name!r} is not the name of a file in it; {kind.remedy}"
            )
        _compare(folder / name, file, kind, contents=contents)
    return record


def _read_record(folder: Path, kind: Seal[R]) -> R:
    path = folder / kind.file
    try:
        raw = msgspec.json.decode(read_record_file(path))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise IntegrityError(f"{path}: not valid JSON ({e}); {kind.remedy}") from e
    if not isinstance(raw, dict) or raw.get("format") != kind.format:
        raise FormatError(f'{path}: its "format" is not {kind.format!r}')
    if str(raw.get("version")).split(".")[0] != kind.version.split(".")[0]:
        raise FormatError(
            f"{path}: version {raw.get('version')}, this softlabels reads {kind.version}; upgrade softlabels"
        )
    rest = {name: value for name, value in raw.items() if name != "digest"}
    if raw.get("digest") != hashlib.sha256(canonical(rest)).hexdigest():
        raise IntegrityError(
            f"{path}: its digest does not match its content: altered; {kind.remedy}"
        )
    try:
        return msgspec.convert(raw, kind.record)
    except msgspec.ValidationError as e:
        raise FormatError(f"{path}: not a valid record: {e}") from e


def _is_plain(name: str) -> bool:
    """Whether a recorded name is that of a file in the folder, and spelled in the one way."""
    path = PurePosixPath(name)
    return (
        not path.is_absolute()
        and bool(path.parts)
        and ".." not in path.parts
        and "\\" not in name
        and path.as_posix() == name
    )


def _compare(path: Path, file: FileRecord, kind: Seal[Any], *, contents: bool) -> None:
    try:
        size = path.stat().st_size
        if size != file.bytes:
            raise IntegrityError(
                f"{path}: {size} bytes, {kind.file} says {file.bytes}; {kind.remedy}"
            )
        if contents and (found := _digest(path)) != file.sha256:
            raise IntegrityError(
                f"{path}: sha256 is {found}, {kind.file} says {file.sha256}: altered; {kind.remedy}"
            )
    except StoreError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as e:
        raise IntegrityError(f"{path}: cannot be read ({e.strerror}); {kind.remedy}") from e
    except OSError as e:
        raise StoreError(
            f"{path}: cannot be read now ({e.strerror}); nothing was changed, try again"
        ) from e


# -- publishing and removing ----------------------------------------------------------------------


@contextmanager
def filling(final: Path) -> Iterator[Path]:
    """A new folder beside `final`, to be filled and published; it is gone at the end unless it was.

    Raises:
        StoreError: the disk is full, read-only, …
    """
    with explained(final):
        make_folder(final.parent)
        temporary = temporary_beside(final)
        temporary.mkdir()
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def publish_folder(temporary: Path, final: Path, notice: Notice) -> None:
    """Make a filled folder appear under its final name, whole and durable.

    Args:
        temporary: what `filling` gave.
        final: the name. What is there is replaced if its record proves it ours, else moved aside.
        notice: told if something was moved aside.

    Raises:
        StoreError: the disk is full, read-only, …
    """
    with explained(final):
        _sync_tree(temporary)
        going = _going(final)
        if going.exists():
            remove_folder(going, notice)
        if final.is_symlink() or final.exists():
            if _is_ours(final):
                final.rename(going)
            else:
                _keep_aside(final, final.name, notice)
        temporary.rename(final)
        sync_folder(final.parent)
        if going.exists():
            _remove(going, final.name, notice)


def remove_folder(folder: Path, notice: Notice) -> None:
    """Remove a folder if its record proves it ours, else move it aside; done again after a kill, it goes on.

    Args:
        folder: to be removed.
        notice: told if it was moved aside.

    Raises:
        StoreError: it cannot be.
    """
    with explained(folder):
        if folder.name.startswith(GOING):
            _remove(folder, folder.name.removeprefix(GOING), notice)
            return
        going = _going(folder)
        if going.exists():
            _remove(going, folder.name, notice)
        folder.rename(going)
        _remove(going, folder.name, notice)


def mend_folders(parent: Path, notice: Notice) -> None:
    """Bring to an end what a process was doing with the folders in `parent` when it died.

    Only for whoever alone writes there, such as a run that holds its folder's lock.

    Raises:
        StoreError: it cannot be done.
    """
    with explained(parent):
        for going in sorted(parent.glob(f"{GOING}*")):
            final = parent / going.name.removeprefix(GOING)
            if not final.exists() and _is_whole(going):
                going.rename(final)
                sync_folder(parent)
            else:
                _remove(going, final.name, notice)


def sweep_folders(parent: Path) -> None:
    """Remove the temporary folders in `parent` whose process is gone; only for a folder that is known to be ours."""
    with explained(parent):
        for path in sorted(parent.iterdir()):
            if _is_folder(path) and is_left(path):
                shutil.rmtree(path)


def _going(folder: Path) -> Path:
    return folder.with_name(GOING + folder.name)


def _is_whole(folder: Path) -> bool:
    try:
        check_folder(folder)
    except (FileNotFoundError, FormatError, IntegrityError):
        return False
    return True


def _is_ours(folder: Path) -> bool:
    """Whether every file there is one that the folder's record lists, with those bytes; some may be gone.

    Raises:
        StoreError: that cannot be told now.
    """
    if not _is_folder(folder):
        return False
    there = _entries(folder)
    if not there:
        return True
    try:
        files = _read_record(folder, FOLDER).files
    except (FileNotFoundError, FormatError, IntegrityError):
        return False
    return all(_is_listed(name, path, files) for name, path in there.items() if name != RECORD)


def _is_listed(name: str, path: Path, files: Mapping[str, FileRecord]) -> bool:
    if _is_folder(path):
        return any(listed.startswith(f"{name}/") for listed in files)
    if path.is_symlink() or name not in files:
        return False
    try:
        _compare(path, files[name], FOLDER, contents=True)
    except IntegrityError:
        return False
    return True


def _remove(going: Path, name: str, notice: Notice) -> None:
    """Remove a folder that was moved out of the way: the listed files, then the record, then the empty folders."""
    if not _is_ours(going):
        _keep_aside(going, name, notice)
        return
    there = _entries(going)
    for inner, path in there.items():
        if inner != RECORD and not _is_folder(path):
            path.unlink()
    (going / RECORD).unlink(missing_ok=True)
    for path in sorted((p for p in there.values() if _is_folder(p)), reverse=True):
        path.rmdir()
    going.rmdir()
    sync_folder(going.parent)


def _keep_aside(folder: Path, name: str, notice: Notice) -> None:
    """Give a folder that is not proven ours a name of its own, beside that which it had."""
    n = 1
    while True:
        kept = folder.with_name(f"{name}.kept-{n}")
        with suppress(FileExistsError):
            if not _is_folder(folder):
                if not (kept.exists() or kept.is_symlink()):
                    break
            else:
                kept.mkdir()  # takes the name; a rename to an empty folder replaces it
                break
        n += 1
    folder.rename(kept)
    sync_folder(folder.parent)
    notice(
        f"{folder.with_name(name)}: holds files that are not as they were written here; nothing of it was removed, "
        f"it is now {kept}"
    )


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            with Path(root, name).open("rb") as f:
                os.fsync(f.fileno())
        sync_folder(Path(root))
