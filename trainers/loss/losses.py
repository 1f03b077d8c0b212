"""A divergence from the teacher over K+1 bins, mixed with the hard-label loss in one pass.

The bins are the kept ids and, for estimators that have one, the tail as a single bin. The student's bins
come from `topk_tail`; the teacher's from the store; the divergence from `divergences.py`.

The soft loss is multiplied by T² inside what is differentiated (Hinton et al. 2015, §2: gradients of soft
targets scale with 1/T²), so that value and gradient belong together.

A hard-label-only position has no soft target. The soft loss is a mean over the M positions that have one, the
hard loss a mean over all N, both of the whole optimiser step:

    loss = alpha T² (sum of soft over M) / M + (1 - alpha) (sum of hard over N) / N

so alpha weighs the two means, whatever the share of soft positions, and a hard-label-only position
counts in the second alone. With M = N it is the mean over positions of both together. A position without a label
counts in the first alone: N are those that have one.

With position weights (`weights.py`) the soft mean is a weighted one: sum of w soft over the sum of w, both of the
whole step, so the mean weight is 1. The hard part is cross-entropy with label smoothing, plus z-loss, each exact
over all of V.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from softlabels.core.rows import UNLABELLED
from softlabels.core.targets import UNBIASED, SoftTargets
from softlabels.errors import ConfigError, PairingError
from softlabels.format.identity import TargetRecord
from trainers.data.stream import Batch
from trainers.loss.divergences import DIVERGENCES, Shape
from trainers.loss.head_chunks import accumulator
from trainers.loss.position_weights import WEIGHTS, teacher_bins
from trainers.loss.topk_tail import Columns, Head, topk_tail_loss

__all__ = [
    "DistillLoss",
    "LossOutput",
    "check_pairing",
    "teacher_bins",
]


Int64 = npt.NDArray[np.int64]
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


class LossOutput(NamedTuple):
    """A loss and what it was made of. Sums are over N positions, or M that have a soft target."""

    loss: Tensor
    """Scalar to differentiate: `alpha T² soft_weighted / soft_divisor + (1 - alpha) hard_part / positions`, and
    the cosine loss."""
    soft: float
    """Sum over M of the divergence at T (without T² and weights); 0 if alpha is 0."""
    hard: float
    """Sum over N of the cross-entropy with the labels, at T=1 (without smoothing and z-loss)."""
    teacher_tail: float
    """Sum over M of the teacher's mass outside the kept ids, at T."""
    student_tail: float
    """Sum over M of the student's mass outside the kept ids, at T."""
    agreement: float
    """Of the M, at how many the student's most likely id of all V is the teacher's."""
    soft_weighted: float
    """Sum over M of weight times divergence; `soft` without weights."""
    hard_part: float
    """Sum over N of smoothed cross-entropy and z-loss; `hard` without either."""
    cosine: float
    """Sum over all positions of 1 - cosine of the hidden states; 0 if they are not compared."""


@dataclass(frozen=True, kw_only=True)
class DistillLoss:
    """`alpha * T² * divergence + (1 - alpha) * hard part`: means over soft and over all positions."""

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
    weight: str = "even"
    """Of positions in the soft loss: a name in `WEIGHTS`."""
    label_smoothing: float = 0.0
    """e, 0 to below 1: the label counts 1 - e, and e is spread evenly over all V ids. Of the hard part."""
    cosine: float = 0.0
    """Times 1 - the cosine between the last hidden states of student and teacher, a mean over all positions; beside
    alpha, which does not weigh it (the third loss of DistilBERT, Sanh et al. 2019)."""
    z_loss: float = 0.0
    """Times the square of the log-sum-exp of the logits, at T=1. Of the hard part."""
    chunk_bytes: int | None = None
    """Budget of all that is V wide; None: 64 MiB on a CPU, 256 MiB on a GPU."""

    def __post_init__(self) -> None:
        for flag, name, known in (
            ("loss", self.divergence, DIVERGENCES),
            ("weight", self.weight, WEIGHTS),
        ):
            if name not in known:
                raise ConfigError(f"--{flag} {name!r}: known are {', '.join(sorted(known))}")
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
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(
                f"--label-smoothing {self.label_smoothing}: expected a share from 0 to below 1"
            )
        for name in ("z_loss", "cosine"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ConfigError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: expected a finite number, at least 0"
                )

    def check(self, targets: TargetRecord) -> None:
        """Refuse a store that cannot serve this loss; nothing is asked of it if alpha is 0."""
        if self.alpha > 0:
            check_pairing(self.divergence, self.temperature, targets)

    def notices(self, targets: TargetRecord) -> list[str]:
        """What to know of this loss on this store, in one sentence each."""
        if self.alpha > 0 and self.weight != "even" and targets.estimator in UNBIASED:
            return [
                f"--weight {self.weight} reads its weight from the same {targets.estimator!r} sample as the loss, so "
                "the gradient is no longer unbiased; leave --weight out, or use a store built with --estimator topk"
            ]
        return []

    def soft_divisor(self, batch: Batch) -> float:
        """What the batch adds to the divisor of the soft loss: its M soft positions, or the sum of their weights."""
        if self.weight == "even" or self.alpha == 0:
            return float(batch.soft_positions)
        return float(self._weights(batch, _soft_places(batch)).sum())

    def __call__(
        self,
        hidden: Tensor,
        head: Head,
        batch: Batch,
        *,
        positions: int | None = None,
        soft_positions: float | None = None,
        layer: Tensor | None = None,
        all_positions: int | None = None,
    ) -> LossOutput:
        """Loss of one micro-batch.

        Args:
            hidden: `[B, S, D]` of the student, or `[N, D]` at the batch's positions.
            head: the student's head.
            batch: with its labels and targets.
            positions: what to divide the hard loss by: all labelled positions of the whole optimiser step. Default:
                those of the batch.
            soft_positions: what to divide the soft loss by: the sum of `soft_divisor` over the step. Default:
                that of this batch, or `positions` where that is given, all are soft and labelled and weights are even.
            layer: `[N, D]`: what the student's last layer gave at the positions, for the cosine loss.
            all_positions: what to divide the cosine loss by: all positions of the step. Default: those of the batch.

        Raises:
            PairingError: the targets cannot serve this loss.
            ConfigError: `positions` alone, of a batch in which some are hard-label only, or with weights.
        """
        hidden = batch.at_positions(
            hidden
        )  # ignored ones end here, before any product with the head
        soft_on = self.alpha > 0
        n, device, dtype = len(batch.labels), hidden.device, accumulator(hidden)
        if soft_on:
            self._check_targets(batch.targets)
            ids = torch.from_numpy(batch.targets.ids.astype(np.int64)).to(device)
            kept = torch.from_numpy(batch.targets.kept).to(device)
        else:
            ids = batch.labels.new_empty((n, 0))
            kept = ids.bool()
        divide = max(positions if positions is not None else batch.labelled_positions, 1)
        chunk = _ChunkLoss(self, batch, device, dtype)
        chunk.divide = divide
        if soft_on:
            if positions is not None and soft_positions is None:
                if self.weight != "even" or batch.soft_positions < n or chunk.labelled is not None:
                    raise ConfigError(
                        f"positions={positions} without soft_positions: {n - batch.soft_positions} of the batch's {n} "
                        f"positions are hard-label only and --weight is {self.weight}; give the sum of `soft_divisor` "
                        "over the whole optimiser step, too"
                    )
                soft_positions = positions
            elif soft_positions is None:
                soft_positions = self.soft_divisor(batch)
            chunk.soft_scale = self.alpha * self.temperature**2
            # A step without soft positions divides nothing; one of weights close to 0 divides by just these.
            chunk.soft_scale *= divide / (soft_positions or 1.0)  # of 1 where all are soft
        loss = topk_tail_loss(
            hidden,
            head,
            ids,
            kept,
            batch.labels.clamp(min=0),
            chunk,
            temperature=self.temperature if soft_on else 1.0,
            chunk_bytes=self.chunk_bytes,
            with_mean=self.label_smoothing > 0,
        )
        cosine = 0.0
        if self.cosine > 0:
            apart = cosine_distance(layer, batch.targets).sum()
            cosine = float(apart.detach())
            loss = loss + self.cosine * apart / max(all_positions or n, 1)
        sums = [*chunk.sums.tolist(), cosine]
        return LossOutput(loss, *sums)

    def _weights(self, batch: Batch, places: Int64) -> npt.NDArray[np.float64]:
        labels = batch.labels.cpu().numpy()[places]
        return WEIGHTS[self.weight](batch.targets[places], labels, self.temperature)

    def _check_targets(self, targets: SoftTargets) -> None:
        known = DIVERGENCES[self.divergence]
        if targets.estimator in UNBIASED:
            if not known.takes_samples:
                raise PairingError(
                    f"{self.divergence} does not go with {targets.estimator!r} targets: {NOT_LINEAR}"
                )
        elif not known.without_tail and _lacks_tail(targets, self.temperature):
            raise PairingError(
                f"{self.divergence} needs the teacher's tail, and these {targets.estimator!r} targets keep "
                f"{targets.k} of {targets.vocab_size} ids and no mass outside: the student would be pushed out of the "
                "kept ids; build the store from full logits, or use --loss forward_kl (which they bias)"
            )
        targets.grid_index(self.temperature)


def cosine_distance(layer: Tensor | None, targets: SoftTargets) -> Tensor:
    """`[N]`: 1 - cosine between the student's hidden states `[N, D]` and the stored ones.

    Raises:
        PairingError: either is not there, or their widths differ.
    """
    stored = targets.hidden
    if layer is None or stored is None or layer.shape[1] != stored.shape[1]:
        raise PairingError(
            f"--cosine: the student's last layer is {'not known' if layer is None else f'{layer.shape[1]} wide'}, the "
            f"store's hidden states are {'not there' if stored is None else f'{stored.shape[1]} wide'}; they can be "
            "compared only if both are of one width"
        )
    theirs = torch.from_numpy(stored).to(layer.device, accumulator(layer))
    return 1.0 - torch.cosine_similarity(layer.to(theirs.dtype), theirs, dim=1)


def _lacks_tail(targets: SoftTargets, temperature: float) -> bool:
    """Whether no position has mass outside, although ids are missing: a head cut off and renormalised."""
    odds = targets.log_odds[:, targets.grid_index(temperature)]
    return bool(targets.n and np.isneginf(odds).all() and targets.k < targets.vocab_size)


def _soft_places(batch: Batch) -> Int64:
    return np.flatnonzero(batch.targets.soft)


class _ChunkLoss:
    """The loss of one chunk of columns, adding up what it is made of."""

    divide = 1.0
    soft_scale = 0.0

    def __init__(
        self, loss: DistillLoss, batch: Batch, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.loss, self.device = loss, device
        self.labelled = None
        if batch.labelled_positions < len(batch.labels):
            self.labelled = (batch.labels != UNLABELLED).to(device)
        self.sums = torch.zeros(7, dtype=dtype, device=device)
        self.soft_on = loss.alpha > 0
        if not self.soft_on:
            return
        self.places = _soft_places(batch)
        self.all_soft = len(self.places) == len(batch.labels)
        targets = batch.targets if self.all_soft else batch.targets[self.places]
        self.log_p = teacher_bins(targets, loss.temperature, device, dtype)
        slots = targets.gaps.argmin(axis=1) if targets.k else np.zeros(0, np.int64)
        self.top_slot = torch.from_numpy(slots[:, None]).to(device)
        self.weights = (
            None
            if loss.weight == "even"
            else torch.from_numpy(loss._weights(batch, self.places)).to(device, dtype)
        )

    def __call__(self, out: Columns, part: slice) -> Tensor:
        config = self.loss
        cross_entropy = out.lse - out.label_logit
        known = None if self.labelled is None else self.labelled[part]
        if known is not None:
            cross_entropy = torch.where(known, cross_entropy, 0.0)
        hard = (part_of_hard := cross_entropy).sum()
        if config.label_smoothing or config.z_loss:
            e = config.label_smoothing
            part_of_hard = out.lse - (1 - e) * out.label_logit - e * out.mean_logit
            part_of_hard = part_of_hard + config.z_loss * out.lse**2
            if known is not None:
                part_of_hard = torch.where(known, part_of_hard, 0.0)
        hard_part = part_of_hard.sum()
        total = (1.0 - config.alpha) * hard_part
        zero = hard.new_zeros(())
        soft_sums = [zero] * 5
        if self.soft_on:
            soft_sums = self._soft(out, part)
            total = self.soft_scale * soft_sums[-1] + total
        soft, teacher_tail, student_tail, agreement, weighted = soft_sums
        sums = [soft, hard, teacher_tail, student_tail, agreement, weighted, hard_part]
        self.sums += torch.stack(sums).detach()
        return total / self.divide

    def _soft(self, out: Columns, part: slice) -> list[Tensor]:
        """Sums over the chunk's soft positions: divergence, both tails, agreement, weighted divergence."""
        columns, tail_top = out.columns, out.tail_top
        here = part
        if not self.all_soft:
            first, last = np.searchsorted(self.places, [part.start, part.stop])
            here = slice(int(first), int(last))
            rows = torch.from_numpy(self.places[here] - part.start).to(self.device)
            columns, tail_top = columns.index_select(0, rows), tail_top.index_select(0, rows)
        log_p = self.log_p[here]
        log_q = torch.log_softmax(columns, dim=1)
        shape = Shape(self.loss.beta, self.loss.skew)
        soft = DIVERGENCES[self.loss.divergence].value(log_p, log_q, shape)
        weighted = soft if self.weights is None else soft * self.weights[here]
        agree = soft.new_zeros(())
        if len(soft) and columns.shape[1] > 1:
            heads = columns.detach()[:, :-1]
            best = torch.maximum(heads.amax(dim=1), tail_top)
            agree = (heads.gather(1, self.top_slot[here])[:, 0] >= best).sum().to(soft.dtype)
        tails = log_p[:, -1].exp().sum(), log_q[:, -1].exp().sum()
        return [soft.sum(), *tails, agree, weighted.sum()]
