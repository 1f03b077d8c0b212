"""Profile `packed`: a shard as streams of small numbers, each as short as its entropy.

Of each position the kept ids are put in one order: the likeliest first, of equally likely ones (their
values are rounded) the smaller code first. Then there are two streams for each place in that order:
 - `values.j`: by how much the value at place j exceeds the one before it (see `codecs`);
 - `ids.j`: the code of the id at place j (see `codebook`); if its value equals the one before, by how
   much the code exceeds that before it, less one. Equal values thus pay for a set of ids, not for a list.
A position that keeps fewer ids has no entry in the later streams. In a stream positions come in order of
their input tokens, so that one token's table is read at a time. From place 64 on, places share streams:
64 to 127, 128 to 255, and so on, one place after the other.

Everything is decoded place by place for all positions at once: additions and one gather.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from softlabels.codecs import make_codec
from softlabels.codecs.codebook import Codebook, count, order_of, read_numbers
from softlabels.codecs.streams import Stream, pack, pack_series, unpack
from softlabels.errors import IntegrityError, TargetError
from softlabels.rows import Row
from softlabels.store.columns import DECODED_LIMIT
from softlabels.store.manifest import Identity
from softlabels.store.plain import check_inputs, log_odds_column
from softlabels.store.shard import Shard
from softlabels.targets import UNBIASED, SoftTargets

__all__ = ["shard_of", "streams_of"]

UInt32 = npt.NDArray[np.uint32]
Int64 = npt.NDArray[np.int64]

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
    _check_size(t.n, t.k, sum(len(r.input_ids) for r in rows))
    codec = make_codec(identity.encoding.values)
    tokens = np.concatenate([r.input_ids for r in rows])
    kept = t.kept
    streams: dict[str, Stream] = {}
    if dictionary is None:
        book = order_of(*count(np.concatenate([t.ids[kept], tokens])))
        streams |= book.order_streams()
    else:
        book = dictionary
    streams |= _row_streams(rows, book, tokens)

    counts = kept.sum(axis=1)
    streams["kept"] = pack(counts.astype(np.uint32))
    uniforms = _uniforms(shard, identity.targets.seed) if t.estimator in UNBIASED else None
    numbers = codec.to_numbers(t, uniforms)
    for i, temperature in enumerate(t.temperatures):
        streams[log_odds_column(temperature)] = pack(numbers.odds[:, i])

    # Positions in order of their input tokens. One sort does the rest: by value, then by code; what is not
    # kept comes last.
    tokens = _tokens_of_positions(rows)
    by_token = np.argsort(tokens, kind="stable")
    kept, counts = kept[by_token], counts[by_token]
    key = numbers.values[by_token].astype(np.uint64) << np.uint64(32)
    key |= book.encode(tokens[by_token], t.ids[by_token])
    key[~kept] = np.iinfo(np.uint64).max
    key.sort(axis=1)
    k = int(counts.max(initial=0))  # t.k may be larger: then nobody keeps so many
    places = np.ascontiguousarray(key[:, :k].T)  # [K, N]
    values = (places >> np.uint64(32)).astype(np.uint32)
    codes = places.astype(np.uint32)
    value_steps, code_steps = values.copy(), codes.copy()
    value_steps[1:] -= values[:-1]
    tied = value_steps[1:] == 0
    code_steps[1:] -= np.where(tied, codes[:-1] + np.uint32(1), np.uint32(0))
    ragged = len(counts) > 0 and int(counts.min()) < k
    for begin, end in _bands(k):
        if ragged:
            here = np.arange(begin, end)[:, None] < counts
            band_values, band_codes = value_steps[begin:end][here], code_steps[begin:end][here]
        else:
            band_values, band_codes = value_steps[begin:end].ravel(), code_steps[begin:end].ravel()
        streams[f"values.{begin}"] = pack(band_values)
        streams[f"ids.{begin}"] = pack(band_codes)
    return streams


def _check_size(n: int, k: int, tokens: int, where: str = "") -> None:
    """8 bytes for each id of the rectangle, 4 for each token."""
    if (size := 8 * n * k + 4 * tokens) > DECODED_LIMIT:
        raise TargetError(
            f"{where}a shard of {n} positions with up to {k} ids takes {size} bytes, more than the {DECODED_LIMIT} "
            "that a reader accepts; lower --shard-rows"
        )


def _uniforms(shard: Shard, seed: int) -> npt.NDArray[np.float64]:
    """`[N, K]`: a function of seed and row number alone, and independent of the estimator's draws."""
    k, parts = shard.targets.k, [np.zeros((0, shard.targets.k))]
    for i, row in enumerate(shard.rows):
        key = np.array([seed, shard.start_row + i], np.uint64)
        bits = np.random.Philox(key=key, counter=[0, 0, 0, 1])
        parts.append(np.random.Generator(bits).random((int(row.label_mask.sum()), k)))
    return np.concatenate(parts)


def _tokens_of_positions(rows: Sequence[Row]) -> npt.NDArray[np.int32]:
    """`[N] int32`: the input token at each position."""
    return np.concatenate([r.input_ids[r.label_mask] for r in rows])


def _row_streams(
    rows: Sequence[Row], book: Codebook, tokens: npt.NDArray[np.int32]
) -> dict[str, Stream]:
    segments = np.concatenate([r.segment_lengths for r in rows]).astype(np.uint32)
    mask = np.concatenate([r.label_mask for r in rows])
    odd = mask != _usual_mask(segments)
    turns = np.flatnonzero(np.diff(odd, prepend=False))
    plain = Codebook(order=book.order, classes=book.classes)
    codes = plain.encode(np.zeros(len(tokens), np.int32), tokens[:, None])[:, 0]
    digests = b"".join(r.digest() for r in rows)
    return {
        "input_digest": Stream(entries=len(rows), data=digests),
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


def shard_of(
    streams: Mapping[str, Stream],
    identity: Identity,
    dictionary: Codebook | None,
    *,
    start_row: int,
    rows: int | None,
    positions: int | None,
    where: str,
) -> Shard:
    """The shard of some streams, which may hold anything.

    Args:
        rows, positions: how many there must be; None: not known.

    Raises:
        IntegrityError: a stream is missing or has not the length that the others ask for; a row whose
            inputs are not those of its digest.
        TargetError: an id out of range, NaN, an empty kept set.
    """
    v = identity.teacher.vocab_size
    book = dictionary or Codebook.from_order_streams(streams, vocab_size=v, where=where)
    found = _rows(streams, identity, book, start_row=start_row, rows=rows, where=where)
    total = sum(len(r.input_ids) for r in found)
    n = sum(int(r.label_mask.sum()) for r in found)
    if positions is not None and n != positions:
        raise IntegrityError(f"{where}: its rows have {n} positions, the manifest says {positions}")

    def numbers(name: str, entries: int) -> UInt32:
        return _exactly(streams, name, entries, where)

    counts = numbers("kept", n).astype(np.int64)
    k = int(counts.max(initial=0))
    if k > identity.targets.k:
        raise IntegrityError(
            f"{where}: a position keeps {k} ids, the manifest says at most {identity.targets.k}"
        )
    _check_size(n, k, total, f"{where}: ")
    codec = make_codec(identity.encoding.values)
    grid = tuple(identity.targets.temperatures)
    odds = np.stack([codec.odds(numbers(log_odds_column(t), n)) for t in grid], axis=1)
    tokens = _tokens_of_positions(found)
    by_token = np.argsort(tokens, kind="stable")
    ids, gaps = _kept(counts[by_token], k, book, tokens[by_token], codec.scores, numbers)
    back = np.empty(n, np.int64)
    back[by_token] = np.arange(n)
    targets = SoftTargets(
        ids=np.ascontiguousarray(ids.T).take(back, axis=0),
        gaps=np.ascontiguousarray(gaps.T).take(back, axis=0),
        log_odds=odds,
        temperatures=grid,
        vocab_size=v,
        estimator=identity.targets.estimator,
    )
    targets.validate(where=where, unique=False)
    return Shard(start_row=start_row, rows=found, targets=targets)


def _kept(
    counts: Int64,
    k: int,
    book: Codebook,
    tokens: npt.NDArray[np.int32],
    scores: Callable[[UInt32], npt.NDArray[np.float32]],
    numbers: Callable[[str, int], UInt32],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Ids `[K, N] int32` and gaps `[K, N] float32`; a slot that is not kept repeats the first id at +inf."""
    n = len(counts)
    ids, gaps = np.empty((k, n), np.int32), np.empty((k, n), np.float32)
    offsets = book.offsets(tokens)
    ragged = n > 0 and int(counts.min()) < k
    value, code = np.zeros(n, np.uint32), np.zeros(n, np.int64)
    first = np.zeros(n, np.float32)
    for begin, end in _bands(k):
        here = [np.flatnonzero(counts > j) for j in range(begin, end)] if ragged else None
        length = sum(map(len, here)) if here is not None else n * (end - begin)
        value_steps, code_steps = (
            numbers(f"values.{begin}", length),
            numbers(f"ids.{begin}", length),
        )
        at = 0
        for j in range(begin, end):
            some = here[j - begin] if here is not None else None
            m = n if some is None else len(some)
            dv, dc = value_steps[at : at + m], code_steps[at : at + m]
            at += m
            before = (value, code) if some is None else (value[some], code[some])
            now = before[0] + dv
            place = dc.astype(np.int64)
            if j:
                place += (before[1] + 1) * (dv == 0)
            score = scores(now)
            if some is None:
                value, code = now, place
                first = score if j == 0 else first
                ids[j] = book.decode(place, *offsets)
                np.subtract(first, score, out=gaps[j])
            else:
                value[some], code[some] = now, place
                if j == 0:
                    first[some] = score
                ids[j] = ids[0] if j else 0
                gaps[j] = np.inf
                ids[j, some] = book.decode(place, *(o[some] for o in offsets))
                gaps[j, some] = first[some] - score
    return ids, gaps


def _exactly(streams: Mapping[str, Stream], name: str, entries: int, where: str) -> UInt32:
    out = np.empty(entries, np.uint32)
    unpack(_stream(streams, name, where), out, where=f"{where}: stream {name!r}")
    return out


def _stream(streams: Mapping[str, Stream], name: str, where: str) -> Stream:
    if name not in streams:
        raise IntegrityError(f"{where}: has no stream {name!r}")
    return streams[name]


def _rows(
    streams: Mapping[str, Stream],
    identity: Identity,
    book: Codebook,
    *,
    start_row: int,
    rows: int | None,
    where: str,
) -> list[Row]:
    digests = _stream(streams, "input_digest", where)
    if len(digests.data) != 16 * digests.entries:
        raise IntegrityError(f"{where}: stream 'input_digest' is torn")
    r = digests.entries
    if rows is not None and r != rows:
        raise IntegrityError(
            f"{where}: holds {r} rows, expected {rows}; copy it again from its source"
        )
    lengths = _exactly(streams, "tokens", r, where).astype(np.int64)
    total = int(lengths.sum())
    _check_size(0, 0, total, f"{where}: ")
    if r == 0 or lengths.max() > identity.corpus.seq_len or lengths.min() < 1:
        raise IntegrityError(
            f"{where}: rows of {lengths} tokens, expected 1..{identity.corpus.seq_len}"
        )
    plain = Codebook(order=book.order, classes=book.classes)
    none = np.zeros(total, np.int64)
    codes = _exactly(streams, "input_ids", total, where)
    tokens = plain.decode(codes.astype(np.int64), none, none, none)
    of_row = _exactly(streams, "segments", r, where).astype(np.int64)
    if int(of_row.sum()) > total:
        raise IntegrityError(f"{where}: {of_row.sum()} segments of {total} tokens")
    segments = _exactly(streams, "segment_lengths", int(of_row.sum()), where)
    if int(segments.sum(dtype=np.int64)) != total or (len(segments) and segments.min() == 0):
        raise IntegrityError(f"{where}: segment_lengths do not sum to the {total} tokens")
    documents = np.empty(len(segments), np.int64)
    stream = _stream(streams, "documents", where)
    unpack(stream, documents, where=f"{where}: stream 'documents'")
    turns = np.cumsum(read_numbers(streams, "mask_turns", total, where), dtype=np.int64)
    if len(turns) and turns[-1] >= total:
        raise IntegrityError(f"{where}: mask_turns lead beyond the {total} tokens")
    odd = np.zeros(total + 1, np.int8)
    odd[turns] = 1
    mask = _usual_mask(segments) ^ (np.cumsum(odd[:-1], dtype=np.int64) % 2 == 1)
    ends, ends_of_segments = np.cumsum(lengths)[:-1], np.cumsum(of_row)[:-1]
    parts = zip(
        np.split(tokens, ends),
        np.split(segments.astype(np.int32), ends_of_segments),
        np.split(documents, ends_of_segments),
        np.split(mask, ends),
        strict=True,
    )
    found = [Row(input_ids=i, segment_lengths=s, documents=d, label_mask=m) for i, s, d, m in parts]
    check_inputs(
        found,
        np.frombuffer(digests.data, np.uint8).reshape(r, 16),
        identity,
        start_row=start_row,
        where=where,
    )
    return found
