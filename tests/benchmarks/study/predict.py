"""What of a store predicts the share that it keeps: the weight of a sampled id, which is what rare ids are held in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import softlabels

SAME = 0.01
"""Weights this near, in proportion, to the smallest of a position are of sampled ids; packed weights are rounded."""


class Line(NamedTuple):
    """Least squares through the origin: share lost = slope x weight."""

    runs: int
    slope: float
    error: float
    """Standard error of the slope."""
    spread: float
    """Standard deviation of single runs about the line."""

    def __str__(self) -> str:
        return (
            f"{self.runs} runs: share lost = ({self.slope:.1f} ± {self.error:.1f}) x weight of a sampled id; "
            f"a run is {self.spread:.1%} off"
        )


def sampled_weight(store: Path) -> float | None:
    """Mean weight of a sampled id, over the teacher's mass of such ids; None: the store is not a sample."""
    opened = softlabels.open_store(store)
    targets = opened.manifest.identity.targets
    if targets.estimator in ("rs", "systematic"):
        return 1.0 / targets.k
    if targets.estimator != "sampled":
        return None
    weighed = mass = 0.0
    for shard in opened:
        weights = shard.targets.probs(1.0).astype(np.float64)
        kept = weights > 0
        smallest = np.where(kept, weights, np.inf).min(1)
        sampled = kept & (weights <= smallest[:, None] * (1 + SAME))
        at = (weights * sampled).sum(1)
        weighed += float((at * smallest).sum())
        mass += float(at.sum())
    return weighed / mass


def line(counted: Sequence[Mapping[str, Any]], weights: Mapping[tuple[str, str], float]) -> Line:
    """Fit the share that runs of one temperature lost (`share` of `page.shares`) by the weights of text and arm."""
    pairs = [
        (weights[r["text"], r["arm"]], 1.0 - r["share"])
        for r in counted
        if (r["text"], r["arm"]) in weights and r["share"] is not None
    ]
    squares = sum(x * x for x, _ in pairs)
    slope = sum(x * y for x, y in pairs) / squares
    spread = math.sqrt(sum((y - slope * x) ** 2 for x, y in pairs) / (len(pairs) - 1))
    return Line(len(pairs), slope, spread / math.sqrt(squares), spread)


def lines(counted: Sequence[Mapping[str, Any]], out: Path) -> str:
    """The line of each student at T = 1 and alpha = 1, from the stores that the study made in `out`."""
    weights: dict[tuple[str, str], float] = {}
    said = []
    for student in sorted({r["student"] for r in counted}):
        runs = [
            r
            for r in counted
            if (r["student"], r["temperature"], r["alpha"]) == (student, 1.0, 1.0)
            and r["bytes_per_position"] is not None
        ]
        for text, arm in {(r["text"], r["arm"]) for r in runs} - weights.keys():
            if (weight := sampled_weight(out / text / "stores" / f"{arm}-T1")) is not None:
                weights[text, arm] = weight
        if sum((r["text"], r["arm"]) in weights for r in runs) > 2:
            said.append(f"{student}: {line(runs, weights)}")
    return "".join(f"{one}\n" for one in said)
