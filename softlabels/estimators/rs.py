"""`rs`: draws with replacement, their counts as weights (RS-KD, arXiv 2503.16870). The published baseline.

Unbiased like `sampled`, with about 1.5 times its squared error at the same number of distinct ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from softlabels.core.kept import BUILT_IN, KeptSet
from softlabels.estimators.drawn import Draws

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RandomSampling(Draws):
    """Draw k times from the teacher at one temperature; keep each distinct id at its share of the draws."""

    keeps: ClassVar[KeptSet] = BUILT_IN["rs"]

    @property
    def uniforms(self) -> int:
        """One random number for each draw."""
        return self.k

    def points(self, uniforms: Tensor, length: Tensor) -> Tensor:
        """Independent of each other."""
        return (1.0 - uniforms.sort(1, descending=True).values) * length
