"""Container `parquet`, profile `open`: plain columns that any Parquet reader shows.

One Parquet row is one row of the store. The kept ids of a row's positions follow one another in one
list, and `kept` says how many belong to each position: a ragged kept set needs no padding, and a
one-level list decodes twice as fast as a list of lists.
"""

from __future__ import annotations

import io
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from softlabels.codecs import make_codec
from softlabels.errors import IntegrityError, TargetError
from softlabels.rows import Row
from softlabels.store.footer import declared_columns
from softlabels.store.manifest import Identity, Statistics
from softlabels.store.shard import Shard, check_row
from softlabels.targets import SoftTargets, gaps_from_logp

__all__ = ["decode_shard", "encode_shard", "log_odds_column", "read_statistics"]

STATISTICS_KEY = b"softlabels.statistics"
ZSTD_LEVEL = 3
DECODED_LIMIT = 2**30
"""Bytes of all columns: a shard that holds more is neither written nor read."""


def log_odds_column(temperature: float) -> str:
    """`log_odds_T2`, `log_odds_T0_5`: the shortest decimal, with `_` for the point."""
    text = repr(float(temperature)).removesuffix(".0")
    return "log_odds_T" + text.replace(".", "_")


def encode_shard(shard: Shard, identity: Identity, statistics: Statistics) -> bytes:
    """The bytes of a shard's file. Equal shards give equal bytes with one pyarrow version."""
    codec = make_codec(identity.encoding.values)
    rows, t = shard.rows, shard.targets
    offsets = shard.offsets
    kept = t.kept
    counts = kept.sum(axis=1).astype(np.int32)
    id_offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])[offsets]
    if id_offsets[-1] >= 2**31:
        raise TargetError(
            f"a shard of {id_offsets[-1]} kept ids is too large for one file (limit 2**31); lower --shard-rows"
        )
    logp = _stored_logp(t)
    columns: dict[str, pa.Array] = {
        "row": pa.array(np.arange(shard.start_row, shard.start_row + len(rows), dtype=np.int64)),
        "input_digest": pa.array([r.digest() for r in rows], pa.binary(16)),
        "input_ids": _lists([r.input_ids for r in rows], pa.int32()),
        "segment_lengths": _lists([r.segment_lengths for r in rows], pa.int32()),
        "documents": _lists([r.documents for r in rows], pa.int64()),
        "label_mask": _lists([r.label_mask for r in rows], pa.bool_()),
        "kept": _list_array(offsets, counts),
        "ids": _list_array(id_offsets, t.ids[kept].astype(np.int32)),
        "logp": _list_array(id_offsets, codec.encode(logp[kept])),
    }
    for i, temperature in enumerate(t.temperatures):
        columns[log_odds_column(temperature)] = _list_array(offsets, codec.encode(t.log_odds[:, i]))
    table = pa.table(columns)
    if table.nbytes > DECODED_LIMIT:
        raise TargetError(
            f"a shard of {len(rows)} rows takes {table.nbytes} bytes, more than the {DECODED_LIMIT} that a reader "
            "accepts; lower --shard-rows"
        )
    numeric = ["input_ids", "ids", "logp"]
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        use_dictionary=["segment_lengths.list.element", "kept.list.element"],
        column_encoding={f"{c}.list.element": "BYTE_STREAM_SPLIT" for c in numeric},
        write_page_checksum=True,
        write_page_index=True,
        store_schema=False,
    ) as writer:
        writer.write_table(table, row_group_size=len(rows))
        # Not as the schema's metadata: that is left out together with the Arrow schema.
        writer.add_key_value_metadata({STATISTICS_KEY: msgspec.json.encode(statistics)})
    return sink.getvalue()


def _stored_logp(t: SoftTargets) -> npt.NDArray[np.float32]:
    return t.log_probs(1.0 if 1.0 in t.temperatures else t.temperatures[0])


def _list_array(offsets: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def _lists(arrays: list[npt.NDArray[Any]], dtype: pa.DataType) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum([len(a) for a in arrays])])
    return pa.ListArray.from_arrays(
        pa.array(offsets.astype(np.int32)), pa.array(np.concatenate(arrays), dtype)
    )


def read_statistics(data: bytes, *, where: str) -> Statistics:
    """The statistics that a shard carries in its footer."""
    metadata = _open(data, where).metadata.metadata or {}
    try:
        return msgspec.json.decode(metadata.get(STATISTICS_KEY, b""), type=Statistics)
    except msgspec.DecodeError as e:
        raise IntegrityError(
            f"{where}: carries no statistics ({e}); not a shard of this format"
        ) from e


def _open(data: bytes, where: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as e:  # ValueError: a name that is not UTF-8
        raise IntegrityError(f"{where}: not a readable Parquet file ({e})") from e


def decode_shard(
    data: bytes,
    identity: Identity,
    *,
    start_row: int,
    where: str,
    rows: int | None = None,
    positions: int | None = None,
) -> Shard:
    """Decode a file's bytes, refusing whatever contradicts the identity or itself.

    Args:
        rows: how many the manifest or the plan says there are; None: not known.
        positions: the same of positions. With both a file that declares more is refused before it is decoded.

    Raises:
        IntegrityError: bad page checksum, missing column, lengths that do not add up, a row whose
            inputs are not those of its digest. Names `where` and the row.
        TargetError: an id out of range, NaN, an empty kept set that is not hard-label only.
    """
    grid = tuple(identity.targets.temperatures)
    names = ["row", "input_digest", "input_ids", "segment_lengths", "documents", "label_mask"]
    names += ["kept", "ids", "logp", *map(log_odds_column, grid)]
    _check_declared(data, names, identity, rows, positions, where)
    file = _open(data, where)
    for name in names:
        if (times := file.schema_arrow.names.count(name)) != 1:
            raise IntegrityError(f"{where}: has {times or 'no'} column {name!r}, expected one")
    codec = make_codec(identity.encoding.values)
    encoded = codec.encode(np.empty(0, np.float32)).dtype
    try:
        table = file.read(columns=names, use_threads=False).combine_chunks()
    except (pa.ArrowException, OSError) as e:
        raise IntegrityError(f"{where}: cannot be decoded, its bytes were altered ({e})") from e
    column = {n: _column(table, n, _DTYPES.get(n, encoded), where) for n in names[2:]}
    found = _rows(table, column, identity, start_row, where)

    counts, kept_of_row = column["kept"]
    row_of_ids = column["ids"][1]
    of_row = np.array([int(r.label_mask.sum()) for r in found], np.int64)
    n = int(of_row.sum())
    starts = np.concatenate([[0], np.cumsum(of_row)])
    for name in ("kept", *map(log_odds_column, grid)):
        wrong = np.flatnonzero(np.diff(column[name][1]) != of_row)
        if len(wrong):
            raise IntegrityError(
                f"{where}: row {start_row + wrong[0]} has {of_row[wrong[0]]} positions but "
                f"{np.diff(column[name][1])[wrong[0]]} entries of {name}"
            )
    assert len(kept_of_row) == len(found) + 1
    k = identity.targets.k
    if n and not 0 <= counts.min() <= counts.max() <= k:
        raise IntegrityError(
            f"{where}: a position keeps {counts.max()} ids, the manifest says at most {k}"
        )
    total = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    wrong = np.flatnonzero((total[starts] != row_of_ids) | (total[starts] != column["logp"][1]))
    if len(wrong):
        raise IntegrityError(
            f"{where}: row {start_row + max(int(wrong[0]) - 1, 0)} has ids, logp and kept of different lengths"
        )
    hard = counts == 0
    if hard.any() and identity.targets.positions is None:
        raise TargetError(
            f"{where}: position {int(hard.argmax())} has an empty kept set, but the manifest says that every position "
            "has a soft target (it names no `positions`); copy the store again from its source"
        )
    ids, logp = _rectangle(counts, column["ids"][0], codec.decode(column["logp"][0]))
    gaps = gaps_from_logp(logp)
    gaps[hard] = np.inf
    odds = [codec.decode(column[log_odds_column(t)][0]) for t in grid]
    targets = SoftTargets(
        ids=ids,
        gaps=gaps,
        log_odds=np.stack(odds, axis=1),
        temperatures=grid,
        vocab_size=identity.teacher.vocab_size,
        estimator=identity.targets.estimator,
    )
    targets.validate(where=where, unique=False)
    return Shard(start_row=start_row, rows=found, targets=targets)


def _check_declared(
    data: bytes,
    names: list[str],
    identity: Identity,
    rows: int | None,
    positions: int | None,
    where: str,
) -> None:
    """Refuse a file that declares more than it should hold, before it is decoded."""
    try:
        num_rows, columns = declared_columns(data)
    except ValueError as e:
        raise IntegrityError(f"{where}: not a readable Parquet file ({e})") from e
    if rows is not None and num_rows != rows:
        raise IntegrityError(
            f"{where}: holds {num_rows} rows, expected {rows}; copy it again from its source"
        )
    tokens = None if rows is None else rows * identity.corpus.seq_len
    most: dict[str, int | None] = dict.fromkeys(names, positions)
    most |= {"row": rows, "input_digest": rows, "input_ids": tokens, "label_mask": tokens}
    most |= {"segment_lengths": tokens, "documents": tokens}
    ids = None if positions is None else positions * identity.targets.k
    most |= {"ids": ids, "logp": ids}
    for name, limit in most.items():
        entries = columns[name].entries if name in columns else 0
        if limit is not None and entries > limit + num_rows:  # an empty list counts as one entry
            raise IntegrityError(
                f"{where}: column {name!r} declares {entries} entries, at most {limit} fit the manifest; not decoded. "
                "Copy it again from a source that you trust"
            )
    size = sum(columns[name].bytes for name in names if name in columns)
    if size > DECODED_LIMIT:
        raise IntegrityError(
            f"{where}: would decode to {size} bytes, more than the {DECODED_LIMIT} that a shard may hold; not decoded"
        )


_DTYPES: dict[str, np.dtype[Any]] = {
    "input_ids": np.dtype(np.int32),
    "segment_lengths": np.dtype(np.int32),
    "documents": np.dtype(np.int64),
    "label_mask": np.dtype(np.bool_),
    "kept": np.dtype(np.int32),
    "ids": np.dtype(np.int32),
}


def _column(
    table: pa.Table, name: str, dtype: np.dtype[Any], where: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Values and offsets `[R + 1]` of a list column, without copying what need not be."""
    chunk = table.column(name).combine_chunks()
    chunk = chunk.chunk(0) if isinstance(chunk, pa.ChunkedArray) else chunk
    if not pa.types.is_list(chunk.type) or chunk.null_count or chunk.values.null_count:
        raise IntegrityError(
            f"{where}: column {name!r} is {chunk.type} or holds nulls; expected full lists"
        )
    offsets = chunk.offsets.to_numpy().astype(np.int64)
    values = chunk.values[offsets[0] : offsets[-1]].to_numpy(zero_copy_only=False)
    if values.dtype != dtype:
        raise IntegrityError(f"{where}: column {name!r} holds {values.dtype}, expected {dtype}")
    return values, offsets - offsets[0]


def _rows(
    table: pa.Table,
    column: dict[str, tuple[npt.NDArray[Any], npt.NDArray[np.int64]]],
    identity: Identity,
    start_row: int,
    where: str,
) -> list[Row]:
    numbers = table.column("row").to_numpy()
    expected = np.arange(start_row, start_row + len(numbers))
    if not np.array_equal(numbers, expected):
        raise IntegrityError(
            f"{where}: its rows are not {start_row} to {start_row + len(numbers) - 1}"
        )
    digests = table.column("input_digest").to_pylist()
    parts = {}
    for name in ("input_ids", "segment_lengths", "documents", "label_mask"):
        values, offsets = column[name]
        parts[name] = np.split(values, offsets[1:-1])
    ids, _ = column["input_ids"]
    if len(ids) and (ids.min() < 0 or ids.max() >= identity.teacher.vocab_size):
        raise IntegrityError(f"{where}: an input id outside 0..{identity.teacher.vocab_size - 1}")
    rows = []
    for r, digest in enumerate(digests):
        row = Row(**{name: values[r] for name, values in parts.items()})
        check_row(row, where=f"{where}: row {start_row + r}")
        if row.digest() != digest:
            raise IntegrityError(
                f"{where}: row {start_row + r} does not hold the inputs that its digest names"
            )
        rows.append(row)
    return rows


def _rectangle(
    counts: npt.NDArray[np.int32], ids: npt.NDArray[np.int32], logp: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Ragged to `[N, K]`; short rows repeat their first id, marked not kept."""
    n = len(counts)
    k = int(counts.max(initial=0))
    if n == 0 or int(counts.min()) == k:
        return ids.reshape(n, k), logp.reshape(n, k)
    kept = np.arange(k) < counts[:, None]
    wide_ids = np.zeros((n, k), np.int32)
    wide_ids[kept] = ids
    wide_ids = np.where(kept, wide_ids, wide_ids[:, :1])
    wide_logp = np.full((n, k), -np.inf, np.float32)
    wide_logp[kept] = logp
    return wide_ids, wide_logp
