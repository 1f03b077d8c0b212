"""`topk`: the k largest logits, with the exact mass of all others at every temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from softlabels.errors import ConfigError
from softlabels.estimators import Selection

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TopK", "check_k", "check_temperatures"]


def check_k(k: int) -> None:
    """Refuse a kept set without ids."""
    if k < 1:
        raise ConfigError(f"--k {k}: at least one id must be kept at each position")


def check_temperatures(temperatures: tuple[float, ...]) -> None:
    """Refuse an empty grid, repeats, and temperatures that are not finite and positive."""
    if not temperatures:
        raise ConfigError("--temperature: give at least one")
    for t in temperatures:
        if not (0 < t < float("inf")):
            raise ConfigError(f"--temperature {t}: expected a finite number above 0")
    if len(set(temperatures)) != len(temperatures):
        raise ConfigError(f"--temperature: {sorted(temperatures)} names one twice")


@dataclass(frozen=True, kw_only=True)
class TopK:
    """Keep the k largest logits of each position; deterministic."""

    name: ClassVar[str] = "topk"
    random: ClassVar[bool] = False

    k: int
    """Ids kept at each position."""
    temperatures: tuple[float, ...] = (1.0,)
    """The grid. 1 must be in it: files show log-probabilities at T=1."""

    def __post_init__(self) -> None:
        check_k(self.k)
        check_temperatures(self.temperatures)
        if 1.0 not in self.temperatures:
            raise ConfigError(
                f"--temperature {list(self.temperatures)}: a topk store also needs T=1 (it costs 2 bytes a "
                "position); add --temperature 1"
            )

    def check_vocab(self, vocab_size: int) -> None:
        """Refuse more ids than there are."""
        if self.k > vocab_size:
            raise ConfigError(f"--k {self.k}: the teacher's vocabulary has only {vocab_size} ids")

    def select(self, logits: Tensor, uniforms: Tensor | None = None) -> Selection:
        """Select from `logits [n, V] float32`, which is overwritten.

        The tail is a log-sum-exp over the ids *not* kept, never `1 - sum`: a tail of 1e-9 keeps all its
        digits. `[n, V]` is passed over once per temperature.
        """
        top, ids = logits.topk(self.k, dim=1)
        largest = top[:, :1]
        gaps = largest - top
        rest = logits.sub_(largest).scatter_(1, ids, -torch.inf)
        odds = []
        log_norm = gaps  # replaced below: 1.0 is in the grid
        for t in self.temperatures:
            head = torch.logsumexp(gaps / -t, dim=1)
            tail = torch.logsumexp(rest if t == 1.0 else rest / t, dim=1)
            odds.append(tail - head)
            if t == 1.0:
                log_norm = torch.logaddexp(head, tail)[:, None]
        return Selection(
            ids, -gaps - log_norm, torch.stack(odds, dim=1), (largest + log_norm)[:, 0], 1.0
        )
