"""A page: records of consecutive shards as one Parquet file, which any Parquet reader shows as a table.

Every value stands in the file by itself (encoding PLAIN), so what a page decodes to is bounded by what its headers
declare, which is looked at before anything is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from softlabels.core.records import LARGEST
from softlabels.core.rows import Int64
from softlabels.errors import FormatError, IntegrityError
from softlabels.format.footer import Declared

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["text", "digest", "count", "count?"]
"""A string, a sha256 (32 bytes), an integer of 0 to 2^53, or such an integer or nothing."""
Layout = Mapping[str, Kind]

DECODED_LIMIT = 2**26
"""Bytes of a page in memory."""


def _types() -> dict[Kind, pa.DataType]:
    import pyarrow as pa

    counts = pa.int64()
    return {"text": pa.string(), "digest": pa.binary(32), "count": counts, "count?": counts}


def write_page(rows: Sequence[Mapping[str, Any]], layout: Layout) -> bytes:
    """One Parquet row for each record; digests are hexadecimal in `rows` and raw in the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = _types()
    fields = [pa.field(n, types[k], nullable=k == "count?") for n, k in layout.items()]
    columns = [
        pa.array(
            [bytes.fromhex(r[name]) if kind == "digest" else r[name] for r in rows], types[kind]
        )
        for name, kind in layout.items()
    ]
    sink = io.BytesIO()
    pq.write_table(
        pa.table(columns, schema=pa.schema(fields)),
        sink,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
        store_schema=False,
    )
    return sink.getvalue()


def read_page(data: bytes, layout: Layout, *, shards: int, where: str) -> pa.Table:
    """Decode a page; columns that the layout does not know are left alone.

    Raises:
        IntegrityError: not Parquet, a bad checksum, not so many shards, or a column that is missing or of another type.
        FormatError: a column with nulls, or coded otherwise than PLAIN.
    """
    from softlabels.format.parquet_file import open_columns

    types = _types()
    found = open_columns(data, {n: types[kind] for n, kind in layout.items()}, where=where)
    if found.rows != shards:
        raise IntegrityError(
            f"{where}: holds {found.rows} shards, the record says {shards}; copy it again from its source"
        )
    _check_declared(found.declared, shards, where)
    table = found.read()
    for name, kind in layout.items():
        if table.column(name).null_count and kind != "count?":
            raise FormatError(f"{where}: column {name!r} holds nulls, expected none")
    for name, kind in layout.items():
        if kind in ("count", "count?"):
            counts_of(table, name, where=where)
    return table


def _check_declared(declared: Mapping[str, Declared], shards: int, where: str) -> None:
    if (size := sum(c.bytes for c in declared.values())) > DECODED_LIMIT:
        raise IntegrityError(
            f"{where}: would decode to {size} bytes, a page has at most {DECODED_LIMIT}; not decoded"
        )
    for name, column in declared.items():
        if not column.plain or column.entries != shards:
            raise FormatError(
                f"{where}: column {name!r} is not {shards} values in the encoding PLAIN, so a few bytes may stand for "
                "gigabytes; not decoded"
            )


def counts_of(table: pa.Table, name: str, *, where: str) -> Int64:
    """A column of counts, 0 where there is nothing; `FormatError` if one is out of range."""
    values = table.column(name).fill_null(0).to_numpy()
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) <= LARGEST:
        raise FormatError(
            f"{where}: column {name!r} holds numbers outside 0..{LARGEST}; copy it again from its source"
        )
    return np.asarray(values, np.int64)


def row_of(table: pa.Table, layout: Layout, index: int) -> dict[str, Any]:
    """One record, as plain values without what is not there; digests are hexadecimal."""
    return next(iter(rows_of(table.slice(index, 1), layout)))


def rows_of(table: pa.Table, layout: Layout) -> list[dict[str, Any]]:
    """All records, as `row_of`.

    Raises:
        UnicodeDecodeError: a string is not UTF-8.
    """
    columns = []
    for name, kind in layout.items():
        values = table.column(name).to_pylist()
        columns.append([v.hex() for v in values] if kind == "digest" else values)
    names = list(layout)
    return [
        {n: v for n, v in zip(names, row, strict=True) if v is not None}
        for row in zip(*columns, strict=True)
    ]
