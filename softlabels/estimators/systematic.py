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
from softlabels.estimators import Estimator, Selection
from softlabels.estimators.blocks import find, line_of
from softlabels.estimators.entropy import Whole, entropy_of
from softlabels.estimators.rs import counted
from softlabels.estimators.scan import Scan, Sought, scan
from softlabels.estimators.topk import check_k
from softlabels.estimators.vocab_parallel import VocabPart, merged

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Systematic(Estimator):
    """Draw k times by one comb at one temperature; keep each distinct id at its share of the draws."""

    keeps: ClassVar[KeptSet] = KeptSet(sample=True, tail=False)
    counts: ClassVar[bool] = True
    uniforms: ClassVar[int] = 1
    deals: ClassVar[bool] = True

    k: int = 35
    """Draws at each position: the most distinct ids that can be kept."""
    temperatures: tuple[float, ...] = (1.0,)
    """Exactly one: where the teacher is drawn from."""

    def __post_init__(self) -> None:
        check_k(self.k)

    @property
    def gives_whole(self) -> bool:
        """At T=1 alone the logits are exponentiated as they are."""
        return self.temperatures[0] == 1.0

    def check_vocab(self, vocab_size: int) -> None:
        """Any number of draws is possible."""

    @property
    def sought(self) -> Sought:
        """The likeliest."""
        return Sought(1)

    def select(
        self,
        logits: Tensor,
        uniforms: Tensor | None = None,
        part: VocabPart | None = None,
        first: Scan | None = None,
    ) -> Selection:
        """Draw from `logits [n, v] float32` (overwritten) with `uniforms [n, 1] float64` in [0, 1).

        Slots hold distinct ids in ascending order; free ones repeat the first, not kept.
        """
        assert uniforms is not None, "a random estimator is called with its uniform numbers"
        first = first or scan(logits, self.sought, part)
        largest, top = merged(first.top, first.ids, 1, part)
        if self.temperatures[0] != 1.0:
            logits.div_(self.temperatures[0])
            largest = largest / self.temperatures[0]
        mass, ends, rest, spread = line_of(logits, largest, top, part)
        total = 1.0 + rest[:, None]
        # 1 - u is in (0, 1]: no tooth can fall before the first id that has a mass.
        teeth = torch.arange(self.k, device=mass.device) + (1.0 - uniforms.double().view(-1, 1))
        drawn = find(mass, ends, teeth * (total / self.k), part)
        ids, counts = counted(drawn)
        return Selection(
            ids,
            (counts.log() - torch.tensor(float(self.k)).log()).float(),
            torch.full_like(largest, -torch.inf),
            largest[:, 0] + rest.log1p().float(),
            self.temperatures[0],
            Whole(top[:, 0], largest[:, 0], rest.log1p(), entropy_of(rest, spread))
            if self.gives_whole
            else None,
        )
