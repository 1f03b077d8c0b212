"""Divergences between teacher and student over K+1 bins, and which stores each can be trained from.

Each takes log-probabilities `[N, K+1]` of teacher (`log_p`) and student (`log_q`) and gives `[N]`, in
nats. A bin that neither has (padding; the tail of a store that keeps everything) is `-inf` in both and
counts nothing, in value and in gradient.

To add one: a function of 2 to 5 lines under `@divergence(…)`, which says what it demands of a store, and a line in
`DIVERGENCES`, or an entry point of the group `trainers.losses` in a package of your own; `trainers.testing.check_loss`
checks it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from softlabels.core.registry import Registry


class Shape(NamedTuple):
    """Parameters that some divergences have."""

    beta: float = 0.5
    """Of `jsd`: the teacher's share of the mixture."""
    skew: float = 0.1
    """Of the skewed ones: the share mixed into the second argument."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """A divergence, and what it demands of a store."""

    value: Callable[[Tensor, Tensor, Shape], Tensor]
    """From log-probabilities `[N, K+1]` of teacher and student to `[N]`."""
    refuses_samples: str | None
    """Why an unbiased sample of p gives a biased gradient; None: the value is linear in p, up to what the student does
    not change, so it gives an unbiased one."""
    needs_tail: bool
    """Whether it cannot be trained from a head that was cut off and renormalised. Without need it is biased by that,
    but finite."""

    def __call__(self, log_p: Tensor, log_q: Tensor, shape: Shape) -> Tensor:
        """The divergence `[N]` of `[N, K+1]` and `[N, K+1]`."""
        return self.value(log_p, log_q, shape)


NOT_LINEAR = "it is not linear in the teacher's probabilities, so unbiased samples bias it"


def divergence(
    *, refuses_samples: str | None = NOT_LINEAR, needs_tail: bool = False
) -> Callable[[Callable[[Tensor, Tensor, Shape], Tensor]], Divergence]:
    """Declare of a function what it demands of a store; see `Divergence`."""

    def declare(value: Callable[[Tensor, Tensor, Shape], Tensor]) -> Divergence:
        return Divergence(value=value, refuses_samples=refuses_samples, needs_tail=needs_tail)

    return declare


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


@divergence(refuses_samples=None)
def forward_kl(log_p: Tensor, log_q: Tensor, shape: Shape) -> Tensor:
    """KL(p || q)."""
    return _kl(*_present(log_p, log_q))


@divergence(needs_tail=True)
def reverse_kl(log_p: Tensor, log_q: Tensor, shape: Shape) -> Tensor:
    """KL(q || p)."""
    log_p, log_q = _present(log_p, log_q)
    return _kl(log_q, log_p)


@divergence()
def jsd(log_p: Tensor, log_q: Tensor, shape: Shape) -> Tensor:
    """Beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (Agarwal et al. 2024, §2)."""
    log_p, log_q = _present(log_p, log_q)
    log_m = _mixture(shape.beta, log_p, log_q)
    return shape.beta * _kl(log_p, log_m) + (1 - shape.beta) * _kl(log_q, log_m)


@divergence()
def tvd(log_p: Tensor, log_q: Tensor, shape: Shape) -> Tensor:
    """Total variation distance, half the L1 distance."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(dim=1)


@divergence()
def skewed_forward_kl(log_p: Tensor, log_q: Tensor, shape: Shape) -> Tensor:
    """KL(p || skew p + (1 - skew) q) (DistiLLM, Ko et al. 2024, eq. 2)."""
    log_p, log_q = _present(log_p, log_q)
    return _kl(log_p, _mixture(shape.skew, log_p, log_q))


@divergence()
def skewed_reverse_kl(log_p: Tensor, log_q: Tensor, shape: Shape) -> Tensor:
    """KL(q || skew q + (1 - skew) p) (DistiLLM, §3.1)."""
    log_p, log_q = _present(log_p, log_q)
    return _kl(log_q, _mixture(shape.skew, log_q, log_p))


DIVERGENCES: Registry[Divergence] = Registry(
    "trainers.losses",
    {
        "forward_kl": "trainers.loss.divergences:forward_kl",
        "reverse_kl": "trainers.loss.divergences:reverse_kl",
        "jsd": "trainers.loss.divergences:jsd",
        "tvd": "trainers.loss.divergences:tvd",
        "skewed_forward_kl": "trainers.loss.divergences:skewed_forward_kl",
        "skewed_reverse_kl": "trainers.loss.divergences:skewed_reverse_kl",
    },
    flag="--loss",
)
