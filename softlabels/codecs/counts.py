"""`counts`: the weights of a sample as whole numbers, whose mean over the rounding is exactly the weight.

Weights that are whole multiples of one number, as of `systematic` and `rs`, are written as these, and nothing is
rounded. Of other weights w, which sum to 1, M = max(256, ceil(1 / min(w))) is shared out:

 1. lay the kept ids on a line from 0 to M, each on a piece of length M w, which is at least 1;
 2. put a comb on it, whose teeth are 1 apart and whose first is a uniform number from the line's beginning;
 3. the weight becomes m / M, where m is how many teeth hit the piece: M w rounded up or down, hence at least 1.

Unbiased: a piece of length x is hit by x teeth on average, so E[m / M] = w; and all m sum to M in each draw, so that
the reader, who knows no M and divides by the sum, changes nothing. Rounding in steps of a nat (`nat8`) has neither: its
weights are divided by a sum that was rounded itself. An id's variance grows by at most 1 / (4 M^2), where that of a
sampled id of probability p is about p / M.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from softlabels.codecs import Numbers
from softlabels.core.targets import SoftTargets
from softlabels.errors import TargetError

Float64 = npt.NDArray[np.float64]
UInt32 = npt.NDArray[np.uint32]

MOST, LARGEST_GAP = 2**31, 16.0
"""What is written is the first less m, so that it ascends as weights fall; the least and the largest weight of a
position are no further apart than the second, in nats."""
NO_TAIL, NO_HEAD = 0, 2**32 - 1
"""Stand for log-odds of -inf and +inf: a sample has no others."""
SINGLE = 1e-5
"""Of M w that single precision leaves open: nearer to whole numbers, they are these."""
FEW = 256
"""Counts of the least weight that are tried before a position is combed, and the least M then."""


@dataclass(frozen=True)
class Counts:
    """Weights as m of M, of samples only."""

    id: ClassVar[str] = "counts"
    plain: ClassVar[bool] = False
    samples_only: ClassVar[bool] = True
    unbiased: ClassVar[bool] = True
    by_id: ClassVar[bool] = False
    label_first: ClassVar[bool] = True
    relative_error: ClassVar[float] = 0.0

    def absolute_error(self, *, sample: bool) -> float:
        """Log 2: a weight of nearly 2 / M may become 1 / M."""
        return float(np.log(2.0))

    def rounding(self, gaps: Float64) -> None:
        """The bound says all."""

    def to_numbers(self, targets: SoftTargets, uniforms: Float64 | None) -> Numbers:
        """Counts of N samples; `uniforms [N, K]` in [0, 1), of which the first of each position is used.

        Raises:
            TargetError: not a sample, or weights further apart than 16 nats.
        """
        if not targets.keeps.sample or uniforms is None:
            raise TargetError(
                f"counts holds the weights of a sample, and {targets.estimator!r} targets are probabilities; build "
                "with --values nat16"
            )
        finite = np.isfinite(targets.log_odds)
        if finite.any():
            raise TargetError(
                f"counts: a sample with log-odds of a tail, {targets.log_odds[finite][0]:g}"
            )
        odds = np.where(np.isneginf(targets.log_odds), NO_TAIL, NO_HEAD).astype(np.uint32)
        if targets.k == 0:
            return Numbers(np.zeros(targets.ids.shape, np.uint32), odds)
        gaps, kept = targets.gaps, targets.kept
        largest = gaps.max(axis=1, initial=0, where=kept, keepdims=True)
        if largest.max(initial=0) > LARGEST_GAP:
            raise TargetError(
                f"counts cannot hold weights {largest.max():.3g} nats apart (limit {LARGEST_GAP:g}); build with "
                "--values nat8"
            )
        m = np.exp(largest - gaps)  # of the least 1; 0 of what is not kept
        whole = np.rint(m)
        for i in np.flatnonzero((np.abs(m - whole) > SINGLE * (m + 1)).any(axis=1)):
            whole[i] = _counts(m[i].astype(np.float64), float(uniforms[i, 0]))
        return Numbers(np.where(kept, MOST - whole.astype(np.uint32), 0).astype(np.uint32), odds)

    def scores(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Log weights up to a constant `float32`; NaN of a number that stands for no count."""
        left = np.subtract(MOST, values, dtype=np.int64).astype(np.float32)
        if left.min(initial=1) < 1:
            left[left < 1] = np.nan
        found: npt.NDArray[np.float32] = np.log(left)
        return found

    def odds(self, numbers: UInt32) -> npt.NDArray[np.float32]:
        """Log-odds `float32`; NaN of a number that stands for none."""
        out = np.full(numbers.shape, np.nan, np.float32)
        out[numbers == NO_TAIL] = -np.inf
        out[numbers == NO_HEAD] = np.inf
        return out


def _counts(weight: Float64, uniform: float) -> Float64:
    """Counts `[K]` of weights `[K]` whose least is 1: whole multiples of a half, a third, …, or combed."""
    multiples = weight * np.arange(2, FEW)[:, None]
    off = np.abs(multiples - np.rint(multiples)) > SINGLE * (multiples + 1)
    exact = np.flatnonzero(~off.any(axis=1))
    if len(exact):
        found: Float64 = np.rint(multiples[exact[0]])
        return found
    ends = weight.cumsum()
    m = max(np.ceil(ends[-1] * (1 + SINGLE)), FEW)
    # x / x is 1: the last kept id ends at m, exactly.
    return np.diff(np.floor(ends / ends[-1] * m + uniform), prepend=0.0)
