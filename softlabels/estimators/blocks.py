"""Which id a point on the line of cumulated mass falls on, in two levels.

A running sum over all of V costs ten times as much as sums of blocks, a running sum of those, and one more
inside each block that is hit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from softlabels.estimators import native
from softlabels.estimators.tiles import tiles
from softlabels.estimators.vocab_parallel import VocabPart, put, summed

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = native.BLOCK
"""Ids summed together before the search."""
NOTHING = torch.finfo(torch.float32).min / 2
"""A logit without mass, of which 0 times it is 0; of -inf it is NaN."""


class Masses(NamedTuple):
    """Of ids, relative to the largest's: e^y, y = z - max(z)."""

    mass: Tensor
    """`[n, B * BLOCK] float32`, with zeros up to whole blocks."""
    blocks: Tensor
    """`[n, B] float64`: sums of blocks."""
    spread: Tensor
    """`[n] float64`: the sum of e^y y."""


def masses(logits: Tensor, largest: Tensor, without: Tensor, part: VocabPart | None) -> Masses:
    """Of `logits [n, v] float32`, which are overwritten, with `largest [n, 1]`; 0 at the ids `without [n, k]`.

    Some rows at a time, so that their sums are taken while they are in the cache.
    """
    put(logits, without, NOTHING, part)
    if short := -logits.shape[1] % BLOCK:
        logits = torch.nn.functional.pad(logits, (0, short), value=NOTHING)
    if native.suits(logits):
        spread, blocks = native.exponentiate(logits, largest)
        return Masses(logits, blocks, spread)
    n, v = logits.shape
    blocks = logits.new_empty(n, v // BLOCK, dtype=torch.float64)
    spread = logits.new_empty(n, dtype=torch.float64)
    for rows in tiles(logits):
        mass = logits[rows]
        y = mass - largest[rows]
        torch.exp(y, out=mass)
        blocks[rows] = mass.view(len(mass), -1, BLOCK).sum(2).double()
        spread[rows] = y.mul_(mass).sum(1).double()
    return Masses(logits, blocks, spread)


class Line(NamedTuple):
    """All mass, one id after the other, relative to the largest id's."""

    mass: Tensor
    """`[n, B * BLOCK] float32`."""
    ends: Tensor
    """`[n, B] float64`: where its blocks end."""
    rest: Tensor
    """`[n] float64`: of all ids but the largest, with all digits."""
    spread: Tensor
    """`[n] float64`: the sum of e^y y."""


def line_of(logits: Tensor, largest: Tensor, top: Tensor, part: VocabPart | None) -> Line:
    """The line of `logits [n, v] float32` (overwritten), which are `largest` at the ids `top`, `[n, 1]` each."""
    size = logits.shape[1]
    mass, blocks, spread = masses(logits, largest, top, part)
    rest, spread = summed(torch.stack([blocks.sum(1), spread]), part)
    add_back(mass, blocks, top, mass.new_ones(top.shape), size, part)
    return Line(mass, blocks.cumsum(1), rest, spread)


def add_back(
    mass: Tensor, blocks: Tensor, ids: Tensor, found: Tensor, size: int, part: VocabPart | None
) -> None:
    """Write `found [n, k]` into `mass` at `ids [n, k]`, which had none, and add it to the sums of their blocks.

    `size` is v: `mass` may have been lengthened to whole blocks.
    """
    put(mass[:, :size], ids, found, part)
    if part is not None:
        own = (ids >= part.first) & (ids < part.first + size)
        ids, found = torch.where(own, ids - part.first, 0), found.masked_fill(~own, 0.0)
    blocks.scatter_add_(1, ids // BLOCK, found.double())


def find(mass: Tensor, ends: Tensor, points: Tensor, part: VocabPart | None = None) -> Tensor:
    """First id at which the running sum of `mass [n, v]` reaches `points [n, k]`; ids `[n, k] int64`.

    `ends` are the running sums of whole blocks. Of points above 0 no id without mass is found.
    """
    if part is None:
        return _find(mass, ends, points)
    bounds = part.gather(ends[:, -1]).T.cumsum(
        1
    )  # [n, W]: where each process's piece of the line ends
    points = torch.minimum(points, bounds[:, -1:])
    here = torch.searchsorted(bounds.contiguous(), points) == part.rank
    start = bounds[:, part.rank] - ends[:, -1]
    inside = (points - start[:, None]).clamp_min(torch.finfo(points.dtype).tiny)
    return summed(torch.where(here, _find(mass, ends, inside) + part.first, 0), part)


def _find(mass: Tensor, ends: Tensor, points: Tensor) -> Tensor:
    n, v = mass.shape
    if points.shape[1] * BLOCK > v:  # then the blocks that are hit are more than all
        total = mass.cumsum(1, dtype=torch.float64)
        return torch.searchsorted(total, torch.minimum(points, total[:, -1:]))
    points = torch.minimum(points, ends[:, -1:])
    block = torch.searchsorted(ends, points)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp_min(0)), 0.0)
    rows = torch.arange(n, device=mass.device)[:, None]
    inner = mass.view(n, -1, BLOCK)[rows, block].double().cumsum(2)
    inside = torch.minimum(points - before, inner[..., -1])
    return block * BLOCK + torch.searchsorted(inner, inside[..., None])[..., 0].clamp_max(BLOCK - 1)
