"""The record of a sealed folder: what each of its files must be, and whether it still is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from softlabels.core.durable import walk
from softlabels.core.records import (
    FileRecord,
    Record,
    canonical,
    parse_raw,
    read_record_file,
    regular_size,
    seal,
    sha256_of,
)
from softlabels.errors import IntegrityError, StoreError

RECORD = "softlabels.json"


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


def describe_files(folder: Path, *, without: str) -> dict[str, FileRecord]:
    """Size and sha256 of each file of a folder, and of the folders in it, but for the record's own."""
    return {
        name: FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size)
        for name, path in sorted(entries(folder).items())
        if name != without and not is_folder(path)
    }


def entries(folder: Path) -> dict[str, Path]:
    """All that lies in a folder and below, by name; links are not followed."""
    found = (Path(root, n) for root, dirs, files in walk(folder) for n in [*dirs, *files])
    return {path.relative_to(folder).as_posix(): path for path in found}


def is_folder(path: Path) -> bool:
    """Whether it is one itself, and no link to one."""
    return path.is_dir() and not path.is_symlink()


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
    return _read(folder, FOLDER)


def read_seal(folder: Path, kind: Seal[R], *, contents: bool = True) -> R:
    """Read a folder's record and compare its files with it; others than the listed ones are of no concern.

    Args:
        contents: False to look at the files' sizes only.

    Raises:
        FileNotFoundError, NotADirectoryError: it has no record (callers say what that means).
        FormatError: the record is of another kind or of a newer version.
        IntegrityError: the record or a file is missing or altered.
        StoreError: a file cannot be read now.
    """
    record = _read(folder, kind)
    for name, file in record.files.items():
        if not is_plain(name):
            raise IntegrityError(
                f"{folder / kind.file}: {name!r} is not the name of a file in it; {kind.remedy}"
            )
        compare(folder / name, file, kind, contents=contents)
    return record


def _read(folder: Path, kind: Seal[R]) -> R:
    path = folder / kind.file
    return parse_raw(
        read_record_file(path),
        kind.record,
        where=path,
        format=kind.format,
        version=kind.version,
        remedy=kind.remedy,
    )[0]


def is_plain(name: str) -> bool:
    """Whether a recorded name is that of a file in the folder, and spelled in the one way."""
    path = PurePosixPath(name)
    return (
        not path.is_absolute()
        and bool(path.parts)
        and ".." not in path.parts
        and "\\" not in name
        and path.as_posix() == name
    )


def compare(path: Path, file: FileRecord, kind: Seal[Any], *, contents: bool) -> None:
    """Refuse a file that is not as recorded; raises as `read_seal`."""
    try:
        size = regular_size(path)
        if size != file.bytes:
            raise IntegrityError(
                f"{path}: {size} bytes, {kind.file} says {file.bytes}; {kind.remedy}"
            )
        if contents and (found := sha256_of(path)) != file.sha256:
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
