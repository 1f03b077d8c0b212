"""The loss of one chunk of columns, from a store's targets or from all of the teacher's distribution."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from softlabels.core.rows import UNLABELLED
from trainers.data.batch import Batch
from trainers.loss.divergences import DIVERGENCES, Shape
from trainers.loss.full import teacher_log_probs
from trainers.loss.head import accumulator
from trainers.loss.head_chunks import Columns
from trainers.loss.settings import LossSettings
from trainers.loss.totals import StepTotals


class StoreChunkLoss:
    """The loss of one chunk of columns, adding up what it is made of."""

    def __init__(
        self, loss: LossSettings, batch: Batch, totals: StepTotals, hidden: Tensor
    ) -> None:
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
            else torch.from_numpy(loss.weights(batch, self.places)).to(self.device, dtype)
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
        label_log_q = out.label_logit - out.lse
        here = part
        if not self.all_soft:
            first, last = np.searchsorted(self.places, [part.start, part.stop])
            here = slice(int(first), int(last))
            rows = torch.from_numpy(self.places[here] - part.start).to(self.device)
            columns, tail_top = columns.index_select(0, rows), tail_top.index_select(0, rows)
            label_log_q = label_log_q.index_select(0, rows)
        log_p = self.log_p[here]
        log_q = torch.log_softmax(columns, dim=1)
        soft = self._apart(log_p, log_q, label_log_q, here)
        weighted = soft if self.weights is None else soft * self.weights[here]
        agree = soft.new_zeros(())
        if len(soft) and columns.shape[1] > 1:
            heads = columns.detach()[:, :-1]
            best = torch.maximum(heads.amax(dim=1), tail_top)
            agree = (heads.gather(1, self.top_slot[here])[:, 0] >= best).sum().to(soft.dtype)
        tails = log_p[:, -1].exp().sum(), log_q[:, -1].exp().sum()
        return [soft.sum(), *tails, agree, weighted.sum()]

    def _apart(self, log_p: Tensor, log_q: Tensor, label_log_q: Tensor, here: slice) -> Tensor:
        """The divergence `[n]` over the bins of the soft positions `here`; labels do not matter to it."""
        return DIVERGENCES.load(self.loss.divergence)(
            log_p, log_q, Shape(self.loss.beta, self.loss.skew)
        )


class FullChunkLoss(StoreChunkLoss):
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
