"""Container `parquet`: one file, every page with its checksum.

Columns become Parquet columns, one-level lists among them. Streams become a table of `stream`, `entries`
and `data`, a record for each: they are coded already, and any Parquet reader still lists them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from softlabels.codecs.streams import Stream
from softlabels.errors import IntegrityError, TargetError
from softlabels.format.columns import (
    DECODED_LIMIT,
    Column,
    Expected,
    Facts,
    check_declared,
)
from softlabels.format.footer import footer_facts
from softlabels.format.parquet_file import open_columns, refusing

suffix = "parquet"
ZSTD_LEVEL = 3
DICTIONARY = {"segment_lengths", "kept", "entropy", "top"}
SPLIT = {"input_ids", "ids", "logp"}
"""Columns that are smallest with a dictionary, and with BYTE_STREAM_SPLIT."""
SLACK = 2**16
"""Bytes by which the streams of a file may exceed its size: names, and counts."""
STREAM_TYPES = {"stream": pa.string(), "entries": pa.int64(), "data": pa.binary()}


def _write(table: pa.Table, facts: Facts, **how: Any) -> bytes:
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink, table.schema, write_page_checksum=True, store_schema=False, **how
    ) as writer:
        writer.write_table(table, row_group_size=max(len(table), 1))
        # Not as the schema's metadata: that is left out together with the Arrow schema.
        writer.add_key_value_metadata(dict(facts))
    return sink.getvalue()


def column_bytes(file: Path | bytes) -> dict[str, int]:
    """Compressed bytes of each column of one file, from its footer alone; `IntegrityError` if it has none."""
    try:
        footer = pq.read_metadata(io.BytesIO(file) if isinstance(file, bytes) else file)
    except (pa.ArrowInvalid, OSError) as e:
        where = "a shard" if isinstance(file, bytes) else file
        raise IntegrityError(f"{where}: its footer cannot be read ({e}); copy it again") from e
    total: dict[str, int] = {}
    for g in range(footer.num_row_groups):
        group = footer.row_group(g)
        for c in range(group.num_columns):
            column = group.column(c)
            name = column.path_in_schema.partition(".")[0]
            total[name] = total.get(name, 0) + column.total_compressed_size
    return total


# -- columns --------------------------------------------------------------------------------------


def write_columns(columns: Mapping[str, Column], facts: Facts) -> bytes:
    """One Parquet row for each record, in one row group."""

    def _split(name: str) -> bool:
        """Not of FLOAT16, where it saves 0.2 % (`sampled`) to 5 % (`topk`), and DuckDB does not read it."""
        return name in SPLIT and columns[name].values.dtype != np.float16

    arrays = {name: _array(column) for name, column in columns.items()}
    # Fields that cannot be null need no levels to say that none is, and decode a fifth faster.
    schema = pa.schema(
        [pa.field(name, array.type, nullable=False) for name, array in arrays.items()]
    )
    table = pa.table(list(arrays.values()), schema=schema)
    if table.nbytes > DECODED_LIMIT:
        raise TargetError(
            f"a shard of {len(table)} rows takes {table.nbytes} bytes, more than the {DECODED_LIMIT} that a reader "
            "accepts; lower --shard-rows"
        )
    return _write(
        table,
        facts,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        use_dictionary=[f"{c}.list.element" for c in columns if c in DICTIONARY],
        column_encoding={f"{c}.list.element": "BYTE_STREAM_SPLIT" for c in columns if _split(c)},
        write_page_index=True,
    )


def _array(column: Column) -> pa.Array:
    values = column.values
    if values.ndim == 2:
        width = values.shape[1]
        data = pa.py_buffer(np.ascontiguousarray(values))
        return pa.Array.from_buffers(pa.binary(width), len(values), [None, data])
    if column.offsets is None:
        return pa.array(values)
    array = pa.array(values)
    kind = pa.list_(pa.field("element", array.type, nullable=False))
    return pa.ListArray.from_arrays(pa.array(column.offsets.astype(np.int32)), array, type=kind)


def read_columns(
    data: bytes, expected: Mapping[str, Expected], *, records: int | None, where: str
) -> dict[str, Column]:
    """Decode the expected columns; others are left alone.

    Raises:
        IntegrityError: not Parquet, a bad page checksum, a column missing or of another type, or one
            that declares more than it should hold.
    """
    found = open_columns(data, {n: _type(e) for n, e in expected.items()}, where=where)
    if records is not None and found.rows != records:
        raise IntegrityError(
            f"{where}: holds {found.rows} rows, expected {records}; copy it again from its source"
        )
    entries = {name: (found.declared[name].entries, about.most) for name, about in expected.items()}
    size = sum(column.bytes for column in found.declared.values())
    check_declared(entries, size, where, spare=found.rows)  # an empty list counts as one
    table = found.read()
    return {name: _column(table, name, about, where) for name, about in expected.items()}


def _column(table: pa.Table, name: str, expected: Expected, where: str) -> Column:
    """Values and offsets of a column, without copying what need not be."""
    chunk = _whole(table.column(name))
    if chunk.null_count or (expected.listed and chunk.values.null_count):
        raise IntegrityError(f"{where}: column {name!r} holds nulls, expected none")
    if expected.width is not None:
        size = len(chunk) * expected.width
        raw = np.frombuffer(chunk.buffers()[1], np.uint8, size, chunk.offset * expected.width)
        return Column(values=raw.reshape(len(chunk), expected.width))
    offsets = None
    if expected.listed:
        ends = chunk.offsets.to_numpy().astype(np.int64)
        chunk, offsets = chunk.values[ends[0] : ends[-1]], ends - ends[0]
    return Column(values=chunk.to_numpy(zero_copy_only=False), offsets=offsets)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array; `combine_chunks` alone would copy it."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _type(expected: Expected) -> pa.DataType:
    if expected.width is not None:
        return pa.binary(expected.width)
    kind = pa.from_numpy_dtype(expected.dtype)
    return pa.list_(kind) if expected.listed else kind


# -- streams --------------------------------------------------------------------------------------


def write_streams(streams: Mapping[str, Stream], facts: Facts) -> bytes:
    """One Parquet row for each stream; nothing is compressed again."""
    table = pa.table(
        {
            "stream": pa.array(list(streams), pa.string()),
            "entries": pa.array([s.entries for s in streams.values()], pa.int64()),
            "data": pa.array([s.data for s in streams.values()], pa.binary()),
        }
    )
    return _write(table, facts, compression="none", use_dictionary=False, write_statistics=False)


def read_streams(data: bytes, *, where: str) -> dict[str, Stream]:
    """The streams, by name; `IntegrityError` for a bad page checksum, or what is no such table."""
    found = open_columns(data, STREAM_TYPES, where=where)
    if (size := sum(column.bytes for column in found.declared.values())) > len(data) + SLACK:
        raise IntegrityError(
            f"{where}: would decode to {size} bytes, more than its own {len(data)}: streams are not compressed; not "
            "decoded"
        )
    table = found.read()
    columns = [table.column(name) for name in STREAM_TYPES]
    if any(column.null_count for column in columns):
        raise IntegrityError(f"{where}: its streams hold nulls, expected none")
    if len(table) == 0:
        return {}
    try:
        names, entries = columns[0].to_pylist(), columns[1].to_pylist()
    except UnicodeDecodeError as e:
        raise IntegrityError(f"{where}: the name of a stream is not UTF-8") from e
    if len(set(names)) != len(names) or min(entries) < 0:
        raise IntegrityError(f"{where}: a stream is there twice, or has less than no entries")
    coded = _bytes_of(_whole(columns[2]))
    return {
        name: Stream(entries=n, data=data)
        for name, n, data in zip(names, entries, coded, strict=True)
    }


def _bytes_of(values: pa.Array) -> list[bytes]:
    """As `to_pylist`, in a fifth of its time."""
    _, ends, data = values.buffers()
    if data is None:  # all are empty
        return [b""] * len(values)
    at = np.frombuffer(ends, np.int32, len(values) + 1, 4 * values.offset).tolist()
    held = memoryview(data)
    return [bytes(held[begin:end]) for begin, end in pairwise(at)]


def read_facts(data: bytes, *, where: str) -> dict[str, str]:
    """The footer's keys that begin with `softlabels.`."""
    with refusing(where):
        return footer_facts(data, b"softlabels.")
