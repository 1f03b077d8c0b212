"""What a Parquet file declares that it holds, read from its bytes before anything is decoded.

A file of a few KB may decode to gigabytes (zeros compress a thousandfold, and one run of a dictionary
stands for any number of values), so the sizes in its footer and in each page's header are compared with
the manifest first. They are read here, not by pyarrow: its accessors of a footer that contradicts itself
end the process. Costs a millisecond or two for each shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FOOTER_LIMIT = 2**20
"""Bytes: a longer footer is refused."""
PLAIN = 0
NESTING = 12
"""Levels of structs and lists; Parquet's own have 6."""
MAGIC = b"PAR1"
WIDTHS = (1, 4, 8, 12, 4, 8)
"""Bytes of a value in memory by physical type: BOOLEAN, INT32, INT64, INT96, FLOAT, DOUBLE; of others, 2 or more."""


@dataclass(kw_only=True)
class Declared:
    """What one top-level column declares, over all row groups."""

    entries: int = 0
    bytes: int = 0
    """In memory, at least."""
    plain: bool = True
    """Every value stands in the pages by itself: none is a reference to another, nor begins like it."""


def footer_length(data: bytes) -> int:
    """Bytes of the footer; `ValueError` if it is not Parquet's, or too long to be looked at."""
    length = int.from_bytes(data[-8:-4], "little")
    if len(data) < 12 or data[:4] != MAGIC or data[-4:] != MAGIC or length > len(data) - 12:
        raise ValueError("no Parquet footer")
    if length > FOOTER_LIMIT:
        raise ValueError(f"a footer of {length} bytes, more than {FOOTER_LIMIT}")
    return length


def declared_columns(data: bytes) -> tuple[int, dict[str, Declared]]:
    """The number of rows, and what each column declares; `ValueError` if it is no Parquet file."""
    end = len(data) - 8
    footer = _Compact(data, end - footer_length(data), end).struct()
    columns: dict[str, Declared] = {}
    held = 0
    try:
        for group in footer[4]:
            for chunk in group[1]:
                about = chunk[3]
                held += max(0, int(about[7]))
                if held > len(data):  # each would be walked through again
                    raise ValueError("columns that lie over each other")
                column = columns.setdefault(about[3][0].decode(), Declared())
                entries, size, plain = _pages(data, about)
                entries = max(entries, int(about[5]))
                width = WIDTHS[about[1]] if 0 <= about[1] < len(WIDTHS) else 2
                column.entries += entries
                column.plain &= plain
                column.bytes += max(size, int(about[6]), entries * width)
        return int(footer[3]), columns
    except (KeyError, IndexError, TypeError, AttributeError) as e:
        raise ValueError(f"a footer without what it must have ({e!r})") from e


def _pages(data: bytes, about: dict[int, Any]) -> tuple[int, int, bool]:
    """Values and bytes that the page headers of one column chunk declare; whether all are coded as PLAIN."""
    begin, dictionary = int(about[9]), int(about.get(11) or 0)
    if 0 < dictionary < begin:
        begin = dictionary
    elif begin < len(MAGIC) and about[5] == 0:
        return 0, 0, True  # no page at all
    end = begin + int(about[7])
    if not 4 <= begin <= end <= len(data):
        raise ValueError("a column outside the file")
    entries = size = 0
    plain = True
    while begin < end:
        reader = _Compact(data, begin, end)
        header = reader.struct()
        begin = reader.at + int(header[3])
        if int(header[3]) < 0 or int(header[2]) < 0 or begin > end:
            raise ValueError("a page outside its column")
        size += int(header[2])
        entries += sum(int(header[f][1]) for f in (5, 8) if f in header)
        plain &= all(header[f][e] == PLAIN for f, e in ((5, 2), (8, 4)) if f in header)
    return entries, size, plain


class _Compact:
    """Thrift's compact protocol, as much of it as Parquet uses, between two places of some bytes."""

    def __init__(self, data: bytes, begin: int, end: int) -> None:
        self.data, self.at, self.end = data, begin, end

    def byte(self) -> int:
        if self.at >= self.end:
            raise ValueError("metadata is torn")
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            b = self.byte()
            value |= (b & 127) << shift
            if b < 128:
                return value
        raise ValueError("a number of more than 64 bits")

    def integer(self) -> int:
        n = self.varint()
        return (n >> 1) ^ -(n & 1)

    def take(self, n: int) -> bytes:
        if n > self.end - self.at:
            raise ValueError("metadata is torn")
        self.at += n
        return self.data[self.at - n : self.at]

    def struct(self, depth: int = 0) -> dict[int, Any]:
        found: dict[int, Any] = {}
        field = 0
        while head := self.byte():
            field = field + (head >> 4) if head >> 4 else self.integer()
            if field in found:
                raise ValueError(f"field {field} is there twice")
            kind = head & 15
            found[field] = kind == 1 if kind in (1, 2) else self.value(kind, depth + 1)
        return found

    def value(self, kind: int, depth: int) -> Any:
        if depth > NESTING:
            raise ValueError("metadata is nested too deep")
        match kind:
            case 1 | 2 | 3:  # of a list: booleans are bytes
                return self.byte()
            case 4 | 5 | 6:
                return self.integer()
            case 7:
                return self.take(8)
            case 8:
                return self.take(self.varint())
            case 9 | 10:
                head = self.byte()
                n = head >> 4 if head >> 4 < 15 else self.varint()
                if n > self.end - self.at:
                    raise ValueError("metadata is torn")
                return [self.value(head & 15, depth + 1) for _ in range(n)]
            case 12:
                return self.struct(depth)
        raise ValueError(f"metadata of unknown type {kind}")
