"""`topk`: the k largest logits, with the exact mass of all others at every temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from softlabels.core.kept import BUILT_IN, KeptSet
from softlabels.errors import ConfigError
from softlabels.estimators import Estimator, Selection
from softlabels.estimators.scan import Scan, Sought, scan
from softlabels.estimators.tail import log_odds, log_tail, whole_of
from softlabels.estimators.vocab_parallel import VocabPart, merged

if TYPE_CHECKING:
    from torch import Tensor


def check_k(k: int) -> None:
    """Refuse a kept set without ids."""
    if k < 1:
        raise ConfigError(f"--k {k}: at least one id must be kept at each position")


@dataclass(frozen=True, kw_only=True)
class TopK(Estimator):
    """Keep the k largest logits of each position; deterministic."""

    keeps: ClassVar[KeptSet] = BUILT_IN["topk"]
    gives_whole: ClassVar[bool] = True
    takes_lists: ClassVar[bool] = True
    deals: ClassVar[bool] = True

    k: int = 50
    """Ids kept at each position."""
    temperatures: tuple[float, ...] = (1.0,)
    """The grid. 1 must be in it."""

    def __post_init__(self) -> None:
        check_k(self.k)

    @property
    def sought(self) -> Sought:
        """Its ids, the next one, and the tail beyond them."""
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
        top, ids = merged(first.top, first.ids, k + 1, part)  # and the largest of the tail
        gaps = top[:, :1].double() - top.double()
        tail = first.tail or log_tail(logits, ids[:, :k], top[:, k:], self.temperatures, part)
        odds = log_odds(gaps[:, :k], None, gaps[:, k:], tail.logs, self.temperatures)
        one = self.temperatures.index(1.0)
        # kept mass = sigmoid(-odds): the normaliser at T=1, without another pass over V.
        log_norm = torch.logsumexp(-gaps[:, :k], dim=1) + torch.nn.functional.softplus(odds[:, one])
        return Selection(
            ids[:, :k],
            (-gaps[:, :k] - log_norm[:, None]).float(),
            odds.float(),
            (top[:, 0] + log_norm).float(),
            1.0,
            whole_of(ids, top, gaps[:, :k], gaps[:, k:], tail, one),
        )
