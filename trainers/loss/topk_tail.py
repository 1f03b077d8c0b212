"""The one dense primitive: student hidden states to K kept logits and the log-sum-exp of all others.

Method: logits are made chunk by chunk under a byte budget, reduced to [n, K+1] and overwritten. Nothing of size
N x V is ever kept, and the weight's gradient is accumulated in float32. It comes in two forms:

- `topk_tail_loss` is told the loss of a chunk's columns, so it makes the gradients while it has the chunk's logits:
  three matrix products, as many as plain cross-entropy. Training uses it.
- `topk_tail` gives the columns themselves, for any use of them. Its backward makes each chunk once more: four products.

Both run the same code on a chunk (`head_chunks.py`), so they give the same numbers.

Shapes: N positions, D width, V vocabulary, K kept ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trainers.loss.head_chunks import (
    ChunkWorker,
    Columns,
    Head,
    accumulator,
    chunk_rows,
    head_logits,
)

__all__ = ["Columns", "Head", "chunk_rows", "head_logits", "topk_tail", "topk_tail_loss"]

ChunkLoss = Callable[[Columns, slice], Tensor]
"""From the columns of the positions in a slice of N to the scalar that they add to the loss."""


def topk_tail(
    hidden: Tensor,
    head: Head,
    ids: Tensor,
    kept: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    chunk_bytes: int | None = None,
    with_mean: bool = False,
) -> Columns:
    """Reduce `hidden @ head` to its kept columns and its tail.

    Args:
        hidden: `[N, D]`, only the positions that count.
        head: the student's head.
        ids: `[N, K] int64`, unique among the kept ones of a row; K may be 0.
        kept: `[N, K] bool`; False marks padding. A row that keeps none has everything in its tail.
        labels: `[N] int64`.
        temperature: of the columns; label logit, lse and mean are always at T=1.
        chunk_bytes: budget of all that is V wide.
        with_mean: also give the mean logit.

    Returns:
        `Columns`, differentiable once in hidden, weight and bias; float32, or float64 if `hidden` is.
    """
    wants = torch.is_grad_enabled() and any(_needs(hidden, head))
    rows = chunk_rows(
        head,
        accumulator(hidden),
        chunk_bytes,
        hidden.device,
        temperature=temperature,
        gradients=wants,
    )
    with torch.autocast(hidden.device.type, enabled=False):  # precision is the head's to decide
        out = _TopkTail.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, ids, kept, labels, head, temperature, rows, with_mean
        )
    return Columns(*out)


def topk_tail_loss(
    hidden: Tensor,
    head: Head,
    ids: Tensor,
    kept: Tensor,
    labels: Tensor,
    chunk_loss: ChunkLoss,
    *,
    temperature: float = 1.0,
    chunk_bytes: int | None = None,
    with_mean: bool = False,
) -> Tensor:
    """Sum over chunks of a loss on their columns, with the gradients made on the way.

    Args:
        hidden, head, ids, kept, labels, temperature, chunk_bytes, with_mean: as of `topk_tail`.
        chunk_loss: called once for each chunk, in order. It must depend on the student through the columns alone:
            gradients reach hidden, weight and bias, nothing else.

    Returns:
        Scalar, differentiable once; float32, or float64 if `hidden` is.
    """
    need = _needs(hidden, head) if torch.is_grad_enabled() else (False, False, False)
    rows = chunk_rows(
        head,
        accumulator(hidden),
        chunk_bytes,
        hidden.device,
        temperature=temperature,
        gradients=any(need),
    )
    with torch.autocast(hidden.device.type, enabled=False):
        loss: Tensor = _TopkTailLoss.apply(  # type: ignore[no-untyped-call]
            hidden,
            head.weight,
            head.bias,
            ids,
            kept,
            labels,
            head,
            temperature,
            rows,
            with_mean,
            chunk_loss,
            need,
        )
    return loss


def _needs(hidden: Tensor, head: Head) -> tuple[bool, bool, bool]:
    return (
        hidden.requires_grad,
        head.weight.requires_grad,
        head.bias is not None and head.bias.requires_grad,
    )


class _TopkTail(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        kept: Tensor,
        labels: Tensor,
        head: Head,
        temperature: float,
        rows: int,
        with_mean: bool,
    ) -> tuple[Tensor, ...]:
        n, k = ids.shape
        dtype = accumulator(hidden)
        columns = hidden.new_empty((n, k + 1), dtype=dtype)
        others = tuple(hidden.new_empty(n, dtype=dtype) for _ in range(4))
        worker = ChunkWorker(
            hidden,
            replace(head, weight=weight, bias=bias),
            ids,
            kept,
            labels,
            temperature=temperature,
            rows=rows,
            need=(False, False, False),
            with_mean=with_mean,
        )
        for part in worker.parts:
            for whole, found in zip((columns, *others), worker.reduce(part), strict=True):
                whole[part] = found
        ctx.save_for_backward(hidden, weight, bias, ids, kept, labels)
        ctx.head, ctx.temperature, ctx.rows, ctx.with_mean = head, temperature, rows, with_mean
        ctx.mark_non_differentiable(others[-1])
        return columns, *others

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, g_columns: Tensor, g_label: Tensor, g_lse: Tensor, g_mean: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, kept, labels = ctx.saved_tensors
        worker = ChunkWorker(
            hidden,
            replace(ctx.head, weight=weight, bias=bias),
            ids,
            kept,
            labels,
            temperature=ctx.temperature,
            rows=ctx.rows,
            need=ctx.needs_input_grad[:3],
            with_mean=ctx.with_mean,
        )
        for part in worker.parts:
            worker.reduce(part)
            worker.gradients(part, g_columns[part], g_label[part], g_lse[part], g_mean[part])
        return *worker.results(), *(None,) * 7


class _TopkTailLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        kept: Tensor,
        labels: Tensor,
        head: Head,
        temperature: float,
        rows: int,
        with_mean: bool,
        chunk_loss: ChunkLoss,
        need: tuple[bool, bool, bool],
    ) -> Tensor:
        worker = ChunkWorker(
            hidden,
            replace(head, weight=weight, bias=bias),
            ids,
            kept,
            labels,
            temperature=temperature,
            rows=rows,
            need=need,
            with_mean=with_mean,
        )
        total = hidden.new_zeros((), dtype=accumulator(hidden))
        for part in worker.parts:
            found = worker.reduce(part)
            if not any(need):
                total += chunk_loss(found, part)
                continue
            leaves = [x.requires_grad_() for x in found[:4]]
            with torch.enable_grad():
                loss = chunk_loss(found, part)
            gradients = torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True)
            worker.gradients(part, *gradients)
            total += loss.detach()
        ctx.save_for_backward(*worker.results())
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.saved_tensors
        if g.item() != 1.0:  # in place: a second copy of the head's gradient would not fit
            found = [None if d is None else d.mul_(g) for d in found]
        return *found, *(None,) * 9
