"""The mass outside the kept set, exactly, at every temperature: what `topk` and `topp` share.

The tail is a log-sum-exp over the ids *not* kept, taken relative to the largest of them, never `1 - sum`:
a tail of e^-90 keeps all its digits. `exp` is the dearest pass over V, so where temperatures are powers
of two apart (1, 2, 4) it is taken once: `exp(z)` is `exp(z / 2)` squared. Rows are taken so many at a time that all
passes but the first find them in the cache; in C (`native.py`) it is one pass.
"""

from __future__ import annotations

from math import log2
from typing import TYPE_CHECKING, NamedTuple

import torch

from softlabels.estimators import native
from softlabels.estimators.blocks import NOTHING
from softlabels.estimators.entropy import Whole, entropy_of
from softlabels.estimators.tiles import tiles
from softlabels.estimators.vocab_parallel import VocabPart, put, summed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

SQUARINGS = 2
"""Squarings after one `exp`, at most: each doubles its relative error, and two leave it below 1e-6."""


class Tail(NamedTuple):
    """Of the ids outside the candidates, with y = z - `beyond`."""

    logs: Tensor
    """`[n, G] float64`: `log sum exp(y / T)`, nats; `-inf` if there is none."""
    spread: Tensor
    """`[n] float64`: `sum e^y y`; 0 if there is none, or 1 is not in the grid."""


def log_tail(
    logits: Tensor,
    kept: Tensor,
    beyond: Tensor,
    temperatures: Sequence[float],
    part: VocabPart | None = None,
) -> Tail:
    """The mass of the ids outside `kept`, at each temperature.

    Args:
        logits: `[n, v] float32`; overwritten.
        kept: `[n, K] int64`, the ids to leave out.
        beyond: `[n, 1] float32`, the largest of the others, so that no sum underflows; `[n, 0]` if there
            is no other.
        temperatures: the grid.
        part: which ids the logits are of, if not of all.
    """
    n, grid = len(logits), len(temperatures)
    sums = logits.new_zeros((n, grid + 1), dtype=torch.float64)  # the last: of e^y y
    if beyond.shape[1] == 0:
        return Tail(sums[:, :grid].log(), sums[:, grid])
    put(logits, kept, NOTHING, part)
    chains = _chains(temperatures)
    for rows in tiles(logits):
        y = logits[rows].sub_(beyond[rows])
        for chain in chains:
            mass = _exp(y, chain[0])
            at = chain[0]
            for t in chain:
                while at > t:
                    mass.mul_(mass)
                    at /= 2
                sums[rows, temperatures.index(t)] = mass.sum(1).double()
                if t == 1.0:
                    last = chain is chains[-1]  # then y is needed no more
                    sums[rows, grid] = torch.mul(y, mass, out=y if last else None).sum(1).double()
    sums = summed(sums, part)
    return Tail(sums[:, :grid].log(), sums[:, grid])


def native_chains(temperatures: Sequence[float]) -> list[native.Chain]:
    """The same grid, for `native.scan`."""
    return [
        native.Chain(chain[0], max(levels), levels[chain.index(1.0)] if 1.0 in chain else -1)
        for chain in _chains(temperatures)
        for levels in [_levels(chain)]
    ]


def tail_of(found: Tensor, temperatures: Sequence[float]) -> Tail:
    """Of what `native.scan` found, `[n, C, 4]`."""
    chains = _chains(temperatures)
    at = {
        t: (c, j)
        for c, chain in enumerate(chains)
        for t, j in zip(chain, _levels(chain), strict=True)
    }
    sums = torch.stack([found[:, at[t][0], at[t][1]] for t in temperatures], dim=1)
    spread = found[:, at[1.0][0], 3] if 1.0 in at else torch.zeros_like(sums[:, 0])
    return Tail(sums.log(), spread)


def _levels(chain: Sequence[float]) -> list[int]:
    """How often each is halved from the first."""
    return [round(log2(chain[0] / t)) for t in chain]


def _exp(y: Tensor, temperature: float) -> Tensor:
    return y.exp() if temperature == 1.0 else (y / temperature).exp_()


def whole_of(
    ids: Tensor, top: Tensor, gaps: Tensor, beyond_gap: Tensor, tail: Tail, at_one: int
) -> Whole:
    """Of the whole distribution.

    Args:
        ids, top: `[n, K]` of the candidates, the largest first, and their logits.
        gaps: `[n, K] float64` of the candidates to the largest.
        beyond_gap: as of `log_odds`.
        tail: beyond the candidates.
        at_one: column of T=1.
    """
    shift = beyond_gap.sum(1)
    head, own = (-gaps[:, 1:]).exp(), tail.logs[:, at_one].exp()
    scale = (-shift).exp()
    rest = head.sum(1) + scale * own
    spread = -(head * gaps[:, 1:]).sum(1) + scale * (tail.spread - shift * own)
    return Whole(ids[:, 0], top[:, 0], rest.log1p(), entropy_of(rest, spread))


def _chains(temperatures: Sequence[float]) -> list[list[float]]:
    """The grid, cut into descending lists whose members are the first's, divided by 1, 2 or 4."""
    left = sorted(temperatures, reverse=True)
    chains = []
    while left:
        steps = [left[0] / 2**s for s in range(SQUARINGS + 1)]
        chains.append([t for t in left if t in steps])
        left = [t for t in left if t not in steps]
    return chains


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
        tails: `[n, G] float64`, the logs that `log_tail` found beyond the candidates.
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
