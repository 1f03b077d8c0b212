"""The mass outside the kept set, exactly, at every temperature: what `topk` and `topp` share.

The tail is a log-sum-exp over the ids *not* kept, taken relative to the largest of them, never `1 - sum`:
a tail of e^-90 keeps all its digits. `exp` is the dearest pass over V, so where temperatures are powers
of two apart (1, 2, 4) it is taken once: `exp(z)` is `exp(z / 2)` squared.
"""

from __future__ import annotations

from math import e, log2
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["log_odds", "log_tail"]

LOG2E = log2(e)
SQUARINGS = 2
"""Squarings after one `exp`, at most: each doubles its relative error, and two leave it below 1e-6."""


def log_tail(logits: Tensor, kept: Tensor, beyond: Tensor, temperatures: Sequence[float]) -> Tensor:
    """`log sum exp((z - beyond) / T)` over the ids outside `kept`: `[n, G] float64`, nats; `-inf` if none is.

    Args:
        logits: `[n, V] float32`; overwritten.
        kept: `[n, K] int64`, the ids to leave out.
        beyond: `[n, 1] float32`, the largest of the others, so that no sum underflows; `[n, 0]` if there
            is no other.
        temperatures: the grid.
    """
    n, grid = len(logits), len(temperatures)
    logs = logits.new_full((n, grid), -torch.inf, dtype=torch.float64)
    if beyond.shape[1] == 0:
        return logs
    logits.scatter_(1, kept, -torch.inf)
    chains = _chains(temperatures)
    for chain in chains:
        last = chain is chains[-1]
        mass = _scaled(logits, beyond, chain[0], out=logits if last else torch.empty_like(logits))
        mass.exp2_()
        at = chain[0]
        for t in chain:
            while at > t:
                mass.mul_(mass)
                at /= 2
            logs[:, temperatures.index(t)] = mass.sum(1).double().log()
    return logs


def _chains(temperatures: Sequence[float]) -> list[list[float]]:
    """The grid, cut into descending lists whose members are the first's, divided by 1, 2 or 4."""
    left = sorted(temperatures, reverse=True)
    chains = []
    while left:
        steps = [left[0] / 2**s for s in range(SQUARINGS + 1)]
        chains.append([t for t in left if t in steps])
        left = [t for t in left if t not in steps]
    return chains


def _scaled(logits: Tensor, beyond: Tensor, temperature: float, *, out: Tensor) -> Tensor:
    """`(logits - beyond) / T`, as a power of two: a third of the time of the natural exponential."""
    return torch.sub(logits, beyond, out=out).mul_(LOG2E / temperature)


def log_odds(
    gaps: Tensor,
    kept: Tensor | None,
    beyond_gap: Tensor,
    tails: Tensor,
    temperatures: Sequence[float],
) -> Tensor:
    """The tail's log-odds, `[n, G] float64`, nats.

    Args:
        gaps: `[n, K] float64` of the candidates to the largest.
        kept: `[n, K] bool`, which of them are kept; the others are tail. None: all.
        beyond_gap: `[n, 1] float64`, the gap of the largest id that is no candidate; `[n, 0]` if all are.
        tails: `[n, G] float64`, what `log_tail` found beyond the candidates.
        temperatures: the grid.
    """
    head, more = -gaps, None
    if kept is not None:
        head, more = head.masked_fill(~kept, -torch.inf), head.masked_fill(kept, -torch.inf)
    shift = beyond_gap.sum(1)  # 0 where all ids are candidates: their tail is -inf as it is
    odds = []
    for i, t in enumerate(temperatures):
        tail = tails[:, i] - shift / t
        if more is not None:
            tail = torch.logaddexp(tail, torch.logsumexp(more / t, dim=1))
        odds.append(tail - torch.logsumexp(head / t, dim=1))
    return torch.stack(odds, dim=1)
