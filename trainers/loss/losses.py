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

With position weights (`position_weights.py`) the soft mean is a weighted one: sum of w soft over the sum of w, both of
the whole step, so the mean weight is 1. N, M and that sum are the step's `StepTotals`.

The hard part is cross-entropy with label smoothing, plus z-loss, each exact over all of V.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from softlabels.core.targets import SoftTargets
from softlabels.errors import PairingError
from softlabels.format.identity import TargetRecord
from trainers.data.batch import COUNTED, Batch
from trainers.loss.called_head import CalledChunks, CalledHead
from trainers.loss.chunk_losses import FullChunkLoss, StoreChunkLoss
from trainers.loss.divergences import DIVERGENCES
from trainers.loss.full import full_loss
from trainers.loss.head import Head, accumulator
from trainers.loss.head_chunks import Chunks, HeadChunks
from trainers.loss.sampled import SampledChunkLoss, kept_ids
from trainers.loss.settings import SAMPLED, LossSettings
from trainers.loss.topk_tail import topk_tail_loss
from trainers.loss.totals import StepTotals, add_up


class LossOutput(NamedTuple):
    """A loss and the sums that it was made of, over N positions that have a label, or M that have a soft target."""

    loss: Tensor
    """Scalar to differentiate, in terms of `means`: `alpha T² soft_weighted + (1 - alpha) hard_part`, and the cosine
    loss."""
    soft: float
    """Sum over M of the divergence at T (without T² and weights); 0 if alpha is 0."""
    hard: float
    """Sum over N of the cross-entropy with the labels, at T=1 (without smoothing and z-loss)."""
    teacher_tail: float
    """Sum over M of the teacher's mass outside the kept ids, at T."""
    student_tail: float
    """Sum over M of the student's mass outside the kept ids, at T."""
    agreement: float
    """At how many of the M the student's most likely id of all V is the teacher's."""
    soft_weighted: float
    """Sum over M of weight times divergence; `soft` without weights."""
    hard_part: float
    """Sum over N of smoothed cross-entropy and z-loss; `hard` without either."""
    cosine: float
    """Sum over all positions of 1 - cosine of the hidden states; 0 if they are not compared."""

    @classmethod
    def over(cls, parts: Iterable[Sequence[float]]) -> LossOutput:
        """Of a step: the outputs of its micro-batches on all ranks, added up."""
        loss, *sums = add_up(parts)
        return cls(torch.tensor(loss, dtype=torch.float64), *sums)

    def means(self, totals: StepTotals) -> dict[str, float]:
        """Each sum over its own positions of the whole step: `hard` by the labelled, `soft` by the soft ones, ..."""
        sums = self._asdict()
        return {name: sums[name] / totals.divisor(name) for name in self._fields[1:]}


@dataclass(frozen=True, kw_only=True)
class DistillLoss(LossSettings):
    """`alpha * T² * divergence + (1 - alpha) * hard part`: means over soft and over all positions."""

    totals: StepTotals | None = None
    """What to divide by where a batch is part of a step: `count` of all its parts, added up. None: the batch's own."""

    def check(self, targets: TargetRecord, *, flag: str = "--temperature") -> None:
        """Refuse a store that cannot serve this loss, in one sentence; nothing is asked of it if alpha is 0.

        Raises:
            PairingError: not with this estimator, or not at this temperature, which `flag` gave.
        """
        if self.alpha == 0 or self.divergence == SAMPLED:
            return
        if targets.keeps.sample and (why := DIVERGENCES.load(self.divergence).refuses_samples):
            raise PairingError(
                f"--loss {self.divergence} does not go with a {targets.estimator!r} store: {why}; use --loss "
                "forward_kl, or a store built with --estimator topk"
            )
        if self.temperature not in targets.temperatures:
            grid = ", ".join(f"{t:g}" for t in targets.temperatures)
            raise PairingError(
                f"{flag} {self.temperature:g} is not in the store's grid ({grid}), and a truncated head does not "
                f"determine it; use one of the grid, or build a store with --temperature {self.temperature:g}"
            )

    def notices(self, targets: TargetRecord) -> list[str]:
        """What to know of this loss on this store, in one sentence each."""
        if self.divergence == SAMPLED and targets.keeps.sample:
            return [
                f"--loss {SAMPLED} learns from each token's own log-probability alone, for a {targets.estimator!r} "
                "store says no probability of an id; scored with --estimator topk the gradient varies far less"
            ]
        if self.alpha > 0 and self.weight != "even" and targets.keeps.sample:
            return [
                f"--weight {self.weight} reads its weight from the same {targets.estimator!r} sample as the loss, so "
                "the gradient is no longer unbiased; leave --weight out, or use a store built with --estimator topk"
            ]
        return []

    def count(self, batch: Batch) -> StepTotals:
        """What the batch adds to the totals of its step."""
        soft = batch.soft_positions
        weighs = self.weight != "even" and self.alpha > 0
        return StepTotals(
            labelled=batch.labelled_positions,
            soft=soft,
            weight=float(self.weights(batch, batch.targets.soft).sum() if weighs else soft),
            positions=batch.positions,
            width=batch.width,
            read=batch.read,
            shared=COUNTED in batch.inputs,
        )

    def __call__(
        self, hidden: Tensor, head: Head | CalledHead, batch: Batch, *, layer: Tensor | None = None
    ) -> LossOutput:
        """Loss of one micro-batch: its share of the step's, if the `totals` are the step's.

        Args:
            hidden: `[B, S, D]` of the student, or `[N, D]` at the batch's positions.
            head: the student's head.
            batch: with its labels and targets.
            layer: `[N, D]`: what the student's last layer gave at the positions, for the cosine loss.

        Raises:
            PairingError: the targets cannot serve this loss.
        """
        totals = self.count(batch) if self.totals is None else self.totals
        # Ignored positions end here, before any product with the head.
        hidden = batch.at_positions(hidden)
        if self.alpha > 0 and batch.teacher is not None:
            if isinstance(head, CalledHead) or head.ranks is not None:
                raise PairingError(
                    "the student's head is more than a matrix in one process (an adapter, quantised, dealt out), and a "
                    "teacher's states are learnt from through a plain head only; leave the head as it is, or learn "
                    "from the store's targets"
                )
            full = FullChunkLoss(self, batch, totals, hidden)
            loss = full_loss(
                hidden,
                head,
                batch.labels.clamp(min=0),
                full,
                temperature=self.temperature,
                chunk_bytes=self.chunk_bytes,
            )
            return self._output(loss, full, batch, totals, layer)
        chunk_loss = self._chunk_loss()(self, batch, totals, hidden)
        loss = topk_tail_loss(self._columns(hidden, head, batch), chunk_loss)
        return self._output(loss, chunk_loss, batch, totals, layer)

    def _chunk_loss(self) -> type[StoreChunkLoss]:
        return SampledChunkLoss if self.divergence == SAMPLED else StoreChunkLoss

    def _columns(self, hidden: Tensor, head: Head | CalledHead, batch: Batch) -> Chunks:
        soft_on, targets = self.alpha > 0, batch.targets
        k = 0
        if soft_on and self.divergence == SAMPLED:
            k = kept_ids(targets)
        elif soft_on:
            self._check_targets(targets)
            k = targets.k
        kept = (
            torch.from_numpy(targets.ids[:, :k].astype(np.int64)).to(hidden.device),
            torch.from_numpy(targets.kept[:, :k]).to(hidden.device),
            batch.labels.clamp(min=0),
        )
        options: dict[str, Any] = {
            "temperature": self.temperature if soft_on else 1.0,
            "chunk_bytes": self.chunk_bytes,
            "with_mean": self.label_smoothing > 0,
        }
        if isinstance(head, CalledHead):
            return CalledChunks(hidden, head, *kept, **options)
        return HeadChunks(hidden, head, *kept, **options)

    def _output(
        self,
        loss: Tensor,
        chunk_loss: StoreChunkLoss,
        batch: Batch,
        totals: StepTotals,
        layer: Tensor | None,
    ) -> LossOutput:
        cosine = 0.0
        if self.cosine > 0:
            apart = cosine_distance(layer, batch.targets).sum()
            cosine = float(apart.detach())
            loss = loss + self.cosine * apart / totals.divisor("cosine")
        sums = [*chunk_loss.sums.tolist(), cosine]
        return LossOutput(loss, *sums)

    def _check_targets(self, targets: SoftTargets) -> None:
        known = DIVERGENCES.load(self.divergence)
        if targets.keeps.sample:
            if known.refuses_samples:
                raise PairingError(
                    f"{self.divergence} does not go with {targets.estimator!r} targets: {known.refuses_samples}"
                )
        elif known.needs_tail and targets.lacks_tail(self.temperature):
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
