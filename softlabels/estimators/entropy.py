"""What the teacher's whole distribution says at T=1: its likeliest id, its mass, its entropy.

With y = z - max(z) and R the sum of e^y over all ids but the largest, the entropy is

    log(1 + R) - sum(e^y y) / (1 + R)

Neither term is negative, and R is never added to 1 before its logarithm is taken, so the small entropy of a certain
teacher keeps its digits. Estimators exponentiate the logits anyway, and take the second sum in the same pass.

Shapes: n positions, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from softlabels.estimators.tiles import tiles
from softlabels.estimators.vocab_parallel import VocabPart, largest_of, put, summed

if TYPE_CHECKING:
    from torch import Tensor


class Whole(NamedTuple):
    """Of n distributions over all V ids, at T=1."""

    top: Tensor
    """`[n] int64`: the likeliest id; of equal ones any."""
    largest: Tensor
    """`[n] float32`: its logit."""
    log_mass: Tensor
    """`[n] float64`: log-sum-exp of the logits less the largest; nats."""
    entropy: Tensor
    """`[n] float64`, nats."""

    def logp(self, logits: Tensor) -> Tensor:
        """Log-probabilities `[n] float32` of the ids, one of each position, that have `logits [n]`."""
        gap = self.largest.double() - logits.double()
        return (-gap - self.log_mass).clamp_max(0.0).float()


def top_of(logits: Tensor, part: VocabPart | None) -> tuple[Tensor, Tensor]:
    """The largest of `logits [n, v]` and its id, `[n, 1]` each; of equal ones any."""
    return logits.max(dim=1, keepdim=True) if part is None else largest_of(logits, 1, part)


def entropy_of(rest: Tensor, spread: Tensor) -> Tensor:
    """Entropies `[n] float64` of R and of the sum of `e^y y`, both `[n] float64`."""
    return (rest.log1p() - spread / (1.0 + rest)).clamp_min(0.0)


def whole(logits: Tensor, part: VocabPart | None = None) -> Whole:
    """Of `logits [n, v] float32`, which are left as they are: for whoever does not exponentiate them at T=1."""
    largest, top = top_of(logits, part)
    sums = logits.new_empty(2, len(logits), dtype=torch.float64)
    for rows in tiles(logits):
        y = logits[rows] - largest[rows]
        mass = y.exp()
        put(mass, top[rows], 0.0, part)
        sums[0, rows] = mass.sum(1).double()
        sums[1, rows] = y.mul_(mass).sum(1).double()
    rest, spread = summed(sums, part)
    return Whole(top[:, 0], largest[:, 0], rest.log1p(), entropy_of(rest, spread))
