"""What two distributions over the same bins say of each other: the kept ids, each a bin, and one of all others.

Shapes: N positions, K kept ids.
"""

from __future__ import annotations

import torch
from torch import Tensor


def acceptance(log_p: Tensor, log_q: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds on sum over all ids of min(p, q): the chance that a drafted token is accepted.

    Exact over the kept ids. Of the tail only the two masses P and Q are known: its ids add min(P, Q) at most, and
    nothing at least, for the two may lie on different ids. With one id outside it is min(P, Q), with none 0.

    Args:
        log_p: `[N, K+1]` of the one that judges, over kept ids and tail; `-inf` in slots not kept.
        log_q: `[N, K+1]` of the one that drafts.
        outside: `[N]`: how many ids are not kept.

    Returns:
        `[N]` least, `[N]` most.
    """
    least = torch.minimum(log_p, log_q).exp()
    kept, tail = least[:, :-1].sum(dim=1), least[:, -1]
    high = kept + torch.where(outside > 0, tail, 0.0)
    return kept + torch.where(outside == 1, tail, 0.0), high
