"""`minp?share=0.05`: the ids that have at least that share of the likeliest id's probability, and at most k of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from softlabels.errors import ConfigError
from softlabels.estimators import Estimator, KeptSet, Selection


@dataclass(frozen=True, kw_only=True)
class MinP(Estimator):
    keeps: ClassVar[KeptSet] = KeptSet(largest=True)

    k: int
    temperatures: tuple[float, ...] = (1.0,)
    share: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"--estimator minp?share={self.share}: expected a share above 0")

    def select(self, logits: Tensor, uniforms: Tensor | None) -> Selection:
        z = logits.double()
        top, ids = z.topk(self.k, dim=1)
        kept = top >= top[:, :1] + math.log(self.share)
        outside = z.scatter(1, ids, torch.where(kept, -torch.inf, top))
        odds = [
            torch.logsumexp(outside / t, 1)
            - torch.logsumexp(top.masked_fill(~kept, -torch.inf) / t, 1)
            for t in self.temperatures
        ]
        log_norm = torch.logsumexp(z, 1)
        logp = (top - log_norm[:, None]).masked_fill(~kept, -torch.inf)
        return Selection(
            ids, logp.float(), torch.stack(odds, 1).float(), log_norm.float(), reference=1.0
        )
