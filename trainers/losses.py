"""A divergence from the teacher over K+1 bins, mixed with the hard-label loss in one pass.

The bins are the kept ids and, for estimators that have one, the tail as a single bin. The student's bins
come from `topk_tail`; the teacher's from the store; the divergence from `divergences.py`.

The soft loss is multiplied by T² inside what is differentiated (Hinton et al. 2015, §2: gradients of soft
targets scale with 1/T²), so that value and gradient belong together.

A hard-label-only position has no soft target. The soft loss is a mean over the M positions that have one, the
hard loss a mean over all N, both of the whole optimiser step:

    loss = alpha T² (sum of soft over M) / M + (1 - alpha) (sum of hard over N) / N

so alpha weighs the two means, whatever the share of soft positions, and a hard-label-only position
counts in the second alone. With M = N it is the mean over positions of both together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from softlabels.errors import ConfigError, PairingError
from softlabels.store.manifest import TargetRecord
from softlabels.targets import UNBIASED, SoftTargets
from trainers.divergences import DIVERGENCES, Shape
from trainers.stream import Batch
from trainers.topk_tail import Columns, Head, topk_tail

__all__ = [
    "DistillLoss",
    "LossOutput",
    "check_pairing",
    "teacher_bins",
]


NOT_LINEAR = "it is not linear in the teacher's probabilities, so unbiased samples bias it"


def check_pairing(divergence: str, temperature: float, targets: TargetRecord) -> None:
    """Refuse a loss that the store cannot serve, in one sentence.

    Raises:
        ConfigError: no such divergence.
        PairingError: not with this estimator, or not at this temperature.
    """
    if divergence not in DIVERGENCES:
        raise ConfigError(
            f"--loss {divergence!r}: known losses are {', '.join(sorted(DIVERGENCES))}"
        )
    if targets.estimator in UNBIASED and not DIVERGENCES[divergence].takes_samples:
        raise PairingError(
            f"--loss {divergence} does not go with a {targets.estimator!r} store: {NOT_LINEAR}; use --loss "
            "forward_kl, or a store built with --estimator topk"
        )
    if temperature not in targets.temperatures:
        grid = ", ".join(f"{t:g}" for t in targets.temperatures)
        raise PairingError(
            f"--temperature {temperature:g} is not in the store's grid ({grid}), and a truncated head does not "
            f"determine it; use one of the grid, or build a store with --temperature {temperature:g}"
        )


def teacher_bins(targets: SoftTargets, temperature: float, device: torch.device) -> Tensor:
    """The teacher's log-probabilities `[N, K+1] float32`: kept ids, then the tail (`-inf`: none)."""
    head = targets.log_probs(temperature)
    odds = targets.log_odds[:, targets.grid_index(temperature)]
    tail = -np.logaddexp(np.float32(0), -odds)
    return torch.from_numpy(np.concatenate([head, tail[:, None]], axis=1, dtype=np.float32)).to(
        device
    )


class LossOutput(NamedTuple):
    """A loss and what it was made of."""

    loss: Tensor
    """Scalar to differentiate: `alpha T² soft / soft_positions + (1 - alpha) hard / positions`."""
    soft: float
    """Sum over the M soft positions of the divergence at T (without T²); 0 if alpha is 0."""
    hard: float
    """Sum over N of the cross-entropy with the labels, at T=1."""
    teacher_tail: float
    """Sum over M of the teacher's mass outside the kept ids, at T."""
    student_tail: float
    """Sum over M of the student's mass outside the kept ids, at T."""


@dataclass(frozen=True, kw_only=True)
class DistillLoss:
    """`alpha * T² * divergence + (1 - alpha) * cross-entropy`: means over soft and over all positions."""

    divergence: str = "forward_kl"
    """A name in `DIVERGENCES`."""
    temperature: float = 1.0
    """T of the soft loss; the hard loss is always at T=1."""
    alpha: float = 0.5
    """Share of the soft loss, 0 to 1. At 0 the targets are not touched."""
    beta: float = 0.5
    """Of `jsd`: the teacher's share of the mixture."""
    skew: float = 0.1
    """Of the skewed divergences: the share mixed in."""
    chunk_bytes: int | None = None
    """Budget of one chunk of logits; None: 16 MiB on a CPU, 256 MiB on a GPU."""

    def __post_init__(self) -> None:
        if self.divergence not in DIVERGENCES:
            raise ConfigError(
                f"--loss {self.divergence!r}: known losses are {', '.join(sorted(DIVERGENCES))}"
            )
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(
                f"--alpha {self.alpha}: expected 0 (hard labels only) to 1 (soft targets only)"
            )
        for name in ("beta", "skew"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(
                    f"--{name} {getattr(self, name)}: expected a share between 0 and 1, both excluded"
                )
        if not 0.0 < self.temperature < float("inf"):
            raise ConfigError(f"--temperature {self.temperature}: expected a finite number above 0")

    def check(self, targets: TargetRecord) -> None:
        """Refuse a store that cannot serve this loss; nothing is asked of it if alpha is 0."""
        if self.alpha > 0:
            check_pairing(self.divergence, self.temperature, targets)

    def __call__(
        self,
        hidden: Tensor,
        head: Head,
        batch: Batch,
        *,
        positions: int | None = None,
        soft_positions: int | None = None,
    ) -> LossOutput:
        """Loss of one micro-batch.

        Args:
            hidden: `[B, S, D]` of the student, or `[N, D]` at the batch's positions.
            head: the student's head.
            batch: with its labels and targets.
            positions: what to divide the hard loss by: all positions of the whole optimiser step. Default N.
            soft_positions: what to divide the soft loss by: those of the step that have a soft target. Default:
                `positions`, or M where that is not given either.

        Raises:
            PairingError: the targets cannot serve this loss.
            ConfigError: `positions` alone, of a batch in which some are hard-label only.
        """
        if hidden.dim() == 3:
            hidden = hidden.flatten(0, 1).index_select(0, batch.flat_positions)
        targets = batch.targets
        soft_on = self.alpha > 0
        if soft_on:
            self._check_targets(targets)
        n = len(batch.labels)
        device = hidden.device
        ids = (
            torch.from_numpy(targets.ids.astype(np.int64)).to(device)
            if soft_on
            else batch.labels.new_empty((n, 0))
        )
        kept = torch.from_numpy(targets.kept).to(device) if soft_on else ids.bool()
        out: Columns = topk_tail(
            hidden,
            head,
            ids,
            kept,
            batch.labels,
            temperature=self.temperature if soft_on else 1.0,
            chunk_bytes=self.chunk_bytes,
        )
        hard = (out.lse - out.label_logit).sum()
        divide = max(positions if positions is not None else n, 1)
        if not soft_on:
            return LossOutput(hard / divide, 0.0, hard.item(), 0.0, 0.0)
        m = batch.soft_positions
        columns = out.columns
        if m < n:
            if positions is not None and soft_positions is None:
                raise ConfigError(
                    f"positions={positions} without soft_positions: {n - m} of the batch's {n} positions are "
                    "hard-label only; give the number of soft positions of the whole optimiser step, too"
                )
            soft_places = np.flatnonzero(targets.soft)
            targets = targets[soft_places]
            columns = columns.index_select(0, torch.from_numpy(soft_places).to(device))
        divide_soft = m if positions is None else positions
        divide_soft = max(divide_soft if soft_positions is None else soft_positions, 1)
        log_p = teacher_bins(targets, self.temperature, device).to(columns.dtype)
        log_q = torch.log_softmax(columns, dim=1)
        soft = DIVERGENCES[self.divergence].value(log_p, log_q, Shape(self.beta, self.skew)).sum()
        weight = (
            self.alpha * self.temperature**2 * (divide / divide_soft)
        )  # of 1 where all are soft
        loss = (weight * soft + (1.0 - self.alpha) * hard) / divide
        return LossOutput(
            loss,
            soft.item(),
            hard.item(),
            log_p[:, -1].exp().sum().item(),
            log_q[:, -1].detach().exp().sum().item(),
        )

    def _check_targets(self, targets: SoftTargets) -> None:
        if targets.estimator in UNBIASED and not DIVERGENCES[self.divergence].takes_samples:
            raise PairingError(
                f"{self.divergence} does not go with {targets.estimator!r} targets: {NOT_LINEAR}"
            )
        targets.grid_index(self.temperature)
