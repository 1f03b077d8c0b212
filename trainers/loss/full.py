"""The exact loss against all of a teacher's distribution, a few rows of logits at a time.

The flow, for each chunk of positions:
 1. the student's logits `[n, V]` from its hidden states and head, the teacher's from its states and head;
 2. the loss of the chunk from both (`losses.py`): any divergence at any temperature, and the hard part;
 3. its gradient by the student's logits, which at once becomes that of hidden states, weight and bias.

Nothing of size N x V is ever kept: `WIDE` rows of V numbers for each position of a chunk, as many as a byte budget
holds, so that memory does not grow with V. A teacher's head in fewer bits is widened `SLICE` ids at a time.

The price, against `head_chunks.py`: the teacher's product for every position in every epoch, and a loss over V columns
instead of K+1. It is a reference for what a store loses, not a way to train cheaply.

Shapes: n rows of a chunk, N positions, D width of the student, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainers.data.batch import TeacherLogits
from trainers.loss.head import CHUNK_BYTES, Head, accumulator
from trainers.loss.head_chunks import SLICE, Columns
from trainers.loss.topk_tail import ChunkLoss

WIDE = 16
"""Rows of V numbers that exist at a time for a position: logits, log-probabilities and what autograd keeps of a
divergence; measured, of `jsd`, which keeps the most."""


def full_loss(
    hidden: Tensor,
    head: Head,
    labels: Tensor,
    chunk_loss: ChunkLoss,
    *,
    temperature: float,
    chunk_bytes: int | None,
) -> Tensor:
    """Sum over chunks of a loss on all of the student's logits, with the gradients made on the way.

    Args:
        hidden: `[N, D]` of the student, only the positions that count.
        head: the student's.
        labels: `[N] int64`.
        chunk_loss: called once for each chunk, in order, with `Columns` whose columns are `z / T` of all V ids; it must
            depend on the student through them alone.
        temperature: T of the columns.
        chunk_bytes: budget of all that is V wide; None: `CHUNK_BYTES`.

    Returns:
        Scalar, differentiable once; float32, or float64 if `hidden` is.
    """
    with torch.autocast(hidden.device.type, enabled=False):  # the head says how precise
        loss: Tensor = _FullLoss.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, head, labels, chunk_loss, temperature, chunk_bytes
        )
    return loss


def chunks_of(n: int, vocab: int, dtype: torch.dtype, budget: int) -> list[slice]:
    """Slices of n positions whose V-wide numbers fit into a budget, of at least one position each."""
    rows = max(1, budget // (WIDE * vocab * dtype.itemsize))
    return [slice(i, i + rows) for i in range(0, n, rows)]


def logits_of(states: Tensor, head: Head, dtype: torch.dtype) -> Tensor:
    """Logits `[n, V]` of states `[n, D]`, products and sums in `dtype`; a narrower head is widened in slices."""
    v, states = head.weight.shape[0], states.to(dtype)
    out = states.new_empty(len(states), v)
    step = v if head.weight.dtype == dtype else SLICE
    for i in range(0, v, step):
        out[:, i : i + step] = states @ head.weight[i : i + step].to(dtype).T
    if head.bias is not None:
        out += head.bias
    return head.cap(out)


def teacher_log_probs(teacher: TeacherLogits, dtype: torch.dtype, temperature: float) -> Tensor:
    """Log-probabilities `[n, V]` at T."""
    return torch.log_softmax(logits_of(teacher.states, teacher.head, dtype) / temperature, dim=1)


class _FullLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        labels: Tensor,
        chunk_loss: ChunkLoss,
        temperature: float,
        chunk_bytes: int | None,
    ) -> Tensor:
        work = _Chunks(hidden, head, labels, ctx.needs_input_grad[:3], temperature)
        total = hidden.new_zeros((), dtype=work.dtype)
        budget = chunk_bytes or CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["cuda"])
        for part in chunks_of(len(hidden), len(weight), work.dtype, budget):
            total += work.add(part, chunk_loss)
        ctx.save_for_backward(*work.results())
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        found = [None if d is None else d.mul_(g) for d in ctx.saved_tensors]
        return *found, None, None, None, None, None


class _Chunks:
    """The gradients of hidden states, weight and bias, added up chunk by chunk; nothing V wide outlives its chunk."""

    def __init__(
        self, hidden: Tensor, head: Head, labels: Tensor, need: tuple[bool, ...], temperature: float
    ) -> None:
        self.hidden, self.head, self.labels, self.t = hidden, head, labels, temperature
        self.dtype, self.training = accumulator(hidden), any(need)
        weight, bias = head.weight, head.bias
        self.weight = weight.to(head.compute_dtype or weight.dtype)
        self.d_hidden = torch.empty_like(hidden) if need[0] else None
        self.d_weight = torch.zeros_like(weight, dtype=self.dtype) if need[1] else None
        wanted = need[2] and bias is not None
        self.d_bias = weight.new_zeros(len(weight), dtype=self.dtype) if wanted else None

    def add(self, part: slice, chunk_loss: ChunkLoss) -> Tensor:
        """The loss of a chunk, without gradient."""
        own = self.hidden[part].to(self.weight.dtype)
        raw = (own @ self.weight.T).to(self.dtype)
        if self.head.bias is not None:
            raw += self.head.bias
        raw.requires_grad_(self.training)
        with torch.enable_grad():
            z = self.head.cap(raw)
            lse = torch.logsumexp(z, dim=1)
            label = z.gather(1, self.labels[part, None])[:, 0]
            loss = chunk_loss(Columns(z / self.t, label, lse, z.mean(dim=1), lse), part)
        if self.training:
            (dz,) = torch.autograd.grad(loss, raw)
            self._spread(dz, own, part)
        return loss.detach()

    def _spread(self, dz: Tensor, own: Tensor, part: slice) -> None:
        """What the gradient `[n, V]` of a chunk's logits means for what made them."""
        if self.d_bias is not None:
            self.d_bias += dz.sum(dim=0)
        dz = dz.to(self.weight.dtype)
        if self.d_hidden is not None:
            self.d_hidden[part] = (dz @ self.weight).to(self.d_hidden.dtype)
        if self.d_weight is not None:
            for i in range(0, dz.shape[1], SLICE):
                self.d_weight[i : i + SLICE] += dz[:, i : i + SLICE].T @ own

    def results(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of hidden, weight and bias, each in its own dtype (None: not wanted)."""
        weight, bias = self.head.weight, self.head.bias
        return (
            self.d_hidden,
            None if self.d_weight is None else self.d_weight.to(weight.dtype),
            None if self.d_bias is None or bias is None else self.d_bias.to(bias.dtype),
        )
