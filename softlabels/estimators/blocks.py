"""Which id a point on the line of cumulated mass falls on, in two levels.

A running sum over all of V costs ten times as much as sums of blocks, a running sum of those, and one more
inside each block that is hit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from softlabels.estimators.vocab_parallel import VocabPart, put, summed

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 64
"""Ids summed together before the search."""


def blocked(mass: Tensor) -> tuple[Tensor, Tensor]:
    """`mass [n, V] float32`, with zeros up to whole blocks, and the blocks' sums `[n, B] float64`."""
    if short := -mass.shape[1] % BLOCK:
        mass = torch.nn.functional.pad(mass, (0, short))
    return mass, mass.view(len(mass), -1, BLOCK).sum(2).double()


class Line(NamedTuple):
    """All mass, one id after the other, relative to the largest id's."""

    mass: Tensor
    """`[n, B * BLOCK] float32`."""
    ends: Tensor
    """`[n, B] float64`: where its blocks end."""
    rest: Tensor
    """`[n] float64`: of all ids but the largest, with all digits."""


def line_of(mass: Tensor, top: Tensor, part: VocabPart | None) -> Line:
    """The line of `mass [n, v] float32` (overwritten), which is 1 at the largest ids `top [n, 1]`."""
    put(mass, top, 0.0, part)
    size = mass.shape[1]
    mass, blocks = blocked(mass)
    rest = summed(blocks.sum(1), part)
    add_back(mass, blocks, top, mass.new_ones(top.shape), size, part)
    return Line(mass, blocks.cumsum(1), rest)


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
