"""`systematic`: k draws by one comb, so that every position is drawn at the one threshold 1/k.

The flow, at one position with probabilities p:
 1. lay the ids on a line from 0 to k, each on a piece of length k p;
 2. put a comb on it, whose k teeth are 1 apart and whose first is a uniform number from the line's beginning;
 3. an id that m teeth hit is kept at weight m / k.

Unbiased: an interval of length x is hit by x teeth on average, whatever the other intervals are, so E[m / k] = p for
every id of the vocabulary; and m is k p rounded up or down, so ids of p >= 1/k are always kept, others with probability
k p. All m sum to k, so the weights sum to 1 in each draw and dividing by their sum changes nothing.

How many ids that makes follows the teacher: sum of min(1, k p), two where it is certain, dozens where it is not.
`--mean-k` finds the k that keeps so many on average (`builder/draws.py`). Beside `rs`, which draws k times
independently, no id's weight varies more: of p < 1/k by p/k - p^2, not p/k - p^2/k, of others by at most 1/(4 k^2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from softlabels.core.kept import KeptSet
from softlabels.estimators.drawn import Draws

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Systematic(Draws):
    """Draw k times by one comb at one temperature; keep each distinct id at its share of the draws."""

    keeps: ClassVar[KeptSet] = KeptSet(sample=True, tail=False)
    uniforms: ClassVar[int] = 1

    def points(self, uniforms: Tensor, length: Tensor) -> Tensor:
        """The teeth of a comb."""
        teeth = torch.arange(self.k, device=length.device) + (1.0 - uniforms.view(-1, 1))
        return teeth * (length / self.k)
