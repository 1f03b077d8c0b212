"""What a Parquet file declares that it holds, read from its bytes before anything is decoded.

A file of a few KB may decode to gigabytes (zeros compress a thousandfold, and one run of a dictionary
stands for any number of values), so the sizes in its footer and in each page's header are compared with
the manifest first. They are read here, not by pyarrow: its accessors of a footer that contradicts itself
end the process. Costs a millisecond or two for each shard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FOOTER_LIMIT = 2**20
"""Bytes: a longer footer is refused."""
PLAIN = 0
NESTING = 12
"""Levels of structs and lists of the metadata; Parquet's own have 6."""
DEPTH = 100
"""Levels of the schema, which pyarrow does not exceed either."""
MAGIC = b"PAR1"
BITS = {4: 16, 5: 32, 6: 64}
"""Of a whole number, by its type in Thrift's compact protocol."""

Path = tuple[str, ...]
"""Names that lead to a column."""


@dataclass(kw_only=True)
class Declared:
    """What one top-level column declares, over all row groups."""

    entries: int = 0
    bytes: int = 0
    """In memory, at least."""
    plain: bool = True
    """Every value stands in the pages by itself: none is a reference to another, nor begins like it."""


@dataclass(frozen=True, kw_only=True)
class Footer:
    """What a file declares of the columns that are asked for."""

    rows: int
    leaves: list[Path]
    """All columns that hold values, in the order of each row group."""
    columns: dict[str, Declared]
    """By top-level name."""


def footer_facts(data: bytes, prefix: bytes) -> dict[str, str]:
    """Keys of the footer that begin so, and their values; `ValueError` if it is no Parquet file, or not UTF-8."""
    try:
        pairs = [(pair[1], pair.get(2, b"")) for pair in _footer(data).get(5, [])]
        return {k.decode(): v.decode() for k, v in pairs if k.startswith(prefix)}
    except (KeyError, TypeError, AttributeError) as e:
        raise _lacks(e) from e


def read_footer(data: bytes, widths: Mapping[str, int]) -> Footer:
    """What a file declares of some columns; `ValueError` if it is no Parquet file, or contradicts itself.

    Args:
        widths: bytes of a value in memory, by column; other columns are not looked into.
    """
    try:
        footer = _footer(data)
        leaves = _leaves(footer[2])
        columns = {path[0]: Declared() for path in leaves if path[0] in widths}
        held = 0
        for group in footer[4]:
            chunks = [chunk[3] for chunk in group[1]]
            # Who decodes goes by their places, whatever they call themselves.
            if [tuple(name.decode() for name in about[3]) for about in chunks] != leaves:
                raise ValueError("a row group whose columns are not those of the schema")
            for path, about in zip(leaves, chunks, strict=True):
                held += max(0, int(about[7]))
                if held > len(data):  # each would be walked through again
                    raise ValueError("columns that lie over each other")
                if (column := columns.get(path[0])) is not None:
                    _add(column, data, about, widths[path[0]])
        return Footer(rows=int(footer[3]), leaves=leaves, columns=columns)
    except (KeyError, IndexError, TypeError, AttributeError) as e:
        raise _lacks(e) from e


def _lacks(e: Exception) -> ValueError:
    return ValueError(f"a footer without what it must have ({e!r})")


def _footer(data: bytes) -> dict[int, Any]:
    """The footer's fields; `ValueError` if it is not Parquet's, or too long to be looked at."""
    length = int.from_bytes(data[-8:-4], "little")
    if len(data) < 12 or data[:4] != MAGIC or data[-4:] != MAGIC or length > len(data) - 12:
        raise ValueError("no Parquet footer")
    if length > FOOTER_LIMIT:
        raise ValueError(f"a footer of {length} bytes, more than {FOOTER_LIMIT}")
    end = len(data) - 8
    return _Compact(data, end - length, end).struct()


def _leaves(schema: list[dict[int, Any]]) -> list[Path]:
    """The columns of a schema, in which each node stands before those below it."""
    leaves: list[Path] = []
    above: list[tuple[Path, int]] = [((), int(schema[0].get(5, 0)))]  # and how many are to come
    size = 0
    for node in schema[1:]:
        while above and above[-1][1] == 0:
            above.pop()
        if not 0 < len(above) <= DEPTH:
            raise ValueError("a schema that is torn, or nested too deep")
        before, left = above.pop()
        above.append((before, left - 1))
        path, below = (*before, node[4].decode()), int(node.get(5, 0))
        size += sum(map(len, path))
        if size > FOOTER_LIMIT:  # a row group would have to spell them all
            raise ValueError("a schema of long names")
        if below == 0 and 1 in node:
            leaves.append(path)
        else:
            above.append((path, below))
    if any(left for _, left in above):
        raise ValueError("a schema that is torn")
    return leaves


def _add(column: Declared, data: bytes, about: dict[int, Any], width: int) -> None:
    """Count one column chunk."""
    entries, dictionary, size, plain = _pages(data, about)
    entries = max(entries, int(about[5]))
    column.entries += entries
    column.plain &= plain
    column.bytes += max(size, int(about[6]), entries * width, dictionary * width)


def _pages(data: bytes, about: dict[int, Any]) -> tuple[int, int, int, bool]:
    """What the page headers of one column chunk declare.

    Returns:
        Its values, those of its dictionary, bytes of both, and whether all values are coded as PLAIN.
    """
    begin, first = int(about[9]), int(about.get(11) or 0)
    if 0 < first < begin:
        begin = first
    elif begin < len(MAGIC) and about[5] == 0:
        return 0, 0, 0, True  # no page at all
    end = begin + int(about[7])
    if not 4 <= begin <= end <= len(data):
        raise ValueError("a column outside the file")
    entries = dictionary = size = 0
    plain = True
    while begin < end:
        reader = _Compact(data, begin, end)
        header = reader.struct()
        begin = reader.at + int(header[3])
        values = {kind: int(header[kind][1]) for kind in (5, 7, 8) if kind in header}
        if min(int(header[3]), int(header[2]), *values.values()) < 0 or begin > end:
            raise ValueError("a page outside its column")
        size += int(header[2])
        dictionary += values.pop(7, 0)
        entries += sum(values.values())
        plain &= all(header[f][e] == PLAIN for f, e in ((5, 2), (8, 4)) if f in header)
    return entries, dictionary, size, plain


class _Compact:
    """Thrift's compact protocol, as much of it as Parquet uses, between two places of some bytes."""

    def __init__(self, data: bytes, begin: int, end: int) -> None:
        self.data, self.at, self.end = data, begin, end

    def byte(self) -> int:
        at = self.at
        if at >= self.end:
            raise ValueError("metadata is torn")
        self.at = at + 1
        return self.data[at]

    def varint(self) -> int:
        value = self.byte()
        if value < 128:
            return value
        value &= 127
        for shift in range(7, 70, 7):
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
            # Elsewhere a number beyond wraps, onto one that is there.
            if field in found or not 0 < field < 2**15:
                raise ValueError(f"field {field} is there twice, or is none")
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
                n, half = self.integer(), 1 << BITS[kind] - 1
                if not -half <= n < half:  # elsewhere the rest is cut off
                    raise ValueError(f"a number of more than {BITS[kind]} bits")
                return n
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
