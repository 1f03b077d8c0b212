"""The k largest logits of each row, in two levels: what `topk`, `topp` and `sampled` begin with.

Maxima of blocks of 64 logits are one cheap pass over V. The k blocks with the largest maxima hold the k
largest logits: a logit of any other block has k maxima above it, or equal to it. Of the 64 k candidates
that are left, blocks of 8 are chosen in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

BLOCK, INNER = 64, 8
"""Logits with one maximum, in V and among the candidates: of 16 to 128, all within a tenth of each other at
V = 49,152 and k = 50."""
FEWEST_BLOCKS = 4
"""Blocks for each id wanted: with fewer, the candidates are too large a part of V to be worth a pass."""


def largest(logits: Tensor, k: int, maxima: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest of `logits [n, V]`, none of them NaN, and their ids: `[n, k]` and `[n, k] int64`.

    In descending order. Of equal logits any may be left out, but the same ones each time. `maxima [n, V // 64]`: of
    whole blocks, if these are known.
    """
    # A GPU's own topk is a few passes by thousands of threads, and has not been beaten by more kernels.
    if logits.device.type != "cpu" or logits.shape[1] // BLOCK < FEWEST_BLOCKS * k:
        top, ids = logits.topk(k, dim=1)
        return top, ids
    maxima = maxima_of(logits, BLOCK) if maxima is None else maxima
    candidates, id_of = _candidates(logits, maxima, k, BLOCK)
    fewer, place_of = _candidates(candidates, maxima_of(candidates, INNER), k, INNER)
    top, last = fewer.topk(k, dim=1)
    return top, id_of(place_of(last))


def maxima_of(logits: Tensor, size: int) -> Tensor:
    """Of whole blocks."""
    n, v = logits.shape
    return logits[:, : v // size * size].view(n, v // size, size).amax(2)


def _candidates(
    logits: Tensor, maxima: Tensor, k: int, size: int
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The logits of the k blocks with the largest maxima, and what gives their ids from places among them."""
    n, v = logits.shape
    blocks = v // size
    whole = logits[:, : blocks * size].view(n, blocks, size)
    block = maxima.topk(k, dim=1, sorted=False).indices
    rows = torch.arange(n, device=logits.device)[:, None]
    # The last ids, too few to be a block, are candidates always.
    found = torch.cat([whole[rows, block].flatten(1), logits[:, blocks * size :]], dim=1)

    def ids(place: Tensor) -> Tensor:
        of_block = (place // size).clamp_max(k - 1)
        inside = block.gather(1, of_block) * size + place % size
        return torch.where(place < k * size, inside, place + (blocks - k) * size)

    return found, ids
