"""How a record file is spelled, sealed and checked; what records say is in `manifest.py`.

A record file is canonical JSON (keys sorted, two-space indent, one final newline) and carries its own
sha256 in `digest`, so that a flipped byte anywhere in it, white space included, is found when it is read.
"""

from __future__ import annotations

import errno
import hashlib
import re
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from softlabels.errors import (
    FormatError,
    IntegrityError,
    SoftLabelsError,
    StoreError,
    UnreadableError,
)

FORMAT = "softlabels"
FORMAT_VERSION = "1.6"
"""MAJOR.MINOR of what is written, without pages. A reader reads its own major at any minor, and ignores keys it does
not know."""
PAGED_VERSION = "1.7"
"""Of a record whose shards lie in pages, which older readers refuse; the newest that this version reads whole."""
RECORD_LIMIT = 16 * 2**20
"""Bytes: a larger record file is refused unread."""
ENTRIES_LIMIT = 2**20
"""Commas and opening brackets: an entry of two bytes would become an object of a hundred."""
DEPTH_LIMIT = 32
"""Levels: indented, deep entries would take more memory than the file's size promises."""
FILE_LIMIT = 2 * 2**30
"""Bytes: a larger file is refused unread."""
STALE_PAUSES = (0.05, 0.5)
"""Seconds to wait before a file that a network file system lost sight of (ESTALE) is opened again."""
HASHED_FIRST = 64 * 2**20
"""Bytes: a larger file is read twice, so that none is held in memory before its digest is right."""


LARGEST = 2**53
"""No count is larger: JSON readers that hold numbers as doubles read it exactly, and sums fit int64."""
Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all records."""


class FileRecord(Record, frozen=True, kw_only=True):
    """A file that a record vouches for."""

    sha256: Sha256
    bytes: Count


def file_record(data: bytes) -> FileRecord:
    """Of a file that holds these bytes."""
    return FileRecord(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


R = TypeVar("R", bound=Record)


def canonical(value: Any) -> bytes:
    """The one JSON spelling of a value: sorted keys, two-space indent, final newline."""
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2) + b"\n"


def seal(record: R) -> R:
    """The record with its own digest filled in."""
    return msgspec.structs.replace(record, digest=digest_of(msgspec.to_builtins(record)))


def digest_of(raw: dict[str, Any]) -> str:
    """What `digest` must be in a record, as plain values."""
    rest = {name: value for name, value in raw.items() if name != "digest"}
    return hashlib.sha256(canonical(rest)).hexdigest()


def _digest_in(spelling: bytes, digest: Any) -> str:
    """`digest_of` a record with this canonical spelling, whose line of the digest is left out.

    A line break in a string is spelled otherwise, and two spaces alone are before keys of the outermost object.
    """
    line = b'\n  "digest": ' + msgspec.json.encode(digest)
    rest = spelling.replace(line + b",", b"", 1).replace(b"," + line + b"\n", b"\n", 1)
    return hashlib.sha256(rest).hexdigest()


def read_record(path: Path, kind: type[R]) -> R:
    """Read and check one record file.

    Raises:
        FormatError: not JSON, not this record, or a newer major version.
        IntegrityError: the bytes are not the ones that were written.
        FileNotFoundError: no such file (callers say what that means).
    """
    return parse_record(read_record_file(path), kind, where=path)


def is_record(path: Path, kind: type[Record]) -> bool:
    """Whether a file is an intact record, whose seal proves that it is ours."""
    try:
        read_record(path, kind)
    except (StoreError, FileNotFoundError, NotADirectoryError):
        return False
    return True


def read_record_file(path: Path) -> bytes:
    """The bytes of a record file, which may be anything yet.

    Raises:
        FormatError: larger than any record.
        IntegrityError: not a regular file.
        UnreadableError: there, and cannot be read.
        FileNotFoundError, NotADirectoryError: there is none.
    """

    def check(size: int) -> None:
        if size > RECORD_LIMIT:
            raise FormatError(
                f"{path}: {size} bytes; a record of more than {RECORD_LIMIT} bytes is refused unread"
            )

    return _read(path, check)


def parse_record(data: bytes, kind: type[R], *, where: object) -> R:
    """As `read_record`, of bytes that were read already; messages name `where`."""
    return parse_raw(data, kind, where=where)[0]


_REMEDY = "copy it again from its source, or build the store again"


def parse_raw(
    data: bytes,
    kind: type[R],
    *,
    where: object,
    format: str = FORMAT,
    version: str = FORMAT_VERSION,
    remedy: str = _REMEDY,
) -> tuple[R, dict[str, Any]]:
    """The record, and the JSON object that it was made from, as `read_record`.

    Args:
        where: it lies, for messages.
        format: what it calls itself.
        version: that this softlabels reads and writes.
        remedy: what to do about a damaged one.
    """
    brackets = data.count(b"[") + data.count(b"{")
    if brackets + data.count(b",") > ENTRIES_LIMIT:
        raise FormatError(
            f"{where}: more than {ENTRIES_LIMIT} entries; such a record is refused unread"
        )
    try:
        raw = msgspec.json.decode(data)
        if brackets > DEPTH_LIMIT:  # else it cannot be deeper
            _check_depth(raw, where, remedy)
        spelling = canonical(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as e:
        raise IntegrityError(
            f"{where}: not valid JSON ({e}); the file is torn or altered: {remedy}"
        ) from e
    if not isinstance(raw, dict) or raw.get("format") != format:
        raise FormatError(f'{where}: not a softlabels record (its "format" is not {format!r})')
    _check_version(raw.get("version"), version, where)
    found, expected = raw.get("digest"), _digest_in(spelling, raw.get("digest"))
    if found != expected or spelling != data:
        raise IntegrityError(
            f"{where}: its digest is {found}, its content gives {expected}; the file was altered: {remedy}"
        )
    try:
        return msgspec.convert(raw, kind), raw
    except msgspec.ValidationError as e:
        what = kind.__name__.removesuffix("Record").lower()
        raise FormatError(f"{where}: not a valid {what}: {e}") from e


def minor_of(version: str) -> int:
    """The MINOR of a format version that was found valid."""
    return int(version.split(".")[1])


def _check_version(found: Any, version: str, where: object) -> None:
    match = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", found) if isinstance(found, str) else None
    if match is None:
        raise FormatError(f"{where}: format version {found!r} is not MAJOR.MINOR")
    ours = int(version.split(".")[0])
    if int(match[1]) != ours:
        raise FormatError(
            f"{where}: format version {found}, this softlabels reads {ours}.x; "
            f"{'upgrade softlabels' if int(match[1]) > ours else 'convert the store'}"
        )


def _check_depth(raw: Any, where: object, remedy: str) -> None:
    level = [raw]
    for _ in range(DEPTH_LIMIT):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise IntegrityError(f"{where}: nested more than {DEPTH_LIMIT} levels deep; {remedy}")


def regular_size(path: Path) -> int:
    """Bytes of a regular file, or of what a link leads to; a pipe or device, which would never end, is refused."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise IntegrityError(f"{path}: not a regular file; {_REMEDY}")
    return found.st_size


def read_file(path: Path) -> bytes:
    """A file that no record vouches for yet; `IntegrityError` if it is too large, else as `read_record_file`."""

    def check(size: int) -> None:
        if size > FILE_LIMIT:
            raise IntegrityError(
                f"{path}: {size} bytes; a file of more than {FILE_LIMIT} bytes is refused unread"
            )

    return _read(path, check)


def check_file(path: Path, *, sha256: str, size: int) -> bytes:
    """Read a file and compare it with its record.

    Raises:
        IntegrityError: missing, not a file, shorter or longer than recorded, altered, or too large to be read.
        UnreadableError: there, and cannot be read.
    """
    if size > FILE_LIMIT:
        raise IntegrityError(
            f"{path}: recorded with {size} bytes; a file of more than {FILE_LIMIT} bytes is refused unread"
        )

    def check(found: int) -> None:
        if found != size:
            raise IntegrityError(
                f"{path}: {found} bytes, the record says {size}: torn or altered; {_REMEDY}"
            )
        if size > HASHED_FIRST:
            _check_digest(path, sha256_of(path), sha256)

    try:
        data = _read(path, check)
    except (FileNotFoundError, NotADirectoryError) as e:
        raise IntegrityError(f"{path}: missing; {_REMEDY}") from e
    _check_digest(path, hashlib.sha256(data).hexdigest(), sha256)
    return data


def _read(path: Path, check: Callable[[int], None]) -> bytes:
    """A file whose size is accepted by `check`; what the system refuses is told from what is damaged."""
    for pause in (*STALE_PAUSES, None):
        try:
            check(regular_size(path))
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, SoftLabelsError):
            raise
        except OSError as e:
            if e.errno in (errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG):
                raise IntegrityError(f"{path}: cannot be read ({e.strerror}); {_REMEDY}") from e
            if e.errno != errno.ESTALE or pause is None:
                raise UnreadableError(
                    f"{path}: cannot be read ({e.strerror}). That does not mean that it is damaged, so it was left as "
                    "it is: make it readable, and run the same command again. If it stays unreadable the disk may "
                    "have lost it: move it away yourself, and it counts as missing"
                ) from e
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def sha256_of(path: Path) -> str:
    """Of a file, which is not held in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(files: Sequence[Path]) -> str:
    """Over names and contents."""
    lines = (f"{path.name}\0{sha256_of(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _check_digest(path: Path, found: str, sha256: str) -> None:
    if found != sha256:
        raise IntegrityError(
            f"{path}: sha256 is {found}, the record says {sha256}: altered; {_REMEDY}"
        )
