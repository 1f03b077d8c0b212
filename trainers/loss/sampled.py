"""`sampled_reverse_kl`: the reverse KL of a student on text that it wrote itself, one token drawn at a position.

Of a token y that the student q drew, the store holds the teacher's log p(y) (`softlabels.core.summary`), and of K ids
and their tail t (all others as one) it may hold p, while the student's q of these is known from its logits. By the
chain rule the reverse KL is

    KL(q || p)  =  sum over the K ids and t of q log(q / p)          known: value and gradient are exact
                +  q(t) KL(q( . | t) || p( . | t))                   estimated, from y alone

1. The first part is `reverse_kl` over K+1 bins, which draws no sample.
2. Where y is in the tail, h = log q(y)/q(t) - log p(y)/p(t) is added, else 0: an unbiased estimate of the second part.
   Its gradient's is h grad log q(y), the score function; what h itself adds has mean 0.
3. A store of a sample, or without T=1 or a tail, says no p of an id: K = 0, all is tail, and h = log q(y) - log p(y)
   is all there is. That is unbiased, too, and varies far more: with the distance itself rather than with what of it
   lies in the tail.

Value and gradient are at T=1, a mean over positions; the factor in front is a constant. Per token: what a token does
to later ones is left out, as on-policy distillation does (Agarwal et al. 2024, GKD; section 3).

Price: the estimates vary with what was drawn, and are unbiased for the student that wrote the text alone. After some
passes over it the student is another; write anew.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from softlabels.core.targets import SoftTargets
from softlabels.errors import PairingError
from trainers.data.batch import Batch
from trainers.loss.chunk_losses import StoreChunkLoss
from trainers.loss.divergences import Shape, reverse_kl
from trainers.loss.settings import SAMPLED


def sampled_reverse_kl(
    log_p: Tensor, log_q: Tensor, bins_p: Tensor, bins_q: Tensor, outside: Tensor
) -> Tensor:
    """`[n]`: an estimate of KL(q || p) from tokens that q drew, whose gradient estimates that of KL(q || p).

    Args:
        log_p: `[n]`, the teacher's log-probability of each token.
        log_q: `[n]`, the student's.
        bins_p: `[n, K+1]`, the teacher's of the kept ids and the tail.
        bins_q: `[n, K+1]`, the student's.
        outside: `[n] bool`: the token is in the tail.
    """
    within = (log_q - bins_q[:, -1]) - (log_p - bins_p[:, -1])
    gap = torch.where(outside, within.detach(), 0.0)
    known = reverse_kl(bins_p, bins_q, Shape())
    return known + gap + gap * (log_q - log_q.detach())


def kept_ids(targets: SoftTargets) -> int:
    """K: of how many ids the targets say p at T=1, beside a tail; 0 of a sample, or where either is missing."""
    if targets.keeps.sample or 1.0 not in targets.temperatures or targets.lacks_tail(1.0):
        return 0
    return targets.k


class SampledChunkLoss(StoreChunkLoss):
    """The loss of a chunk, from the labels' log-probabilities and the kept ids, if there are any."""

    def _teach(self, batch: Batch, dtype: torch.dtype) -> None:
        targets = batch.targets[self.places]
        known = None if targets.summary is None else targets.summary.label_logp
        if known is None or np.isnan(known).any():
            raise PairingError(
                f"--loss {SAMPLED}: not all positions have the teacher's log-probability of their token; build the "
                "store of text that the student wrote, with its position summary"
            )
        self.label_log_p = torch.from_numpy(known).to(self.device, dtype)
        if kept_ids(batch.targets):
            super()._teach(batch, dtype)
            labels = batch.labels.cpu().numpy()[self.places]
            among = (targets.ids == labels[:, None]) & targets.kept
            self.outside = torch.from_numpy(~among.any(axis=1)).to(self.device)
        else:  # all of it is tail
            self.log_p = self.label_log_p.new_zeros((len(known), 1))
            self.top_slot = torch.zeros_like(self.log_p, dtype=torch.int64)
            self.outside = torch.ones_like(self.label_log_p, dtype=torch.bool)

    def _apart(self, log_p: Tensor, log_q: Tensor, label_log_q: Tensor, here: slice) -> Tensor:
        return sampled_reverse_kl(
            self.label_log_p[here], label_log_q, log_p, log_q, self.outside[here]
        )
