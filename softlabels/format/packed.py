"""Profile `packed`: a shard as streams of small numbers, each as short as its entropy.

Of each position the kept ids are put in one order: the likeliest first, of equally likely ones (their
values are rounded) the smaller code first. Then there are two streams for each place in that order:
 - `values.j`: by how much the value at place j exceeds the one before it (see `codecs`);
 - `ids.j`: the code of the id at place j (see `codebook`); if its value equals the one before, by how
   much the code exceeds that before it, less one. Equal values thus pay for a set of ids, not for a list.
With a codec that says so (`label_first`), code 0 is the label, which the reader knows and most positions keep, and
other codes are one more.
A position that keeps fewer ids has no entry in the later streams. In a stream positions come in order of
their input tokens, so that one token's table is read at a time. From place 64 on, places share streams:
64 to 127, 128 to 255, and so on, one place after the other. With a codec that says so (`by_id`), ids are in order of
their codes instead (`by_id.py`).

In the profile `packed-arrays` places do not have streams of their own: `values` and `ids` hold all of them, one place
after the other, still coded band by band.

Everything is decoded place by place for all positions at once: additions and one gather.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.codecs import ValueCodec, make_codec
from softlabels.codecs.codebook import ENTRY_LIMIT, Codebook
from softlabels.codecs.streams import Stream, exactly, fill, pack
from softlabels.codecs.training import count, order_of
from softlabels.core.targets import SoftTargets
from softlabels.errors import IntegrityError
from softlabels.format.by_id import read_by_id, streams_by_id
from softlabels.format.hidden import hidden_of_streams, hidden_streams
from softlabels.format.identity import PACKED_ARRAYS, Identity
from softlabels.format.packed_rows import (
    check_size,
    coded_tokens,
    contexts,
    labels_of,
    row_streams,
    rows_of_streams,
)
from softlabels.format.plain import check_hard, log_odds_column
from softlabels.format.shard import Reading, Shard, rows_alone
from softlabels.format.summaries import summary_of_streams, summary_streams

UInt32 = npt.NDArray[np.uint32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

CODEC, NUMBERS = "softlabels.codec", "softlabels.numbers"
"""The attribute of an array that names its codec, and the codec (`codecs/numbers.py`)."""
OWN_STREAM = 64
"""Places that have streams of their own."""


def _bands(k: int) -> Iterator[tuple[int, int]]:
    """First and last-but-one place of each pair of streams, for kept sets of up to k ids."""
    for j in range(min(k, OWN_STREAM)):
        yield j, j + 1
    begin = OWN_STREAM
    while begin < k:
        yield begin, min(2 * begin, k)
        begin *= 2


# -- writing --------------------------------------------------------------------------------------


def streams_of(shard: Shard, identity: Identity, dictionary: Codebook | None) -> dict[str, Stream]:
    """The streams of a shard.

    Args:
        dictionary: what ids are coded with; None: an order of the shard's own, which becomes part of it.

    Raises:
        TargetError: a value that the codec cannot hold, or too many ids for a reader.
    """
    rows, t = shard.rows, shard.targets
    drawn = identity.targets.k if t.keeps.sample else 0  # numbers that `_uniforms` draws
    held = max(t.k, drawn) + other_ids(identity)
    check_size(t.n, held, sum(r.size for r in rows), grid=len(t.temperatures))
    codec = make_codec(identity.encoding.values)
    kept = t.kept
    streams: dict[str, Stream] = {}
    if dictionary is None:
        seen = np.concatenate([t.ids[kept], coded_tokens(rows, identity)])
        book = order_of(*count(seen), most=ENTRY_LIMIT)
        streams |= book.order_streams()
    else:
        book = dictionary
    streams |= row_streams(rows, identity, book)

    counts = kept.sum(axis=1)
    streams["kept"] = pack(counts.astype(np.uint32))
    uniforms = _uniforms(shard, identity)[:, : t.k] if t.keeps.sample else None
    numbers = codec.to_numbers(t, uniforms)
    for i, temperature in enumerate(t.temperatures):
        streams[log_odds_column(temperature)] = pack(numbers.odds[:, i])

    # Positions in order of what they are coded by (of a causal LM their input tokens). One sort does the rest: by
    # value, then by code; what is not kept comes last.
    tokens = contexts(rows)
    by_token = np.argsort(tokens, kind="stable")
    kept, counts = kept[by_token], counts[by_token]
    key = numbers.values[by_token].astype(np.uint64)
    key <<= np.uint64(32)
    labels = labels_of(rows)[by_token] if codec.label_first else None
    key |= _label_first(book.encode(tokens[by_token], t.ids[by_token]), t.ids[by_token], labels)
    ragged = len(counts) > 0 and int(counts.min()) < t.k
    if ragged:
        key[~kept] = np.iinfo(np.uint64).max
    key.sort(axis=1)
    k = int(counts.max(initial=0))  # t.k may be larger: then nobody keeps so many
    places = np.ascontiguousarray(key[:, :k].T)  # [K, N]
    values = (places >> np.uint64(32)).astype(np.uint32)
    codes = places.astype(np.uint32)
    summary = summary_streams(t, identity, book, codes, by_token, tokens[by_token], labels)
    sets = (
        streams_by_id(values, codes, counts)
        if codec.by_id
        else _by_value(values, codes, counts, ragged, identity)
    )
    return streams | sets | hidden_streams(t, identity) | summary


def _by_value(
    values: UInt32, codes: UInt32, counts: Int64, ragged: bool, identity: Identity
) -> dict[str, Stream]:
    """The streams of numbers and codes `[K, N]`, by value."""
    k = len(values)
    streams: dict[str, Stream] = {}
    value_steps, code_steps = np.empty_like(values), np.empty_like(codes)
    value_steps[:1], code_steps[:1] = values[:1], codes[:1]
    for j in range(1, k):
        np.subtract(values[j], values[j - 1], out=value_steps[j])
        before = (codes[j - 1] + np.uint32(1)) * (value_steps[j] == 0)
        np.subtract(codes[j], before, out=code_steps[j])

    def cut(steps: UInt32, begin: int, end: int) -> UInt32:
        part = steps[begin:end]
        return part[np.arange(begin, end)[:, None] < counts] if ragged else part.ravel()

    if identity.encoding.profile == PACKED_ARRAYS:
        sizes = [int(np.clip(counts - begin, 0, end - begin).sum()) for begin, end in _bands(k)]
        streams["values"] = pack(cut(value_steps, 0, k), sizes)
        streams["ids"] = pack(cut(code_steps, 0, k), sizes)
    else:
        for begin, end in _bands(k):
            streams[f"values.{begin}"] = pack(cut(value_steps, begin, end))
            streams[f"ids.{begin}"] = pack(cut(code_steps, begin, end))
    return streams


def _label_first(codes: UInt32, ids: Int32, labels: Int32 | None) -> UInt32:
    """Codes `[N, K]` with 0 for the id that is the position's label, others one more; as they are without labels."""
    return codes if labels is None else (codes + np.uint32(1)) * (ids != labels[:, None])


def attributes_of(identity: Identity) -> dict[str, dict[str, Any]]:
    """Of arrays by name what their numbers stand for: under `CODEC` the configuration of a codec of numcodecs."""
    values = identity.encoding.values
    by_value = {} if make_codec(values).by_id else {"values": ("values", values)}
    kinds = by_value | {
        log_odds_column(t): ("log_odds", values) for t in identity.targets.temperatures
    }
    if (record := identity.summary) is not None:
        kinds |= {"label_logp": ("label_logp", record.label_logp)}
        kinds |= {"entropy": ("entropy", record.entropy)}
    return {
        name: {CODEC: {"id": NUMBERS, "kind": kind, "held": held}}
        for name, (kind, held) in kinds.items()
    }


def other_ids(identity: Identity) -> int:
    """Ids that would take the memory of a position's hidden state and summary."""
    hidden = 0 if identity.hidden is None else -(-identity.hidden.width // 2)
    return hidden + (0 if identity.summary is None else 2)


def _uniforms(shard: Shard, identity: Identity) -> npt.NDArray[np.float64]:
    """`[N, K]`: a function of seed and row number alone, and independent of the estimator's draws."""
    k, seed = identity.targets.k, identity.targets.seed
    parts = [np.zeros((0, k))]
    for i, row in enumerate(shard.rows):
        key = np.array([seed, shard.start_row + i], np.uint64)
        bits = np.random.Philox(key=key, counter=[0, 0, 0, 2])
        parts.append(np.random.Generator(bits).random((row.n, k)))
    return np.concatenate(parts)


# -- reading --------------------------------------------------------------------------------------


def shard_of(streams: Mapping[str, Stream], dictionary: Codebook | None, reading: Reading) -> Shard:
    """The shard of some streams, which may hold anything; raises as `decode_shard`.

    Args:
        dictionary: what ids are coded with; None: the shard's own order.
    """
    identity, where, positions = reading.identity, reading.where, reading.positions
    v = identity.teacher.vocab_size
    book = dictionary or Codebook.from_order_streams(streams, vocab_size=v, where=where)
    found = rows_of_streams(streams, book, reading)
    total = sum(r.size for r in found)
    n = sum(r.n for r in found)
    if positions is not None and n != positions:
        raise IntegrityError(f"{where}: its rows have {n} positions, the manifest says {positions}")

    def numbers(name: str, entries: int) -> UInt32:
        return exactly(streams, name, entries, where)

    tokens = contexts(found)
    if not reading.targets:
        summary = summary_of_streams(streams, identity, book, tokens, None, where=where)
        return rows_alone(reading.start_row, found, identity, summary)
    counts = numbers("kept", n).astype(np.int64)
    k = int(counts.max(initial=0))
    if k > identity.targets.k:
        raise IntegrityError(
            f"{where}: a position keeps {k} ids, the manifest says at most {identity.targets.k}"
        )
    check_hard(counts, identity, where)
    grid = tuple(identity.targets.temperatures)
    check_size(n, k + other_ids(identity), total, f"{where}: ", grid=len(grid))
    codec = make_codec(identity.encoding.values)
    odds = np.empty((n, len(grid)), np.float32)
    for i, t in enumerate(grid):
        odds[:, i] = codec.odds(numbers(log_odds_column(t), n))
    bands = {f".{begin}": (begin, end) for begin, end in _bands(k)}
    if identity.encoding.profile == PACKED_ARRAYS:
        bands = {"": (0, k)}
    labels = labels_of(found) if codec.label_first else None
    ids, gaps = _kept(counts, k, book, tokens, labels, codec, streams, bands, where)
    kept = SoftTargets(
        ids=ids,
        gaps=gaps,
        log_odds=odds,
        temperatures=grid,
        vocab_size=v,
        estimator=identity.targets.estimator,
        declared=identity.targets.declared,
        hidden=hidden_of_streams(streams, identity, n, where=where),
        summary=summary_of_streams(streams, identity, book, tokens, (ids, counts), where=where),
    )
    kept.validate(where=where, unique=False)
    return Shard(start_row=reading.start_row, rows=found, targets=kept)


def _kept(
    counts: Int64,
    k: int,
    book: Codebook,
    tokens: Int32,
    labels: Int32 | None,
    codec: ValueCodec,
    streams: Mapping[str, Stream],
    bands: Mapping[str, tuple[int, int]],
    where: str,
) -> tuple[Int32, npt.NDArray[np.float32]]:
    """Ids `[N, K] int32` and gaps `[N, K] float32`; a slot that is not kept repeats the first id at +inf."""
    n = len(counts)
    by_token = _in_order(tokens)
    sorted_counts = counts[by_token]
    ragged = n > 0 and int(counts.min()) < k
    if codec.by_id:
        values, codes = read_by_id(sorted_counts, k, streams, where)
        places = iter(range(k))
    else:
        make = np.zeros if ragged else np.empty
        values, codes = make((k, n), np.uint32), make((k, n), np.uint32)
        places = _summed(values, codes, sorted_counts, ragged, streams, bands, where)
    offsets = book.offsets(tokens[by_token])
    own_labels = None if labels is None else labels[by_token]
    back = np.empty(n, np.int64)
    back[by_token] = np.arange(n)
    # In place, and each place while it is in the cache: to fetch and to make pages costs as much as the work.
    ids, gaps, far = codes.view(np.int32), values.view(np.float32), np.empty(n, np.float32)
    for j in places:
        is_label = None
        if own_labels is not None:
            is_label = codes[j] == 0
            codes[j] -= ~is_label  # what is one more
        found = book.decode(codes[j], *offsets)
        if own_labels is not None:
            np.copyto(found, own_labels, where=is_label)
        scores = codec.scores(values[j])
        if j == 0:
            first = scores.copy()
        np.subtract(first, scores, out=far)
        found.take(back, out=ids[j], mode="clip")  # so that it needs no buffer
        far.take(back, out=gaps[j], mode="clip")
        if ragged:
            lost = counts <= j
            np.copyto(ids[j], ids[0], where=lost)
            gaps[j][lost] = np.inf
    return np.ascontiguousarray(ids.T), np.ascontiguousarray(gaps.T)


def _in_order(tokens: Int32) -> Int64:
    """`[N]`: positions by token, those of one token as they come; a fifth of the time of a stable `argsort`."""
    keys = tokens.astype(np.int64)
    keys <<= 32
    keys |= np.arange(len(tokens))
    keys.sort()
    keys &= 2**32 - 1
    return keys


def _summed(
    values: UInt32,
    codes: UInt32,
    counts: Int64,
    ragged: bool,
    streams: Mapping[str, Stream],
    bands: Mapping[str, tuple[int, int]],
    where: str,
) -> Iterator[int]:
    """Fill `values` and `codes` `[K, N]` place by place with the sums of the streams' steps.

    After equal values the code goes on from the one before. Slots that a position does not have must be 0.

    Yields:
        The place that is complete, and not needed for those to come.
    """
    n = values.shape[1]
    mask, before, found = np.empty(n, np.uint32), np.empty(n, np.uint32), np.empty(n, np.bool_)
    for suffix, (begin, end) in bands.items():
        here = np.arange(begin, end)[:, None] < counts if ragged else None
        for name, out in (("values", values), ("ids", codes)):
            if here is None:
                fill(streams, name + suffix, out[begin:end].reshape(-1), where)
            else:
                out[begin:end][here] = exactly(streams, name + suffix, int(here.sum()), where)
        for j in range(begin, end):
            if j > 0:
                np.equal(values[j], 0, out=found)  # the value is that before it
                mask[:] = found
                mask *= before
                codes[j] += mask
                if np.less(codes[j], mask, out=found).any():
                    raise IntegrityError(f"{where}: stream 'ids' leads beyond 2^32 at place {j}")
                values[j] += values[j - 1]
                yield j - 1
            np.add(codes[j], 1, out=before)
    if len(values):
        yield len(values) - 1
