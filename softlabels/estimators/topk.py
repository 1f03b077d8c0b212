"""`topk`: the k largest logits, with the exact mass of all others at every temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from softlabels.core.targets import LARGEST_GRID
from softlabels.errors import ConfigError
from softlabels.estimators import Selection
from softlabels.estimators.largest import largest
from softlabels.estimators.tail import log_odds, log_tail, whole_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TopK", "check_grid", "check_k", "check_temperatures", "check_vocab"]


def check_k(k: int) -> None:
    """Refuse a kept set without ids."""
    if k < 1:
        raise ConfigError(f"--k {k}: at least one id must be kept at each position")


def check_temperatures(temperatures: tuple[float, ...]) -> None:
    """Refuse an empty grid, repeats, and temperatures that are not finite and positive."""
    if not temperatures:
        raise ConfigError("--temperature: give at least one")
    if len(temperatures) > LARGEST_GRID:
        raise ConfigError(f"--temperature: {len(temperatures)} of them, at most {LARGEST_GRID}")
    for t in temperatures:
        if not (0 < t < float("inf")):
            raise ConfigError(f"--temperature {t}: expected a finite number above 0")
    if len(set(temperatures)) != len(temperatures):
        raise ConfigError(f"--temperature: {sorted(temperatures)} names one twice")


def check_grid(temperatures: tuple[float, ...]) -> None:
    """Refuse a grid without 1: files show log-probabilities at T=1."""
    check_temperatures(temperatures)
    if 1.0 not in temperatures:
        raise ConfigError(
            f"--temperature {list(temperatures)}: this estimator also needs T=1 (it costs 2 bytes a "
            "position); add --temperature 1"
        )


def check_vocab(k: int, vocab_size: int) -> None:
    """Refuse more ids than there are."""
    if k > vocab_size:
        raise ConfigError(f"--k {k}: the teacher's vocabulary has only {vocab_size} ids")


@dataclass(frozen=True, kw_only=True)
class TopK:
    """Keep the k largest logits of each position; deterministic."""

    name: ClassVar[str] = "topk"
    uniforms: ClassVar[int] = 0
    gives_whole: ClassVar[bool] = True

    k: int
    """Ids kept at each position."""
    temperatures: tuple[float, ...] = (1.0,)
    """The grid. 1 must be in it."""

    def __post_init__(self) -> None:
        check_k(self.k)
        check_grid(self.temperatures)

    def check_vocab(self, vocab_size: int) -> None:
        """Refuse more ids than there are."""
        check_vocab(self.k, vocab_size)

    def select(self, logits: Tensor, uniforms: Tensor | None = None) -> Selection:
        """Select from `logits [n, V] float32`, which is overwritten."""
        k = self.k
        top, ids = largest(logits, min(k + 1, logits.shape[1]))  # and the largest of the tail
        gaps = top[:, :1].double() - top.double()
        tail = log_tail(logits, ids[:, :k], top[:, k:], self.temperatures)
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
