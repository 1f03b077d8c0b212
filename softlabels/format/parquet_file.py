"""A Parquet file that may be anybody's: what it declares is looked at before anything is decoded.

1. Its footer and the headers of the pages are read (`footer.py`): how many values each column has, in how many bytes.
2. pyarrow opens it. By pyarrow's own schema, each column must be there once, and of exactly the type that is asked
for: so a value is as wide as that type. Bytes of any length have no width: a dictionary of one value of megabytes
would stand for terabytes in a few KB, so they must be PLAIN, which is to stand in the pages by themselves.
3. The caller compares what is declared with what it knows, and reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from softlabels.errors import IntegrityError
from softlabels.format.footer import Declared, read_footer

OFFSET = 4
"""Bytes of memory that a value of any length takes besides its own."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A file whose columns are of the types that were asked for, and were not decoded yet."""

    rows: int
    declared: Mapping[str, Declared]
    """What it declares of each column."""
    where: str
    _file: pq.ParquetFile

    def read(self) -> pa.Table:
        """Decode the columns; `IntegrityError` for a bad page checksum, or what cannot be decoded."""
        try:
            table = self._file.read(columns=list(self.declared), use_threads=False)
            return table.combine_chunks()
        except (pa.ArrowException, OSError) as e:
            raise IntegrityError(
                f"{self.where}: cannot be decoded, its bytes were altered ({e}); copy it again from its source"
            ) from e


def open_columns(data: bytes, types: Mapping[str, pa.DataType], *, where: str) -> Opened:
    """Open a file for some columns; others are left alone.

    Raises:
        IntegrityError: not Parquet, a column missing, there twice or of another type, bytes that are not PLAIN.
    """
    with refusing(where):
        footer = read_footer(data, {name: _width(kind) for name, kind in types.items()})
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        schema = file.schema_arrow
        paths = [file.schema.column(i).path for i in range(len(file.schema))]
        if paths != [".".join(path) for path in footer.leaves]:
            raise ValueError("a schema that is read in two ways")
    held = Counter(schema.names)
    for name, kind in types.items():
        if (times := held[name]) != 1:
            raise IntegrityError(
                f"{where}: has {times or 'no'} column {name!r}, expected one; copy it again from its source"
            )
        if not _is(found := schema.field(name).type, kind):
            lists = pa.types.is_list(kind)
            raise IntegrityError(
                f"{where}: column {name!r} is {found}, expected "
                f"{f'lists of {kind.value_type}' if lists else kind}; not decoded"
            )
        if not (footer.columns[name].plain or _has_width(kind)):
            raise IntegrityError(
                f"{where}: column {name!r} is coded once more, with a dictionary or as differences, so a few bytes may "
                "stand for gigabytes; not decoded. Write it with the encoding PLAIN"
            )
    return Opened(rows=footer.rows, declared=footer.columns, where=where, _file=file)


@contextmanager
def refusing(where: str) -> Iterator[None]:
    """Turn what a file that is none makes of its reading into `IntegrityError` with the place."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as e:  # ValueError: a name that is not UTF-8
        raise IntegrityError(
            f"{where}: not a readable Parquet file ({e}); copy it again from its source"
        ) from e


def _is(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether they are one type, whatever a list calls its elements."""
    if pa.types.is_list(found) and pa.types.is_list(wanted):
        return bool(found.value_type == wanted.value_type)
    return bool(found == wanted)


def _has_width(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_list(kind) else kind
    return not (pa.types.is_string(kind) or pa.types.is_binary(kind))


def _width(kind: pa.DataType) -> int:
    """Bytes of a value in memory."""
    kind = kind.value_type if pa.types.is_list(kind) else kind
    return max(1, kind.bit_width // 8) if _has_width(kind) else OFFSET
