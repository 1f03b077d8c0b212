"""A linear head over the vocabulary, worked through a few rows of logits at a time.

`Chunks` owns the only buffers that are as wide as the vocabulary. They are made once and overwritten by every
chunk: on a CPU, asking the system for fresh pages costs more than all the arithmetic between the matrix products.

Shapes: n rows of a chunk, D width, V vocabulary, K kept ids.

In the tail's log-sum-exp the kept ids are masked with -inf, never subtracted: in float32 `1 - sum` loses a small
tail altogether. Everything is taken relative to the tail's own largest logit, so each exponential is at most 1,
their sum is between 1 and V, and nothing overflows or vanishes, however peaked the student.

One exponential of V serves both temperatures: e at the higher T, and a power of it at the lower, where what
underflows in e would underflow all the more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from softlabels.core.linear_head import Cap
from trainers.loss.head import Head, accumulator, chunk_rows
from trainers.loss.vocabulary import Sums, Vocabulary

SLICE = 4096
"""Rows of the head's gradient that are made at a time where products run in another dtype than sums."""


class Columns(NamedTuple):
    """What is left of the logits."""

    columns: Tensor
    """`[N, K+1]`: `z_k / T` of the kept ids (`-inf` in slots not kept), then the tail's log-sum-exp of `z / T`
    (`-inf` if nothing is outside). `log_softmax` of a row is the student over K+1 bins."""
    label_logit: Tensor
    """`[N]`: logit of the label, at T=1."""
    lse: Tensor
    """`[N]`: log-sum-exp of all logits, at T=1. `lse - label_logit` is the cross-entropy."""
    mean_logit: Tensor
    """`[N]`: mean of all V logits, at T=1, as label smoothing needs it; 0 where it was not asked for."""
    tail_top: Tensor
    """`[N]`: largest `z / T` outside the kept set (`-inf` if nothing is); a constant, without gradient."""


class Chunks(ABC):
    """Reduces a chunk of logits to `Columns`, and turns gradients of those into gradients of what made the logits.

    `gradients` belongs to the chunk of the `reduce` before it, and overwrites what it needed of it.

    Args:
        hidden: `[N, D]`, only the positions that count.
        vocabulary: where the logits of ids lie; `_products` gives those of the ids here.
        cap: of the logits that `_products` gives.
        ids: `[N, K] int64`, unique among the kept ones of a row; K may be 0.
        kept: `[N, K] bool`; False marks padding. A row that keeps none has everything in its tail.
        labels: `[N] int64`.
        rows: of a chunk.
        training: whether gradients of anything are wanted.
        temperature: of the columns; label logit, lse and mean are always at T=1.
        with_mean: whether the mean logit is wanted.
    """

    leaves: tuple[Tensor | None, ...]
    """What gradients may be wanted of."""

    def __init__(
        self,
        hidden: Tensor,
        *,
        vocabulary: Vocabulary,
        cap: Cap,
        ids: Tensor,
        kept: Tensor,
        labels: Tensor,
        rows: int,
        training: bool,
        temperature: float,
        with_mean: bool,
    ) -> None:
        self.hidden, self.ids, self.kept, self.labels = hidden.detach(), ids, kept, labels
        self.t, self.with_mean, self.training, self.cap = temperature, with_mean, training, cap
        self.dtype = accumulator(hidden)
        self.vocabulary = vocabulary
        shape = (min(rows, max(len(ids), 1)), vocabulary.here)
        new = hidden.new_empty
        self._z = new(shape, dtype=self.dtype)
        self._other = new(shape, dtype=self.dtype) if temperature != 1.0 else None
        self._capped = (
            new(shape, dtype=self.dtype) if training and cap.softcap is not None else None
        )
        self.parts = [slice(i, i + rows) for i in range(0, len(ids), rows)]

    @abstractmethod
    def _products(self, part: slice, out: Tensor) -> None:
        """Write the head's output for a chunk, before scale and cap, into `out [n, V]`."""

    @abstractmethod
    def _spread(self, part: slice, dz: Tensor) -> None:
        """Add what a gradient `dz [n, V]` of that output means for the leaves; `dz` may be overwritten."""

    @abstractmethod
    def results(self) -> tuple[Tensor | None, ...]:
        """The gradient of each of the leaves, in its own dtype (None: not wanted)."""

    def _logits(self, part: slice) -> Tensor:
        n = len(self.hidden[part])
        z = self._z[:n]
        self._products(part, z)
        if self.cap.scale != 1.0:
            z.mul_(self.cap.scale)
        if self.cap.softcap is not None:
            z.div_(self.cap.softcap).tanh_()
            if self._capped is not None:
                self._capped[:n].copy_(z)
            z.mul_(self.cap.softcap)
        return z

    def reduce(self, part: slice) -> Columns:
        """The chunk's columns; none of them refers to a buffer."""
        ids, kept, t = self.ids[part], self.kept[part], self.t
        z = self._logits(part)
        vocabulary = self.vocabulary
        label, found = vocabulary.at(z, self.labels[part, None])[:, 0], vocabulary.at(z, ids)
        mean = z.sum(dim=1) / vocabulary.size if self.with_mean else None
        # Padding repeats a kept id, so only a row without any has ids that must stay as they are.
        vocabulary.take_out(z, ids, found, kept.any(dim=1, keepdim=True))
        top = vocabulary.largest(z.amax(dim=1, keepdim=True))
        shift = top.masked_fill(top == -torch.inf, 0.0)
        z.sub_(shift)
        if self._other is None:
            z.exp_()
            sum_t = sum_1 = z.sum(dim=1)
            self._at_t = self._at_1 = z
        else:
            other, hot = self._other[: len(z)], max(t, 1.0)
            z.div_(hot).exp_()
            torch.pow(z, hot / min(t, 1.0), out=other)
            self._at_t, self._at_1 = (z, other) if t > 1.0 else (other, z)
            sum_t, sum_1 = self._at_t.sum(dim=1), self._at_1.sum(dim=1)
        found, label, sum_t, sum_1, mean = vocabulary.added(Sums(found, label, sum_t, sum_1, mean))
        s = found.masked_fill(~kept, -torch.inf)
        tail_t = sum_t.log() + shift[:, 0] / t
        tail_1 = sum_1.log() + shift[:, 0]
        lse = torch.logsumexp(torch.cat([s, tail_1[:, None]], dim=1), dim=1)
        # What `gradients` needs: the shares of kept ids and tail at T=1, and the two sums (1 where nothing is outside).
        self._shares = (s - lse[:, None]).exp_()
        self._tail_1 = (tail_1 - lse).exp_() / sum_1.masked_fill(sum_1 == 0, 1.0)
        self._tail_t = 1.0 / (t * sum_t.masked_fill(sum_t == 0, 1.0))
        columns = torch.cat([s / t, tail_t[:, None]], dim=1)
        if mean is None:
            mean = torch.zeros_like(label)
        return Columns(columns, label, lse, mean, top[:, 0] / t)

    def gradients(
        self, part: slice, g_columns: Tensor, g_label: Tensor, g_lse: Tensor, g_mean: Tensor
    ) -> None:
        """Add what these gradients of the chunk's columns mean for hidden, weight and bias."""
        k = self.ids.shape[1]
        dz = self._at_t
        if self._other is None:
            dz.mul_((g_columns[:, k] * self._tail_t + g_lse * self._tail_1)[:, None])
        else:
            dz.mul_((g_columns[:, k] * self._tail_t)[:, None])
            dz.addcmul_(self._at_1, (g_lse * self._tail_1)[:, None])
        d_kept = g_columns[:, :k] / self.t + g_lse[:, None] * self._shares
        vocabulary = self.vocabulary
        vocabulary.add_at(dz, self.ids[part], d_kept.masked_fill_(~self.kept[part], 0.0))
        vocabulary.add_at(dz, self.labels[part, None], g_label[:, None])
        if self.with_mean:
            dz.add_(g_mean[:, None] / vocabulary.size)
        if self._capped is not None:
            capped = self._capped[: len(dz)]
            dz.addcmul_(dz, capped.square_(), value=-1.0)  # times 1 - tanh²
        if self.cap.scale != 1.0:
            dz.mul_(self.cap.scale)
        self._spread(part, dz)


class HeadChunks(Chunks):
    """The chunks of a linear head.

    Args:
        hidden: `[N, D]`, only the positions that count.
        head: the student's head.
        ids, kept, labels, temperature, with_mean: as of `Chunks`.
        chunk_bytes: budget of all that is V wide; None: `CHUNK_BYTES`.
    """

    def __init__(
        self,
        hidden: Tensor,
        head: Head,
        ids: Tensor,
        kept: Tensor,
        labels: Tensor,
        *,
        temperature: float = 1.0,
        chunk_bytes: int | None = None,
        with_mean: bool = False,
    ) -> None:
        self.leaves = (hidden, head.weight, head.bias)
        need = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in self.leaves]
        rows = chunk_rows(
            head,
            accumulator(hidden),
            chunk_bytes,
            hidden.device,
            temperature=temperature,
            gradients=any(need),
        )
        super().__init__(
            hidden,
            vocabulary=head.vocabulary,
            cap=head.cap,
            ids=ids,
            kept=kept,
            labels=labels,
            rows=rows,
            training=any(need),
            temperature=temperature,
            with_mean=with_mean,
        )
        self.compute = head.compute_dtype or head.weight.dtype
        self.weight = head.weight.detach().to(self.compute)
        self.bias = None if head.bias is None else head.bias.detach()
        self._low = (
            hidden.new_empty(self._z.shape, dtype=self.compute)
            if self.compute != self.dtype
            else None
        )
        self.d_hidden = torch.empty_like(self.hidden) if need[0] else None
        self.d_weight = torch.zeros_like(head.weight, dtype=self.dtype) if need[1] else None
        self.d_bias = (
            torch.zeros_like(self.bias, dtype=self.dtype)
            if need[2] and self.bias is not None
            else None
        )

    def _products(self, part: slice, out: Tensor) -> None:
        hidden = self.hidden[part].to(self.compute)
        if self._low is None:
            torch.mm(hidden, self.weight.T, out=out)
        else:
            out.copy_(torch.mm(hidden, self.weight.T, out=self._low[: len(out)]))
        if self.bias is not None:
            out.add_(self.bias)

    def _spread(self, part: slice, dz: Tensor) -> None:
        if self.d_bias is not None:
            self.d_bias += dz.sum(dim=0)
        if self._low is not None:
            dz = self._low[: len(dz)].copy_(dz)
        if self.d_hidden is not None:
            if self.d_hidden.dtype == self.compute:
                torch.mm(dz, self.weight, out=self.d_hidden[part])
            else:
                self.d_hidden[part] = dz @ self.weight
        if self.d_weight is not None:
            hidden = self.hidden[part].to(self.compute)
            if self._low is None:
                self.d_weight.addmm_(dz.T, hidden)
                return
            for i in range(0, dz.shape[1], SLICE):
                self.d_weight[i : i + SLICE] += dz[:, i : i + SLICE].T @ hidden

    def results(self) -> tuple[Tensor | None, ...]:
        """Gradients of hidden, weight and bias."""
        _, weight, bias = self.leaves
        assert weight is not None
        d_hidden = self.d_hidden
        if d_hidden is not None:
            d_hidden = self.vocabulary.total(d_hidden)
        return (
            d_hidden,
            None if self.d_weight is None else self.d_weight.to(weight.dtype),
            None if self.d_bias is None or bias is None else self.d_bias.to(bias.dtype),
        )
