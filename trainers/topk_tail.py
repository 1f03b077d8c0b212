"""The one dense primitive: student hidden states to K kept logits and the log-sum-exp of all others.

Method: logits are made chunk by chunk under a byte budget, reduced to [n, K+1] and dropped; backward
makes each chunk once more. So nothing of size N x V is ever kept, and the weight's gradient is
accumulated in float32.
Price: one more product of hidden states and head than plain cross-entropy (4 instead of 3), and one
exponential of V a position in each direction at T=1, two at T != 1 with a hard loss.

Shapes: N positions, D width, V vocabulary, K kept ids.

In the tail's log-sum-exp the kept ids are masked with -inf, never subtracted: in float32 `1 - sum` loses
a small tail altogether. With t the tail's log-sum-exp at T, e = exp(z/T - t) is the tail's own softmax, so
every coefficient in backward is at most 1 in size and nothing overflows, however peaked the student.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Columns", "Head", "chunk_rows", "head_logits", "topk_tail"]

CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
"""Default budget of one chunk of logits. On a CPU small chunks stay in the cache: 64 rows of V=49k run
1.3 times as fast as 512."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """A linear head over the vocabulary, as the primitive needs it."""

    weight: Tensor
    """`[V, D]`."""
    bias: Tensor | None = None
    """`[V]`."""
    softcap: float | None = None
    """Logits become `softcap * tanh(logits / softcap)`."""
    scale: float = 1.0
    """Logits are multiplied by it, before the cap."""
    compute_dtype: torch.dtype | None = None
    """In what the products run (None: as the weight is); sums are float32 at least."""


class Columns(NamedTuple):
    """What is left of the logits."""

    columns: Tensor
    """`[N, K+1]`: `z_k / T` of the kept ids (`-inf` in slots not kept), then the tail's log-sum-exp of `z / T`
    (`-inf` if nothing is outside). `log_softmax` of a row is the student over K+1 bins."""
    label_logit: Tensor
    """`[N]`: logit of the label, at T=1."""
    lse: Tensor
    """`[N]`: log-sum-exp of all logits, at T=1. `lse - label_logit` is the cross-entropy."""


def chunk_rows(vocab_size: int, chunk_bytes: int | None, device: torch.device) -> int:
    """Rows of a chunk: the budget over 4 V bytes."""
    budget = chunk_bytes or CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])
    return max(1, budget // (4 * vocab_size))


def topk_tail(
    hidden: Tensor,
    head: Head,
    ids: Tensor,
    kept: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    chunk_bytes: int | None = None,
) -> Columns:
    """Reduce `hidden @ head` to its kept columns and its tail.

    Args:
        hidden: `[N, D]`, only the positions that count.
        head: the student's head.
        ids: `[N, K] int64`, unique among the kept ones of a row; K may be 0.
        kept: `[N, K] bool`; False marks padding. A row that keeps none has everything in its tail.
        labels: `[N] int64`.
        temperature: of the columns; label logit and lse are always at T=1.
        chunk_bytes: budget of one chunk of logits.

    Returns:
        `Columns`, differentiable once in hidden, weight and bias; float32, or float64 if `hidden` is.
    """
    rows = chunk_rows(head.weight.shape[0], chunk_bytes, hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):  # precision is the head's to decide
        out = _TopkTail.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, ids, kept, labels, head, temperature, rows
        )
    return Columns(*out)


def head_logits(hidden: Tensor, head: Head) -> Tensor:
    """Logits `[n, V]` of a few positions, float32 (float64 if `hidden` is)."""
    dtype = _accumulator(hidden)
    compute = head.compute_dtype or head.weight.dtype
    bias = None if head.bias is None else head.bias.to(compute)
    z = torch.nn.functional.linear(hidden.to(compute), head.weight.to(compute), bias).to(dtype)
    return _shape(z, head)


def _shape(z: Tensor, head: Head) -> Tensor:
    if head.scale != 1.0:
        z = z * head.scale
    if head.softcap is not None:
        z = torch.tanh(z / head.softcap) * head.softcap
    return z


def _accumulator(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _lse_(z: Tensor) -> Tensor:
    """Log-sum-exp of each row, overwriting it; -inf for a row of -inf."""
    largest = z.amax(dim=1, keepdim=True)
    shift = largest.masked_fill(largest == -torch.inf, 0.0)
    return z.sub_(shift).exp_().sum(dim=1).log() + shift[:, 0]


def _without_kept_(z: Tensor, ids: Tensor, kept: Tensor) -> Tensor:
    """Overwrite the kept ids of each row with -inf, and nothing in a row that keeps none.

    Padding repeats a kept id, so only a row without any has ids that must stay as they are.
    """
    any_kept = kept.any(dim=1, keepdim=True)
    return z.scatter_(1, ids, z.gather(1, ids).masked_fill_(any_kept, -torch.inf))


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
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, k = ids.shape
        dtype = _accumulator(hidden)
        columns = hidden.new_empty((n, k + 1), dtype=dtype)
        label_logit = hidden.new_empty(n, dtype=dtype)
        lse = hidden.new_empty(n, dtype=dtype)
        compute = head.compute_dtype or weight.dtype
        w = weight.to(compute)
        for i in range(0, n, rows):
            part = slice(i, i + rows)
            z = _logits(hidden[part], w, bias, head, dtype)
            label_logit[part] = z.gather(1, labels[part, None])[:, 0]
            s = z.gather(1, ids[part]).div_(temperature).masked_fill_(~kept[part], -torch.inf)
            if temperature != 1.0:
                lse[part] = _lse_(z.clone())
                z.div_(temperature)
            columns[part, :k] = s
            columns[part, k] = _lse_(_without_kept_(z, ids[part], kept[part]))
            if temperature == 1.0:
                lse[part] = torch.logsumexp(columns[part], dim=1)
        ctx.save_for_backward(hidden, weight, bias, ids, kept, labels, columns, lse)
        ctx.head, ctx.temperature, ctx.rows = head, temperature, rows
        return columns, label_logit, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, g_columns: Tensor, g_label: Tensor, g_lse: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, kept, labels, columns, lse = ctx.saved_tensors
        head, t = ctx.head, ctx.temperature
        k = ids.shape[1]
        dtype = columns.dtype
        compute = head.compute_dtype or weight.dtype
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        w = weight.to(compute)
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_weight = torch.zeros_like(weight, dtype=dtype) if need_weight else None
        d_bias = torch.zeros_like(bias, dtype=dtype) if need_bias and bias is not None else None
        for i in range(0, len(ids), ctx.rows):
            part = slice(i, i + ctx.rows)
            h = hidden[part].to(compute)
            z = _logits(hidden[part], w, bias, head, dtype)
            slope = None if head.softcap is None else 1.0 - (z / head.softcap) ** 2
            tail = columns[part, k:]
            tail = tail.masked_fill(tail == -torch.inf, 0.0)  # nothing outside: every e below is 0
            g_k = g_columns[part, :k].masked_fill(~kept[part], 0.0)
            g_tail, g_all = g_columns[part, k:], g_lse[part, None]
            total = lse[part, None]
            if t == 1.0:
                # lse contains the tail: its gradient there is the tail's softmax times the tail's share.
                dz = _without_kept_(z, ids[part], kept[part]).sub_(tail).exp_()
                dz.mul_(g_tail + g_all * (columns[part, k:] - total).exp())
                d_k = g_k + (g_all * (columns[part, :k] - total).exp()).masked_fill(
                    ~kept[part], 0.0
                )
            else:
                dz = (z - total).exp_().mul_(g_all)
                outside = _without_kept_(z.div_(t), ids[part], kept[part])
                dz.add_(outside.sub_(tail).exp_().mul_(g_tail / t))
                d_k = g_k / t
            dz.scatter_add_(1, ids[part], d_k)
            dz.scatter_add_(1, labels[part, None], g_label[part, None])
            if slope is not None:
                dz.mul_(slope)
            if head.scale != 1.0:
                dz.mul_(head.scale)
            if d_bias is not None:
                d_bias += dz.sum(dim=0)
            dz = dz.to(compute)
            if d_hidden is not None:
                d_hidden[part] = (dz @ w).to(hidden.dtype)
            if d_weight is not None:
                if compute == dtype:
                    d_weight.addmm_(dz.T, h)
                else:
                    d_weight.add_(dz.T @ h)
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None or bias is None else d_bias.to(bias.dtype),
            *(None,) * 6,
        )


def _logits(
    hidden: Tensor, w: Tensor, bias: Tensor | None, head: Head, dtype: torch.dtype
) -> Tensor:
    """One chunk, in a buffer of its own."""
    b = None if bias is None else bias.to(w.dtype)
    z = torch.nn.functional.linear(hidden.to(w.dtype), w, b).to(dtype)
    if head.scale != 1.0:
        z.mul_(head.scale)
    if head.softcap is not None:
        z.div_(head.softcap).tanh_().mul_(head.softcap)
    return z
