"""The k largest logits of each row, in two levels: what `topk`, `topp` and `sampled` begin with.

Maxima of blocks of 64 logits are one cheap pass over V. The k blocks with the largest maxima hold the k
largest logits: a logit of any other block has k maxima above it, or equal to it. What is left to search
are 64 k candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["largest"]

BLOCK = 64
"""Logits with one maximum: of 16 to 128, all within a tenth of each other at V = 49,152 and k = 50."""
FEWEST_BLOCKS = 4
"""Blocks for each id wanted: with fewer, the candidates are too large a part of V to be worth a pass."""


def largest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of `logits [n, V]`, none of them NaN, and their ids: `[n, k]` and `[n, k] int64`.

    In descending order. Of equal logits any may be left out, but the same ones each time.
    """
    n, v = logits.shape
    blocks = v // BLOCK
    # A GPU's own topk is a few passes by thousands of threads, and has not been beaten by more kernels.
    if logits.device.type != "cpu" or blocks < FEWEST_BLOCKS * k:
        top, ids = logits.topk(k, dim=1)
        return top, ids
    whole = logits[:, : blocks * BLOCK].view(n, blocks, BLOCK)
    block = whole.amax(2).topk(k, dim=1, sorted=False).indices
    rows = torch.arange(n, device=logits.device)[:, None]
    # The last ids, too few to be a block, are candidates always.
    candidates = torch.cat([whole[rows, block].flatten(1), logits[:, blocks * BLOCK :]], dim=1)
    top, slot = candidates.topk(k, dim=1)
    of_block = (slot // BLOCK).clamp_max(k - 1)
    ids = block.gather(1, of_block) * BLOCK + slot % BLOCK
    return top, torch.where(slot < k * BLOCK, ids, slot + (blocks - k) * BLOCK)
