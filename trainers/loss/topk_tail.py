"""The one dense primitive: student hidden states to K kept logits and the log-sum-exp of all others.

Method: logits are made chunk by chunk under a byte budget, reduced to [n, K+1] and overwritten. Nothing of size
N x V is ever kept, and the weight's gradient is accumulated in float32. It comes in two forms:

- `topk_tail_loss` is told the loss of a chunk's columns, so it makes the gradients while it has the chunk's logits:
  three matrix products, as many as plain cross-entropy. Training uses it.
- `topk_tail` gives the columns themselves, without gradients. Evaluation uses it.

Both run the same code on a chunk (`head_chunks.py`), so they give the same numbers.

Shapes: N positions, D width, V vocabulary, K kept ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainers.loss.head_chunks import Chunks, Columns

ChunkLoss = Callable[[Columns, slice], Tensor]
"""From the columns of the positions in a slice of N to the scalar that they add to the loss."""


def topk_tail(chunks: Chunks) -> Columns:
    """Reduce `hidden @ head` to its kept columns and its tail; without gradients."""
    with torch.no_grad(), torch.autocast(chunks.hidden.device.type, enabled=False):
        parts = [chunks.reduce(part) for part in chunks.parts or [slice(0)]]
    return Columns(*map(torch.cat, zip(*parts, strict=True)))


def topk_tail_loss(chunks: Chunks, chunk_loss: ChunkLoss) -> Tensor:
    """Sum over chunks of a loss on their columns, with the gradients made on the way.

    Args:
        chunks: of the hidden states and the head.
        chunk_loss: called once for each chunk, in order. It must depend on the student through the columns alone:
            gradients reach the chunks' leaves, nothing else.

    Returns:
        Scalar, differentiable once; float32, or float64 if `hidden` is.
    """
    with torch.autocast(chunks.hidden.device.type, enabled=False):  # the head says how precise
        loss: Tensor = _TopkTailLoss.apply(chunks, chunk_loss, *chunks.leaves)  # type: ignore[no-untyped-call]
    return loss


class _TopkTailLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chunks: Chunks, chunk_loss: ChunkLoss, *leaves: Tensor | None) -> Tensor:
        total = chunks.hidden.new_zeros((), dtype=chunks.dtype)
        for part in chunks.parts:
            found = chunks.reduce(part)
            if not chunks.training:
                total += chunk_loss(found, part)
                continue
            columns = [x.requires_grad_() for x in found[:4]]
            with torch.enable_grad():
                loss = chunk_loss(found, part)
            gradients = torch.autograd.grad(
                loss, columns, materialize_grads=True, allow_unused=True
            )
            chunks.gradients(part, *gradients)
            total += loss.detach()
        ctx.save_for_backward(*chunks.results())
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.saved_tensors
        if g.item() != 1.0:  # in place: a second copy of the head's gradient would not fit
            found = [None if d is None else d.mul_(g) for d in found]
        return None, None, *found
