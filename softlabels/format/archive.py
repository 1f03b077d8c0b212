"""The zip files that a shard in Zarr is: written with equal bytes for equal content, read with distrust.

Only the plainest kind is made and read: entries one after the other without gaps, stored and not
compressed, then the directory, which repeats them in the same order, then the end record. So every reader
of zip files sees the same entries, none may be larger than the file, and nothing in it is hidden. It is
taken apart here, not by `zipfile`, which searches for the directory, allows overlaps and unpacks whatever
an entry says it is.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from struct import Struct

ENTRIES_LIMIT = 2**14
"""An archive with more is neither written nor read."""
SIZE_LIMIT = 2**31 - 2**24
"""Bytes of all entries together: with what is written around them a file has less than 2 GiB."""
NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
NAME_LIMIT = 255
LOCAL = Struct("<4s2x2H4x3I2H")
"""Signature; flags, method; CRC-32, sizes; lengths of name and extra field. Versions and times are passed over."""
CENTRAL = Struct("<4s4x2H4x3I4H6xI")
"""Signature; flags, method; CRC-32, sizes; lengths of name, extra field and comment, disk; offset."""
END = Struct("<4s4H2IH")
"""Signature; disks, entries here and in all; size and offset of the directory; length of the comment."""
UTF8 = 0x800
"""The flag that says how a name is spelled: of no concern, names are ASCII."""


def write_archive(entries: Mapping[str, bytes]) -> bytes:
    """The zip file of some entries, in their order."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as file:
        for name, data in entries.items():
            about = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            about.create_system = 3  # whatever the machine: equal input gives equal bytes
            about.external_attr = 0o644 << 16
            file.writestr(about, data)
    return sink.getvalue()


class Archive:
    """The entries of a zip file; `ValueError` if it is not one of the kind above."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._entries: dict[str, tuple[int, int, int]] = {}
        """Of each name where its bytes begin and end, and their CRC-32."""
        if len(data) < END.size:
            raise ValueError("no zip file: too short")
        end = len(data) - END.size
        mark, disk, disk_of_directory, here, count, size, begin, comment = END.unpack_from(
            data, end
        )
        if (
            mark != b"PK\5\6"
            or disk
            or disk_of_directory
            or comment
            or here != count
            or begin + size != end
        ):
            raise ValueError("no zip file, or one with a comment, gaps or several parts")
        if count > ENTRIES_LIMIT:
            raise ValueError(f"a zip file of {count} entries, more than {ENTRIES_LIMIT}")
        at, done = begin, 0
        for _ in range(count):
            at, done = self._entry(data, at, end, done, begin)
        if at != end or done != begin:
            raise ValueError("bytes that belong to no entry")

    def _entry(self, data: bytes, at: int, end: int, done: int, limit: int) -> tuple[int, int]:
        """Take one entry of the directory, whose own header must be at `done`; where both go on."""
        if at + CENTRAL.size > end:
            raise ValueError("its directory is torn")
        (mark, *about, extra, comment, disk, place) = CENTRAL.unpack_from(data, at)
        flags, method, crc, packed, size, length = about
        at += CENTRAL.size
        name = data[at : at + length]
        at += length + extra
        if mark != b"PK\1\2" or at > end or disk or comment:
            raise ValueError("its directory is torn")
        if length > NAME_LIMIT or not NAME.fullmatch(name):
            raise ValueError(f"an entry is named {name[:80]!r}")
        text = name.decode()
        if text in self._entries:
            raise ValueError(f"entry {text!r} is there twice")
        if method or packed != size or flags & ~UTF8:
            raise ValueError(f"entry {text!r} is compressed or encrypted; entries must be stored")
        if place != done or done + LOCAL.size > limit:
            raise ValueError(f"entry {text!r} is not where it must be")
        own_mark, *own, own_extra = LOCAL.unpack_from(data, place)
        begin = place + LOCAL.size + length + own_extra
        if (
            own_mark != b"PK\3\4"
            or own != about
            or data[place + LOCAL.size : place + LOCAL.size + length] != name
            or begin + size > limit
        ):
            raise ValueError(f"entry {text!r} contradicts the directory")
        self._entries[text] = begin, begin + size, crc
        return at, begin + size

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def read(self, name: str, *, limit: int | None = None) -> memoryview:
        """The bytes of an entry, not copied.

        Raises:
            ValueError: there is none, it has more than `limit` bytes, or not the bytes of its CRC-32.
        """
        if name not in self._entries:
            raise ValueError(f"has no entry {name!r}")
        begin, end, crc = self._entries[name]
        if limit is not None and end - begin > limit:
            raise ValueError(f"entry {name!r} has {end - begin} bytes, at most {limit} are read")
        found = self._data[begin:end]
        if zlib.crc32(found) != crc:
            raise ValueError(f"entry {name!r} has another CRC-32: its bytes were altered")
        return found
