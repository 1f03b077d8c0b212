"""`sampled_reverse_kl`: the reverse KL of a student on text that it wrote itself, from one number a position.

Of a token y that the student q drew, the store holds the teacher's log p(y) (`softlabels.core.summary`). Then

    log q(y) - log p(y)                   is an unbiased estimate of KL(q || p) at its position, and
    (log q(y) - log p(y)) grad log q(y)   one of its gradient (the score function; its own mean is 0).

Value and gradient are these two, at T=1, a mean over positions; the factor in front is a constant. Per token: what a
token does to later ones is left out, as on-policy distillation does (Agarwal et al. 2024, GKD; section 3).

Price: the estimates vary with what was drawn, and are unbiased for the student that wrote the text alone. After some
passes over it the student is another; write anew.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from softlabels.errors import PairingError
from trainers.data.batch import Batch
from trainers.loss.chunk_losses import StoreChunkLoss
from trainers.loss.head_chunks import Columns
from trainers.loss.settings import SAMPLED


def sampled_reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`[n]`: log q - log p of tokens that q drew, whose gradient is the score function's.

    Args:
        log_p: `[n]`, the teacher's log-probability of each token.
        log_q: `[n]`, the student's.
    """
    gap = (log_q - log_p).detach()
    return gap + gap * (log_q - log_q.detach())


class SampledChunkLoss(StoreChunkLoss):
    """The loss of a chunk, from the labels' log-probabilities alone."""

    def _teach(self, batch: Batch, dtype: torch.dtype) -> None:
        summary = batch.targets.summary
        known = None if summary is None else summary.label_logp[self.places]
        if known is None or np.isnan(known).any():
            raise PairingError(
                f"--loss {SAMPLED}: not all positions have the teacher's log-probability of their token; build the "
                "store of text that the student wrote, with its position summary"
            )
        self.log_p = torch.from_numpy(known).to(self.device, dtype)

    def _soft(self, out: Columns, part: slice) -> list[Tensor]:
        """Sums over the chunk's soft positions, as of `StoreChunkLoss`; there are no tails and no likeliest id."""
        first, last = np.searchsorted(self.places, [part.start, part.stop])
        rows = torch.from_numpy(self.places[first:last] - part.start).to(self.device)
        log_q = (out.label_logit - out.lse).index_select(0, rows)
        total = sampled_reverse_kl(self.log_p[int(first) : int(last)], log_q).sum()
        zero = total.new_zeros(())
        return [total, zero, zero, zero, total]
