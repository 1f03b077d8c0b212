"""Profile `packed`: the rows of a shard as streams.

A causal LM's tokens share their codes with the kept ids (see `packed.py`). Of any other domain each column of its
module is a stream: `NAME` holds the numbers, `NAME.lengths` how many each row has, if they are lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from softlabels.codecs.codebook import Codebook, read_numbers
from softlabels.codecs.streams import (
    Stream,
    exactly,
    pack,
    pack_series,
    plain,
    plain_numbers,
    stream_of,
    unpack,
)
from softlabels.core.rows import InputRow, Row
from softlabels.domains import DOMAINS
from softlabels.errors import IntegrityError, TargetError
from softlabels.format.columns import DECODED_LIMIT, Column, Expected, cut, offsets_of
from softlabels.format.identity import Identity
from softlabels.format.plain import check_inputs
from softlabels.format.shard import Reading

UInt32 = npt.NDArray[np.uint32]
NONE = np.zeros(0, np.int32)


def coded_tokens(rows: Sequence[InputRow], identity: Identity) -> npt.NDArray[np.int32]:
    """Input tokens that are coded like kept ids."""
    if not DOMAINS.load(identity.domain).chained:
        return NONE
    return np.concatenate([r.input_ids for r in cast(Sequence[Row], rows)])


def contexts(rows: Sequence[InputRow]) -> npt.NDArray[np.int32]:
    """`[N] int32`: what the kept ids of each position are coded by."""
    return np.concatenate([r.context for r in rows])


def labels_of(rows: Sequence[InputRow]) -> npt.NDArray[np.int32]:
    """`[N] int32`: what is true at each position; `UNLABELLED` where that is not known."""
    return np.concatenate([r.labels for r in rows])


# -- writing --------------------------------------------------------------------------------------


def row_streams(rows: Sequence[InputRow], identity: Identity, book: Codebook) -> dict[str, Stream]:
    """The streams of some rows."""
    domain = DOMAINS.load(identity.domain)
    width = domain.packed_digest_bytes
    digests = np.frombuffer(b"".join(r.digest()[:width] for r in rows), np.uint8)
    streams = {"input_digest": plain(digests.reshape(len(rows), width))}
    if domain.chained:
        return streams | _causal_streams(cast(Sequence[Row], rows), book)
    for name, column in domain.columns(rows).items():
        if column.offsets is not None:
            streams[f"{name}.lengths"] = pack(np.diff(column.offsets).astype(np.uint32))
        streams[name] = pack_series(column.values.astype(np.int64))
    return streams


def _causal_streams(rows: Sequence[Row], book: Codebook) -> dict[str, Stream]:
    tokens = np.concatenate([r.input_ids for r in rows])
    segments = np.concatenate([r.segment_lengths for r in rows]).astype(np.uint32)
    mask = np.concatenate([r.label_mask for r in rows])
    odd = mask != _usual_mask(segments)
    turns = np.flatnonzero(np.diff(odd, prepend=False))
    plain = replace(book, tokens=NONE, sizes=NONE, entries=NONE)
    codes = plain.encode(np.zeros(len(tokens), np.int32), tokens[:, None])[:, 0]
    return {
        "tokens": pack(np.array([len(r.input_ids) for r in rows], np.uint32)),
        "input_ids": pack(codes),
        "segments": pack(np.array([len(r.segment_lengths) for r in rows], np.uint32)),
        "segment_lengths": pack(segments),
        "documents": pack_series(np.concatenate([r.documents for r in rows])),
        "mask_turns": pack(np.diff(turns, prepend=0).astype(np.uint32)),
    }


def _usual_mask(segments: UInt32) -> npt.NDArray[np.bool_]:
    """Every token but the last of each segment has a target."""
    mask = np.ones(int(segments.sum(dtype=np.int64)), bool)
    mask[np.cumsum(segments, dtype=np.int64) - 1] = False
    return mask


# -- reading --------------------------------------------------------------------------------------


def rows_of_streams(
    streams: Mapping[str, Stream], book: Codebook, reading: Reading
) -> Sequence[InputRow]:
    """The rows of some streams, which may hold anything; raises as `decode_shard`."""
    identity, where, rows = reading.identity, reading.where, reading.rows
    domain = DOMAINS.load(identity.domain)
    digests, width = stream_of(streams, "input_digest", where), domain.packed_digest_bytes
    r = digests.entries
    held = plain_numbers(
        digests, np.dtype(np.uint8), r, width, where=f"{where}: stream 'input_digest'"
    )
    if r == 0:
        raise IntegrityError(f"{where}: holds no rows")
    if rows is not None and r != rows:
        raise IntegrityError(
            f"{where}: holds {r} rows, expected {rows}; copy it again from its source"
        )
    found: Sequence[InputRow]
    if domain.chained:
        found = _causal_rows(streams, identity, book, r, where)
    else:
        columns = {
            name: _column(streams, name, e, r, where)
            for name, e in domain.expected(identity, r).items()
        }
        found = domain.rows_of(columns, identity, where=where)
    check_inputs(found, held.reshape(r, width), reading)
    return found


def _column(
    streams: Mapping[str, Stream], name: str, expected: Expected, rows: int, where: str
) -> Column:
    entries, offsets = rows, None
    if expected.listed:
        lengths = exactly(streams, f"{name}.lengths", rows, where)
        offsets = offsets_of(lengths)
        entries = int(offsets[-1])
        if expected.most is not None and entries > expected.most:
            raise IntegrityError(
                f"{where}: stream {name!r} has {entries} numbers, expected at most {expected.most}"
            )
    check_size(0, 0, entries, f"{where}: ")
    wide = np.empty(entries, np.int64)
    unpack(stream_of(streams, name, where), wide, where=f"{where}: stream {name!r}")
    values: npt.NDArray[Any] = wide.astype(expected.dtype)
    if not np.array_equal(values, wide):
        raise IntegrityError(
            f"{where}: stream {name!r} holds a number that is not {expected.dtype}"
        )
    return Column(values=values, offsets=offsets)


def _causal_rows(
    streams: Mapping[str, Stream], identity: Identity, book: Codebook, r: int, where: str
) -> list[Row]:
    lengths = exactly(streams, "tokens", r, where).astype(np.int64)
    total = int(lengths.sum())
    check_size(0, 0, total, f"{where}: ")
    if lengths.max() > identity.corpus.seq_len or lengths.min() < 1:
        raise IntegrityError(
            f"{where}: rows of {lengths} tokens, expected 1..{identity.corpus.seq_len}"
        )
    plain = replace(book, tokens=NONE, sizes=NONE, entries=NONE)
    codes = exactly(streams, "input_ids", total, where)
    tokens = plain.decode(codes, *plain.offsets(np.zeros(total, np.int32)))
    of_row = exactly(streams, "segments", r, where).astype(np.int64)
    if int(of_row.sum()) > total:
        raise IntegrityError(f"{where}: {of_row.sum()} segments of {total} tokens")
    segments = exactly(streams, "segment_lengths", int(of_row.sum()), where)
    if int(segments.sum(dtype=np.int64)) != total or (len(segments) and segments.min() == 0):
        raise IntegrityError(f"{where}: segment_lengths do not sum to the {total} tokens")
    documents = np.empty(len(segments), np.int64)
    found = stream_of(streams, "documents", where)
    unpack(found, documents, where=f"{where}: stream 'documents'")
    turns = np.cumsum(read_numbers(streams, "mask_turns", total, where), dtype=np.int64)
    if len(turns) and turns[-1] >= total:
        raise IntegrityError(f"{where}: mask_turns lead beyond the {total} tokens")
    odd = np.zeros(total + 1, np.int8)
    odd[turns] = 1
    mask = _usual_mask(segments) ^ (np.cumsum(odd[:-1], dtype=np.int64) % 2 == 1)
    by_token, by_segment = offsets_of(lengths), offsets_of(of_row)
    parts = zip(
        cut(tokens, by_token),
        cut(segments.astype(np.int32), by_segment),
        cut(documents, by_segment),
        cut(mask, by_token),
        strict=True,
    )
    return [Row(input_ids=i, segment_lengths=s, documents=d, label_mask=m) for i, s, d, m in parts]


def check_size(n: int, k: int, tokens: int, where: str = "", *, grid: int = 0) -> None:
    """Refuse (`TargetError`) what a reader would.

    8 bytes for each id of the rectangle and 4 for each token are bounded, and likewise 4 for each log-odds of a grid of
    so many temperatures.
    """
    if (size := 8 * n * k + 4 * tokens) > DECODED_LIMIT:
        raise TargetError(
            f"{where}a shard of {n} positions with up to {k} ids takes {size} bytes, more than the {DECODED_LIMIT} "
            "that a reader accepts; lower --shard-rows"
        )
    if (size := 4 * n * grid) > DECODED_LIMIT:
        raise TargetError(
            f"{where}the log-odds of {n} positions at {grid} temperatures take {size} bytes, more than the "
            f"{DECODED_LIMIT} that a reader accepts; lower --shard-rows"
        )
