"""What the means of an optimiser step are taken over, and the one way in which its micro-batches and ranks add up.

totals = StepTotals.over(loss.count(m) for m in micro_batches)     all of them, on all ranks
out = replace(loss, totals=totals)(hidden, head, micro_batch)      one's share of the step's loss
LossOutput.over(outs).means(totals)                                what the step was made of
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

OVER = {
    "hard": "labelled",
    "hard_part": "labelled",
    "soft_weighted": "weight",
    "cosine": "positions",
}
"""Which total a sum of `LossOutput` is divided by; any other by `soft`."""


class StepTotals(NamedTuple):
    """Totals of the micro-batches of an optimiser step on all ranks; of a single one, until they are added up."""

    labelled: int
    """Positions that have a label: N of the hard loss."""
    soft: int
    """Positions that have a soft target: M."""
    weight: float
    """Sum over the M of their weights; M without weights."""
    positions: int
    """All positions."""
    width: int
    """Places of the longest row, padding included."""
    read: int
    """Tokens of the longest source of an encoder before a decoder, likewise; 0 without one."""
    shared: bool
    """Whether any row holds several documents, so that all have `position_ids`."""

    @classmethod
    def over(cls, parts: Iterable[Sequence[float]]) -> StepTotals:
        """Of all parts of a step."""
        rows = [(0, 0, 0.0, 0, 0, 0, False), *parts]
        labelled, soft, weight, positions, *_ = add_up(rows)
        width, read, shared = (int(max(row[i] for row in rows)) for i in (4, 5, 6))
        return cls(int(labelled), int(soft), weight, int(positions), width, read, bool(shared))

    def divisor(self, name: str) -> float:
        """What a sum of `LossOutput` is divided by; 1 where the step has nothing of the kind."""
        total: float = getattr(self, OVER.get(name, "soft"))
        return total or 1


def add_up(rows: Iterable[Sequence[float]]) -> list[float]:
    """Each column's sum, rounded once: the order of micro-batches and ranks does not matter. Inf and NaN pass."""
    return [
        math.fsum(column) if all(map(math.isfinite, column)) else sum(column)
        for column in zip(*rows, strict=True)
    ]
