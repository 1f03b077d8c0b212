"""`rs`: draws with replacement, their counts as weights (RS-KD, arXiv 2503.16870). The published baseline.

Unbiased like `sampled`, with about 1.5 times its squared error at the same number of distinct ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from softlabels.core.kept import BUILT_IN, KeptSet
from softlabels.estimators import Estimator, Selection
from softlabels.estimators.blocks import find, line_of
from softlabels.estimators.entropy import Whole, entropy_of
from softlabels.estimators.scan import Scan, Sought, scan
from softlabels.estimators.topk import check_k
from softlabels.estimators.vocab_parallel import VocabPart, merged

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RandomSampling(Estimator):
    """Draw k times from the teacher at one temperature; keep each distinct id at its share of the draws."""

    keeps: ClassVar[KeptSet] = BUILT_IN["rs"]
    counts: ClassVar[bool] = True
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

    @property
    def uniforms(self) -> int:
        """One random number for each draw."""
        return self.k

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
        """Draw from `logits [n, v] float32` (overwritten) with `uniforms [n, k] float64` in [0, 1).

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
        # 1 - u is in (0, 1]: no draw can fall on an id of no mass.
        points = (1.0 - uniforms.double().sort(1, descending=True).values) * total
        drawn = find(mass, ends, points, part)
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


def counted(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct ids of ascending draws `[n, k]`, and how often each was drawn, `float64`, 0 in slots that are free.

    Free slots repeat the first id.
    """
    first = torch.ones_like(drawn, dtype=torch.bool)
    first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    slot = first.cumsum(1) - 1
    one = torch.ones((), dtype=torch.float64, device=drawn.device).expand_as(drawn)
    counts = torch.zeros_like(drawn, dtype=torch.float64).scatter_add_(1, slot, one)
    return drawn[:, :1].repeat(1, drawn.shape[1]).scatter_(1, slot, drawn), counts
