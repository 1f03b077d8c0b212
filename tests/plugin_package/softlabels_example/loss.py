"""`hellinger`: 1 minus the overlap of teacher and student, over the kept ids and the tail."""

from __future__ import annotations

from torch import Tensor

from trainers.loss.divergences import Shape, divergence


@divergence(refuses_samples="the root of a probability is not linear in it")
def hellinger(log_p: Tensor, log_q: Tensor, shape: Shape) -> Tensor:
    """1 - the sum of sqrt(p q)."""
    return 1 - (0.5 * (log_p + log_q)).exp().sum(dim=1)
