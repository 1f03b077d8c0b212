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
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from softlabels.core.rows import UNLABELLED
from softlabels.core.settings import check_fits
from softlabels.core.targets import SoftTargets
from softlabels.errors import ConfigError, PairingError
from softlabels.format.identity import TargetRecord
from trainers.data.batch import COUNTED, Batch
from trainers.loss.called_head import CalledHead
from trainers.loss.divergences import DIVERGENCES, Shape
from trainers.loss.full import full_loss, teacher_log_probs
from trainers.loss.head_chunks import Chunks, Columns, Head, accumulator
from trainers.loss.position_weights import WEIGHTS
from trainers.loss.topk_tail import topk_tail_loss
from trainers.loss.totals import StepTotals, add_up

SAMPLED = "sampled_reverse_kl"
"""A loss beside `DIVERGENCES`, of the labels' log-probabilities alone (`sampled.py`)."""


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
    totals: StepTotals | None = None
    """What to divide by where a batch is part of a step: `count` of all its parts, added up. None: the batch's own."""

    def __post_init__(self) -> None:
        for flag, name, known in (
            ("loss", self.divergence, [*DIVERGENCES.names(), SAMPLED]),
            ("weight", self.weight, sorted(WEIGHTS)),
        ):
            if name not in known:
                raise ConfigError(f"--{flag} {name!r}: known are {', '.join(known)}")
        inf = float("inf")
        check_fits(
            self,
            alpha=(0 <= self.alpha <= 1, "0 (hard labels only) to 1 (soft targets only)"),
            beta=(0 < self.beta < 1, "a share between 0 and 1, both excluded"),
            skew=(0 < self.skew < 1, "a share between 0 and 1, both excluded"),
            temperature=(0 < self.temperature < inf, "a finite number above 0"),
            label_smoothing=(0 <= self.label_smoothing < 1, "a share from 0 to below 1"),
            z_loss=(0 <= self.z_loss < inf, "a finite number, at least 0"),
            cosine=(0 <= self.cosine < inf, "a finite number, at least 0"),
        )
        given = (self.alpha, self.temperature, self.weight)
        if self.divergence == SAMPLED and given != (1.0, 1.0, "even"):
            raise ConfigError(
                f"--loss {SAMPLED}: its labels are the student's own words, at the temperature at which they are "
                "scored; give --alpha 1, and leave --temperature, --weight and schedules out"
            )

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
            weight=float(self._weights(batch, batch.targets.soft).sum() if weighs else soft),
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
            if isinstance(head, CalledHead):
                raise PairingError(
                    "the student's head is more than a matrix (an adapter, or quantised), and a teacher's states are "
                    "learnt from through a plain head only; leave the head as it is, or learn from the store's targets"
                )
            full = _FullChunkLoss(self, batch, totals, hidden)
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
        if self.divergence != SAMPLED:
            return StoreChunkLoss
        from trainers.loss.sampled import SampledChunkLoss  # which is made of this file's

        return SampledChunkLoss

    def _columns(self, hidden: Tensor, head: Head | CalledHead, batch: Batch) -> Chunks:
        soft_on, targets = self.alpha > 0 and self.divergence != SAMPLED, batch.targets
        if soft_on:
            self._check_targets(targets)
        k = targets.k if soft_on else 0
        return head.chunks(
            hidden,
            torch.from_numpy(targets.ids[:, :k].astype(np.int64)).to(hidden.device),
            torch.from_numpy(targets.kept[:, :k]).to(hidden.device),
            batch.labels.clamp(min=0),
            temperature=self.temperature if soft_on else 1.0,
            chunk_bytes=self.chunk_bytes,
            with_mean=self.label_smoothing > 0,
        )

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

    def _weights(self, batch: Batch, places: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
        labels = batch.labels.cpu().numpy()[places]
        return WEIGHTS[self.weight](batch.targets[places], labels, self.temperature)

    def _check_targets(self, targets: SoftTargets) -> None:
        known = DIVERGENCES.load(self.divergence)
        if targets.keeps.sample:
            if known.refuses_samples:
                raise PairingError(
                    f"{self.divergence} does not go with {targets.estimator!r} targets: {known.refuses_samples}"
                )
        elif known.needs_tail and _lacks_tail(targets, self.temperature):
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


class StoreChunkLoss:
    """The loss of one chunk of columns, adding up what it is made of."""

    def __init__(self, loss: DistillLoss, batch: Batch, totals: StepTotals, hidden: Tensor) -> None:
        self.loss, self.device, dtype = loss, hidden.device, accumulator(hidden)
        self.labelled = None
        if batch.labelled_positions < len(batch.labels):
            self.labelled = (batch.labels != UNLABELLED).to(self.device)
        self.sums = torch.zeros(7, dtype=dtype, device=self.device)
        self.divide = totals.divisor("hard_part")
        self.soft_on = loss.alpha > 0
        if not self.soft_on:
            return
        # Times 1 where all positions are labelled and soft, and count alike.
        share = self.divide / totals.divisor("soft_weighted")
        self.soft_scale = loss.alpha * loss.temperature**2 * share
        self.places = np.flatnonzero(batch.targets.soft)
        self.all_soft = len(self.places) == len(batch.labels)
        self.weights = (
            None
            if loss.weight == "even"
            else torch.from_numpy(loss._weights(batch, self.places)).to(self.device, dtype)
        )
        self._teach(batch, dtype)

    def _teach(self, batch: Batch, dtype: torch.dtype) -> None:
        """Take what the teacher says at the soft positions."""
        targets = batch.targets if self.all_soft else batch.targets[self.places]
        log_bins = targets.log_bins(self.loss.temperature)
        self.log_p = torch.from_numpy(log_bins).to(self.device, dtype)
        slots = targets.gaps.argmin(axis=1) if targets.k else np.zeros(0, np.int64)
        self.top_slot = torch.from_numpy(slots[:, None]).to(self.device)

    def __call__(self, out: Columns, part: slice) -> Tensor:
        """The chunk's share of the loss."""
        config = self.loss
        cross_entropy = part_of_hard = out.lse - out.label_logit
        if config.label_smoothing or config.z_loss:
            e = config.label_smoothing
            part_of_hard = out.lse - (1 - e) * out.label_logit - e * out.mean_logit
            part_of_hard = part_of_hard + config.z_loss * out.lse**2
        if self.labelled is not None:
            known = self.labelled[part]
            cross_entropy = torch.where(known, cross_entropy, 0.0)
            part_of_hard = torch.where(known, part_of_hard, 0.0)
        hard, hard_part = cross_entropy.sum(), part_of_hard.sum()
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
        soft = DIVERGENCES.load(self.loss.divergence)(log_p, log_q, shape)
        weighted = soft if self.weights is None else soft * self.weights[here]
        agree = soft.new_zeros(())
        if len(soft) and columns.shape[1] > 1:
            heads = columns.detach()[:, :-1]
            best = torch.maximum(heads.amax(dim=1), tail_top)
            agree = (heads.gather(1, self.top_slot[here])[:, 0] >= best).sum().to(soft.dtype)
        tails = log_p[:, -1].exp().sum(), log_q[:, -1].exp().sum()
        return [soft.sum(), *tails, agree, weighted.sum()]


class _FullChunkLoss(StoreChunkLoss):
    """The same over all V ids, which leave no tail: the teacher's probabilities are made for each chunk."""

    def _teach(self, batch: Batch, dtype: torch.dtype) -> None:
        assert batch.teacher is not None
        self.teacher, self.dtype = batch.teacher, dtype

    def _soft(self, out: Columns, part: slice) -> list[Tensor]:
        """Sums over the chunk's soft positions, as of `StoreChunkLoss`."""
        columns, teacher, here = out.columns, self.teacher.at(part), part
        if not self.all_soft:
            first, last = np.searchsorted(self.places, [part.start, part.stop])
            here = slice(int(first), int(last))
            rows = torch.from_numpy(self.places[here] - part.start).to(self.device)
            columns, teacher = columns.index_select(0, rows), teacher.at(rows)
        log_p = teacher_log_probs(teacher, self.dtype, self.loss.temperature)
        log_q = torch.log_softmax(columns, dim=1)
        shape = Shape(self.loss.beta, self.loss.skew)
        soft = DIVERGENCES.load(self.loss.divergence)(log_p, log_q, shape)
        weighted = soft if self.weights is None else soft * self.weights[here]
        agree = (columns.detach().argmax(dim=1) == log_p.argmax(dim=1)).sum().to(soft.dtype)
        zero = soft.new_zeros(())
        return [soft.sum(), zero, zero, agree, weighted.sum()]
