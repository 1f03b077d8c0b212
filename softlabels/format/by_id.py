"""Kept sets in order of id: a set as the steps between its codes, and beside each id its number.

`packed.py` lists ids by value, the likeliest first, and so pays for their order: log2(64!) bits, 37 bytes, of 64. Where
numbers are fine that is the dearer way. Here the codes of a position ascend, and of each only the step from the one
before is written; a step is the longer the less usual the code before it, so steps after like codes share a stream:

 - `largest`: the largest number of each position that keeps any;
 - `ids.b`: the steps whose code before is of class b, place by place; b = 0: the first code of each position;
 - `values.g`: by how much each number is less than the position's largest. Positions are put in order of these, and
   cut into GROUPS of the same size, each with its stream: the numbers of a position spread as far as the largest.

A codec asks for this order (`ValueCodec.by_id`). Of 64 ids it takes 6 % less, and a reader as long as it takes to sort
them by value again.

Shapes: N positions, K kept ids; `[K, N]`: place by place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from softlabels.codecs.codebook import read_numbers
from softlabels.codecs.streams import Stream, exactly, pack
from softlabels.errors import IntegrityError

UInt32 = npt.NDArray[np.uint32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

GROUPS = 16
CLASSES = 67
"""Of the first code of a position, and two for each doubling of a code, up to 2^32."""
LARGEST = "largest"


def class_of(codes: UInt32) -> Int64:
    """Class of the code before a step: 2 e + 1 for codes of 2^e - 1 to 1.5 2^e - 2, one more up to 2^(e+1) - 2."""
    mantissa, exponent = np.frexp(codes.astype(np.float64) + 1)
    return np.asarray(2 * (exponent.astype(np.int64) - 1) + (mantissa >= 0.75) + 1)


def streams_by_id(values: UInt32, codes: UInt32, counts: Int64) -> dict[str, Stream]:
    """The streams of numbers and codes `[K, N]`, of which a position keeps the first `counts [N]`."""
    k, n = codes.shape
    kept = np.arange(k)[:, None] < counts
    order = np.argsort(np.where(kept, codes, np.uint64(2**32)), axis=0, kind="stable")
    codes = np.take_along_axis(codes, order, 0)
    largest = values.max(axis=0, where=kept, initial=0)
    less = largest - np.take_along_axis(values, order, 0)
    steps, before = codes.copy(), np.zeros((k, n), np.int64)
    steps[1:] -= codes[:-1] + np.uint32(1)
    before[1:] = class_of(codes[:-1])
    streams = {LARGEST: pack(largest[counts > 0])}
    of_kept = before[kept]
    for b in np.unique(of_kept):
        streams[f"ids.{b}"] = pack(steps[kept][of_kept == b])
    for g, where in _groups(largest, counts):
        streams[f"values.{g}"] = pack(less[:, where][kept[:, where]])
    return streams


def read_by_id(
    counts: Int64, k: int, streams: Mapping[str, Stream], where: str
) -> tuple[UInt32, UInt32]:
    """Numbers and codes `[K, N]`, by number and then by code; anything where a position keeps no more.

    Raises:
        IntegrityError: a stream is missing or has another length, codes or numbers that are none.
    """
    n = len(counts)
    kept = np.arange(k)[:, None] < counts
    codes = _codes(kept, _Steps(streams, int(counts.sum()), where), where)
    some = counts > 0
    largest = np.zeros(n, np.uint32)
    largest[some] = exactly(streams, LARGEST, int(some.sum()), where)
    values = np.zeros((k, n), np.uint32)
    for g, positions in _groups(largest, counts):
        mask = kept[:, positions]
        part = np.zeros(mask.shape, np.uint32)
        part[mask] = exactly(streams, f"values.{g}", int(mask.sum()), where)
        if (part > largest[positions]).any():
            raise IntegrityError(f"{where}: stream 'values.{g}' leads below 0")
        values[:, positions] = largest[positions] - part
    key = values.astype(np.uint64) << np.uint64(32) | codes
    key[~kept] = np.iinfo(np.uint64).max
    key.sort(axis=0)
    return (key >> np.uint64(32)).astype(np.uint32), key.astype(np.uint32)


def _codes(kept: Bool, steps: _Steps, where: str) -> UInt32:
    """`[K, N]`, ascending."""
    k, n = kept.shape
    codes = np.zeros((k, n), np.uint32)
    of_class = np.zeros(n, np.int64)
    for j in range(k):
        at = np.flatnonzero(kept[j])
        found = steps.take(of_class[at]).astype(np.uint64)
        if j:
            found += codes[j - 1][at] + np.uint64(1)
        if len(found) and int(found.max()) >= 2**32:
            raise IntegrityError(f"{where}: stream 'ids' leads beyond 2^32 at place {j}")
        codes[j][at] = found
        of_class[at] = class_of(codes[j][at])
    steps.check_used()
    return codes


class _Steps:
    """The streams of steps, each read from its beginning on."""

    def __init__(self, streams: Mapping[str, Stream], entries: int, where: str) -> None:
        names = [f"ids.{b}" for b in range(CLASSES)]
        declared = sum(streams[name].entries for name in names if name in streams)
        if declared != entries:
            raise IntegrityError(
                f"{where}: streams 'ids' hold {declared} entries, expected {entries}; not decoded"
            )
        self._where = where
        self._steps = [
            read_numbers(streams, name, entries, where)
            if name in streams
            else np.zeros(0, np.uint32)
            for name in names
        ]
        self._used = [0] * CLASSES

    def take(self, classes: Int64) -> UInt32:
        """The next step of each class `[n]`, in order."""
        found = np.empty(len(classes), np.uint32)
        order = np.argsort(classes.astype(np.uint8), kind="stable")
        begin = 0
        for b, count in enumerate(np.bincount(classes, minlength=CLASSES)):
            if count == 0:
                continue
            used, end = self._used[b], begin + int(count)
            part = self._steps[b][used : used + int(count)]
            if len(part) < count:
                raise IntegrityError(f"{self._where}: stream 'ids.{b}' has too few entries")
            found[order[begin:end]] = part
            self._used[b], begin = used + int(count), end
        return found

    def check_used(self) -> None:
        """The sum is right, so a class that has entries left means that another had too few."""
        assert all(u == len(s) for u, s in zip(self._used, self._steps, strict=True))


def _groups(largest: UInt32, counts: Int64) -> Iterator[tuple[int, Int64]]:
    """Positions of each group of those that keep any, in order of the largest number; empty groups are left out."""
    some = np.flatnonzero(counts > 0)
    order = some[np.argsort(largest[some], kind="stable")]
    ends = [len(order) * g // GROUPS for g in range(GROUPS + 1)]
    for g in range(GROUPS):
        if ends[g] < ends[g + 1]:
            yield g, np.sort(order[ends[g] : ends[g + 1]])
