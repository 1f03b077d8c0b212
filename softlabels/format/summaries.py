"""Summaries in a shard: three columns of the profile `open`, three streams of the profile `packed`.

The likeliest id is nearly always the first of the kept ones, so what is written of it is a place: 0 if it is not
known, j if it is the j-th id that the position keeps, and otherwise the id itself, out of the way of places: -1 - id
in a column, K + 1 + code in a stream, K being what the position keeps and the code that of `ids.*`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from softlabels.codecs.codebook import Codebook
from softlabels.codecs.streams import Stream, exactly, pack
from softlabels.codecs.summary import (
    ENTROPY,
    LABEL_LOGP,
    entropy_of_numbers,
    entropy_to_numbers,
    held_entropy,
    held_label_logp,
    label_logp_of_numbers,
    label_logp_to_numbers,
)
from softlabels.core.summary import UNKNOWN, Summary
from softlabels.core.targets import SoftTargets
from softlabels.errors import FormatError, IntegrityError, TargetError
from softlabels.format.columns import Column, Expected
from softlabels.format.identity import Identity, SummaryRecord

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]

LOGP, UNCERTAINTY, TOP = NAMES = ("label_logp", "entropy", "top")
FLOAT16 = np.dtype(np.float16)


def summary_record(vocab_size: int) -> SummaryRecord:
    """What a manifest says of summaries over so many ids."""
    return SummaryRecord(vocab_size=vocab_size, label_logp=LABEL_LOGP, entropy=ENTROPY)


def _has_summaries(identity: Identity) -> bool:
    if (record := identity.summary) is None:
        return False
    if (record.label_logp, record.entropy) != (LABEL_LOGP, ENTROPY):
        raise FormatError(
            f"summaries are held as {record.label_logp!r} and {record.entropy!r}, known are {LABEL_LOGP!r} and "
            f"{ENTROPY!r}; upgrade softlabels"
        )
    return True


def _given(targets: SoftTargets) -> Summary:
    if targets.summary is None:
        raise TargetError("the store holds a summary of each position, and the targets have none")
    targets.summary.validate(targets.vocab_size, where="summary")
    return targets.summary


def _slot(targets: SoftTargets, top: Int32) -> Int64:
    """`[N]`: in which slot the likeliest id is; -1: in none that is kept."""
    if targets.k == 0:
        return np.full(targets.n, -1, np.int64)
    hit = targets.kept & (targets.ids == top[:, None])
    return np.where(hit.any(axis=1), hit.argmax(axis=1), -1)


def same_summary(given: Summary | None, held: Summary | None) -> bool:
    """Whether what came back is what was written, as it is held."""
    if given is None or held is None:
        return given is held
    return (
        np.array_equal(given.top, held.top)
        and np.array_equal(
            held_label_logp(given.label_logp), held_label_logp(held.label_logp), equal_nan=True
        )
        and np.array_equal(held_entropy(given.entropy), held_entropy(held.entropy), equal_nan=True)
    )


# -- columns --------------------------------------------------------------------------------------


def summary_columns(targets: SoftTargets, identity: Identity, offsets: Int64) -> dict[str, Column]:
    """The columns of a shard whose rows have positions `offsets [R + 1]`; none if the store has no summaries."""
    if not _has_summaries(identity):
        return {}
    summary = _given(targets)
    slot = _slot(targets, summary.top)
    # Kept ids are written without the slots that are not: of those before this one.
    place = np.take_along_axis(
        np.cumsum(np.hstack([np.zeros((targets.n, 1), np.int64), targets.kept]), axis=1),
        (slot + 1)[:, None],
        axis=1,
    )[:, 0]
    outside = np.where(summary.top == UNKNOWN, 0, -1 - summary.top.astype(np.int64))
    return {
        LOGP: Column(values=held_label_logp(summary.label_logp), offsets=offsets),
        UNCERTAINTY: Column(values=held_entropy(summary.entropy), offsets=offsets),
        TOP: Column(values=np.where(slot >= 0, place, outside).astype(np.int32), offsets=offsets),
    }


def summary_expected(
    identity: Identity, positions: int | None, *, top: bool = True
) -> dict[str, Expected]:
    """What these columns must be; `top` can be read beside the kept ids only."""
    if not _has_summaries(identity):
        return {}
    expected = {
        LOGP: Expected(dtype=FLOAT16, most=positions),
        UNCERTAINTY: Expected(dtype=FLOAT16, most=positions),
    }
    return expected | ({TOP: Expected(dtype=np.dtype(np.int32), most=positions)} if top else {})


def summary_of_columns(
    columns: Mapping[str, Column],
    identity: Identity,
    ids: Int32 | None,
    counts: Int32,
    offsets: Int64,
    *,
    where: str,
) -> Summary | None:
    """Of columns that may hold anything, and the kept ids `[N, K]`, of which the first `counts [N]` count.

    Without ids nothing is said of the likeliest.

    Raises:
        IntegrityError: lengths that are not the rows', a place where no id is kept.
    """
    if not _has_summaries(identity):
        return None
    for name in NAMES if ids is not None else NAMES[:2]:
        found = columns[name].offsets
        if found is None or not np.array_equal(found, offsets):
            raise IntegrityError(
                f"{where}: column {name!r} has not one entry for each position of each row"
            )
    top = np.full(len(counts), UNKNOWN, np.int32)
    if ids is not None:
        place = columns[TOP].values.astype(np.int64)
        outside = np.where(place == 0, UNKNOWN, -1 - place)
        top = _kept_or(outside, place, ids, counts.astype(np.int64), where)
    return Summary(
        label_logp=columns[LOGP].values.astype(np.float32),
        entropy=columns[UNCERTAINTY].values.astype(np.float32),
        top=top,
    )


def _kept_or(top: Int64, place: Int64, ids: Int32, counts: Int64, where: str) -> Int32:
    """`top`, but the kept id where `place` is above 0."""
    wrong = place > counts
    if wrong.any():
        at = int(wrong.argmax())
        raise IntegrityError(
            f"{where}: position {at} keeps {counts[at]} ids, and its likeliest is said to be number {place[at]}"
        )
    if len(place) and place.min() == place.max() == 1:  # of a set of the largest, nearly always
        return ids[:, 0].copy()
    inside = place > 0
    out = top.astype(np.int32)
    out[inside] = ids[inside, place[inside] - 1]
    return out


# -- streams --------------------------------------------------------------------------------------


def summary_streams(
    targets: SoftTargets,
    identity: Identity,
    book: Codebook,
    codes: UInt32,
    by: Int64,
    contexts: Int32,
    labels: Int32 | None,
) -> dict[str, Stream]:
    """The streams of a shard; positions are in order in them.

    Args:
        codes: `[K, N]` of the kept ids as they are written, as many of each position as it keeps.
        by: `[N]`: which position of `targets` each of `codes` is of; ordered by `contexts`.
        contexts: `[N] int32` of the positions in that order.
        labels: the same, where code 0 is the label and others are one more.
    """
    if not _has_summaries(identity):
        return {}
    summary = _given(targets)
    top, counts = summary.top[by], targets.kept.sum(axis=1)[by]
    own = book.encode(contexts, np.maximum(top, 0)[:, None])[:, 0]
    same = own if labels is None else (own + np.uint32(1)) * (top != labels)
    hit = (codes == same) & (np.arange(len(codes))[:, None] < counts)
    place = np.where(hit.any(axis=0), hit.argmax(axis=0) + 1, 0) if len(codes) else counts * 0
    number = np.where(place > 0, place, counts + 1 + own.astype(np.int64))
    in_order = np.empty(targets.n, np.uint32)
    in_order[by] = np.where(top == UNKNOWN, 0, number)
    return {
        LOGP: pack(label_logp_to_numbers(summary.label_logp)),
        UNCERTAINTY: pack(entropy_to_numbers(summary.entropy)),
        TOP: pack(in_order),
    }


def summary_of_streams(
    streams: Mapping[str, Stream],
    identity: Identity,
    book: Codebook,
    contexts: Int32,
    kept: tuple[Int32, Int64] | None,
    *,
    where: str,
) -> Summary | None:
    """Of streams that may hold anything.

    Args:
        contexts: `[N]`: what codes come after.
        kept: the kept ids `[N, K]`, in the order that places count in, and how many of them count `[N]`; None: they
            were not decoded, and nothing is said of the likeliest.

    Raises:
        IntegrityError: a stream is missing or has another length, a number that stands for nothing.
    """
    if not _has_summaries(identity):
        return None

    def numbers(name: str) -> UInt32:
        return exactly(streams, name, len(contexts), where)

    try:
        label_logp = label_logp_of_numbers(numbers(LOGP))
        entropy = entropy_of_numbers(numbers(UNCERTAINTY))
    except ValueError as e:
        raise IntegrityError(f"{where}: its summaries hold {e}") from e
    top = np.full(len(contexts), UNKNOWN, np.int32)
    if kept is not None:
        top = _top(numbers(TOP).astype(np.int64), *kept, book, contexts, where)
    return Summary(label_logp=label_logp, entropy=entropy, top=top)


def _top(
    number: Int64, ids: Int32, counts: Int64, book: Codebook, contexts: Int32, where: str
) -> Int32:
    """The likeliest ids that the stream's numbers stand for."""
    outside = number > counts
    top = np.full(len(counts), UNKNOWN, np.int64)
    if outside.any():
        codes = (number - counts - 1)[outside].astype(np.uint32)
        top[outside] = book.decode(codes, *book.offsets(contexts[outside]))
        if (top[outside] < 0).any():
            raise IntegrityError(f"{where}: stream {TOP!r} leads beyond 2^31")
    return _kept_or(top, np.where(outside, 0, number), ids, counts, where)
