"""Divergences between teacher and student over K+1 bins, and which stores each can be trained from.

Each takes log-probabilities `[N, K+1]` of teacher (`log_p`) and student (`log_q`) and gives `[N]`, in
nats. A bin that neither has (padding; the tail of a store that keeps everything) is `-inf` in both and
counts nothing, in value and in gradient.

To add one: a function of 2 to 5 lines, one line in `DIVERGENCES`; tests/trainers/test_losses.py compares
every entry with a dense float64 reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DIVERGENCES", "Divergence", "Shape"]


class Shape(NamedTuple):
    """Parameters that some divergences have."""

    beta: float = 0.5
    """Of `jsd`: the teacher's share of the mixture."""
    skew: float = 0.1
    """Of the skewed ones: the share mixed into the second argument."""


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b); a bin without mass in a counts nothing."""
    return torch.where(log_a > -torch.inf, log_a.exp() * (log_a - log_b), 0.0).sum(dim=1)


def _present(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Both, with bins that neither has at a log-probability so low that its mass is 0, but finite."""
    absent = (log_p == -torch.inf) & (log_q == -torch.inf)
    return log_p.masked_fill(absent, -1e4), log_q.masked_fill(absent, -1e4)


def _mixture(share: float, log_a: Tensor, log_b: Tensor) -> Tensor:
    """log(share a + (1 - share) b)."""
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def forward_kl(log_p: Tensor, log_q: Tensor, shape: Shape) -> Tensor:
    """KL(p || q)."""
    return _kl(*_present(log_p, log_q))


def reverse_kl(log_p: Tensor, log_q: Tensor, shape: Shape) -> Tensor:
    """KL(q || p)."""
    log_p, log_q = _present(log_p, log_q)
    return _kl(log_q, log_p)


def jsd(log_p: Tensor, log_q: Tensor, shape: Shape) -> Tensor:
    """Beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (Agarwal et al. 2024, §2)."""
    log_p, log_q = _present(log_p, log_q)
    log_m = _mixture(shape.beta, log_p, log_q)
    return shape.beta * _kl(log_p, log_m) + (1 - shape.beta) * _kl(log_q, log_m)


def tvd(log_p: Tensor, log_q: Tensor, shape: Shape) -> Tensor:
    """Total variation distance, half the L1 distance."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(dim=1)


def skewed_forward_kl(log_p: Tensor, log_q: Tensor, shape: Shape) -> Tensor:
    """KL(p || skew p + (1 - skew) q) (DistiLLM, Ko et al. 2024, eq. 2)."""
    log_p, log_q = _present(log_p, log_q)
    return _kl(log_p, _mixture(shape.skew, log_p, log_q))


def skewed_reverse_kl(log_p: Tensor, log_q: Tensor, shape: Shape) -> Tensor:
    """KL(q || skew q + (1 - skew) p) (DistiLLM, §3.1)."""
    log_p, log_q = _present(log_p, log_q)
    return _kl(log_q, _mixture(shape.skew, log_q, log_p))


class Divergence(NamedTuple):
    """A divergence, and what it demands of a store."""

    value: Callable[[Tensor, Tensor, Shape], Tensor]
    """From log-probabilities `[N, K+1]` of teacher and student to `[N]`."""
    takes_samples: bool
    """Whether it is linear in p, up to a constant: then an unbiased sample of p gives an unbiased gradient."""
    without_tail: bool = True
    """Whether it can be trained from a head that was cut off and renormalised: biased by it, but finite."""


DIVERGENCES = {
    "forward_kl": Divergence(forward_kl, takes_samples=True),
    "reverse_kl": Divergence(reverse_kl, takes_samples=False, without_tail=False),
    "jsd": Divergence(jsd, takes_samples=False),
    "tvd": Divergence(tvd, takes_samples=False),
    "skewed_forward_kl": Divergence(skewed_forward_kl, takes_samples=False),
    "skewed_reverse_kl": Divergence(skewed_reverse_kl, takes_samples=False),
}
