"""The first pass over logits: whether they are numbers, the largest of them, and, where C is compiled, the tail beyond.

Estimators say what they want found (`Sought`), and are given it. In `native.c` it is one pass; torch takes several, of
which those for the tail are left to the estimator (`tail.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from softlabels.estimators import native
from softlabels.estimators.largest import BLOCK, FEWEST_BLOCKS, largest, maxima_of
from softlabels.estimators.tail import Tail, native_chains, tail_of
from softlabels.estimators.tiles import tiles

if TYPE_CHECKING:
    from torch import Tensor

    from softlabels.estimators.vocab_parallel import VocabPart


class Sought(NamedTuple):
    """What an estimator wants to know first."""

    k: int
    """How many of the largest."""
    temperatures: tuple[float, ...] = ()
    """The grid, if it takes the tail beyond the first k - 1 of them, too."""


class Scan(NamedTuple):
    """Of `logits [n, v]`, of all ids that this process has."""

    totals: Tensor
    """`[n] float32`: their sums."""
    top: Tensor
    """`[n, min(k, v)] float32`: the largest, in descending order; of a row with a NaN anything."""
    ids: Tensor
    """`[n, min(k, v)] int64`."""
    tail: Tail | None
    """Relative to the last of `top`; None: not known, for want of a compiler or of k ids."""


def scan(logits: Tensor, sought: Sought, part: VocabPart | None = None) -> Scan:
    """Look at `logits [n, v] float32`, which are left as they are."""
    k = min(sought.k, logits.shape[1])
    blocks = logits.shape[1] // BLOCK
    if native.suits(logits) and blocks >= FEWEST_BLOCKS * k:
        # Where the vocabulary is dealt out, what the tail is relative to is not known yet.
        grid = sought.temperatures if part is None else ()
        found = native.scan(logits, k, native_chains(grid))
        tail = tail_of(found.tails, grid) if grid else None
        return Scan(found.totals, found.top, found.ids, tail)
    if logits.device.type != "cpu":
        return Scan(logits.sum(1), *largest(logits, k), None)
    totals, maxima = logits.new_empty(len(logits)), logits.new_empty(len(logits), blocks)
    for rows in tiles(logits):
        totals[rows] = logits[rows].sum(1)
        maxima[rows] = maxima_of(logits[rows], BLOCK)
    return Scan(totals, *largest(logits, k, maxima), None)
