"""What is known of each position: of the reference once, and of every candidate. Some 140 bytes, whatever V.

Shapes: N positions, all with a soft target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Said:
    """Of the reference."""

    row: Int64
    """`[N]`: row of the store."""
    document: Int64
    """`[N]`: document of the corpus."""
    context: Int64
    """`[N]`: how many tokens of the document were read, this one included."""
    label: Int64
    """`[N]`: what came; `UNLABELLED` where that is not known."""
    label_logp: Float64
    """`[N]`: the reference's log-probability of it, nats; NaN: not known."""
    right: Bool
    """`[N]`: its likeliest id came."""
    tail: Float64
    """`[N]`: mass of all ids that are not kept."""

    @property
    def n(self) -> int:
        """N."""
        return len(self.row)


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """Of one candidate."""

    bins: Float64
    """`[N]`: KL(reference ‖ candidate) over the kept ids and the tail, nats, less what the stored numbers' rounding
    adds to it on average; infinite where a kept id is impossible to the candidate."""
    least: Float64
    """`[N]`: the true KL is at least this, whatever was rounded."""
    most: Float64
    """`[N]`: it is at most this, whatever the tail is; infinite or NaN: not known."""
    seen: Float64
    """`[N, 3]`: what the KL within the tail is estimated from (`tails.features`)."""
    within: Float64
    """`[N]`: KL within the tail, nats, as a wide row shows it; NaN: there is none."""
    label_logp: Float64
    """`[N]`: its log-probability of the label, nats."""
    same_top: Bool
    """`[N]`: the reference's likeliest id is its likeliest, too."""
    right: Bool
    """`[N]`: its likeliest id came."""
    impossible: Bool
    """`[N]`: some id has probability 0 to the candidate."""
    accept_low: Float64
    """`[N]`: least that sum of min(p, q) over all ids can be."""
    accept_high: Float64
    """`[N]`: most that it can be."""


P = TypeVar("P", Said, Answered)


def joined(parts: Sequence[P]) -> P:
    """One after the other."""
    kind = type(parts[0])
    return kind(
        **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(kind)}
    )
