"""`topp`: the fewest ids that reach a share of the mass, with the exact mass of all others.

A certain teacher costs one or two ids, an uncertain one many: K differs from position to position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from softlabels.core.kept import BUILT_IN, KeptSet
from softlabels.errors import ConfigError
from softlabels.estimators import Estimator, Selection
from softlabels.estimators.scan import Scan, Sought, scan
from softlabels.estimators.tail import log_odds, log_tail, whole_of
from softlabels.estimators.topk import check_k
from softlabels.estimators.vocab_parallel import VocabPart, merged

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TopP(Estimator):
    """Keep the largest logits until they hold mass `top_p` at T=1; deterministic."""

    keeps: ClassVar[KeptSet] = BUILT_IN["topp"]
    gives_whole: ClassVar[bool] = True
    deals: ClassVar[bool] = True

    k: int = 50
    """Ids kept at a position, at most."""
    top_p: float
    """Mass at T=1 that the kept ids reach, unless `k` ends them."""
    min_k: int = 1
    """Ids kept at a position, at least."""
    temperatures: tuple[float, ...] = (1.0,)
    """The grid. 1 must be in it."""

    def __post_init__(self) -> None:
        check_k(self.k)
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(
                f"--top-p {self.top_p}: expected a share of the mass, above 0 and at most 1"
            )
        if not 1 <= self.min_k <= self.k:
            raise ConfigError(f"--min-k {self.min_k}: expected 1 to --k {self.k}")

    @property
    def sought(self) -> Sought:
        """All that may be kept, the next one, and the tail beyond them."""
        return Sought(self.k + 1, self.temperatures)

    def select(
        self,
        logits: Tensor,
        uniforms: Tensor | None = None,
        part: VocabPart | None = None,
        first: Scan | None = None,
    ) -> Selection:
        """Select from `logits [n, v] float32`, which is overwritten."""
        k = self.k
        first = first or scan(logits, self.sought, part)
        top, ids = merged(first.top, first.ids, k + 1, part)  # and the largest of the rest
        gaps = top[:, :1].double() - top.double()
        tail = first.tail or log_tail(logits, ids[:, :k], top[:, k:], self.temperatures, part)
        gaps, beyond_gap, ids = gaps[:, :k], gaps[:, k:], ids[:, :k]
        one = self.temperatures.index(1.0)
        rest = tail.logs[:, one] - beyond_gap.sum(1)
        log_norm = torch.logaddexp(torch.logsumexp(-gaps, dim=1), rest)[:, None]
        logp = -gaps - log_norm
        # Kept while those before it have not reached the mass: the one that crosses it is kept, too.
        before = logp.exp().cumsum(1).roll(1, dims=1)
        before[:, 0] = 0.0
        rank = torch.arange(ids.shape[1], device=logits.device)
        kept = (before < self.top_p) | (rank < self.min_k)
        odds = log_odds(gaps, kept, beyond_gap, tail.logs, self.temperatures)
        return Selection(
            ids,
            logp.masked_fill(~kept, -torch.inf).float(),
            odds.float(),
            (top[:, 0] + log_norm[:, 0]).float(),
            1.0,
            whole_of(ids, top, gaps, beyond_gap, tail, one),
        )
