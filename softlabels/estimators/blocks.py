"""Which id a point on the line of cumulated mass falls on, in two levels.

A running sum over all of V costs ten times as much as sums of blocks, a running sum of those, and one more
inside each block that is hit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 64
"""Ids summed together before the search."""


def blocked(mass: Tensor) -> tuple[Tensor, Tensor]:
    """`mass [n, V] float32`, with zeros up to whole blocks, and the blocks' sums `[n, B] float64`."""
    if short := -mass.shape[1] % BLOCK:
        mass = torch.nn.functional.pad(mass, (0, short))
    return mass, mass.view(len(mass), -1, BLOCK).sum(2).double()


def find(mass: Tensor, ends: Tensor, points: Tensor) -> Tensor:
    """First id at which the running sum of `mass [n, V]` reaches `points [n, k]`; ids `[n, k] int64`.

    `ends` are the running sums of whole blocks. Of points above 0 no id without mass is found.
    """
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
