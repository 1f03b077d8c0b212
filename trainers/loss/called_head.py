"""A head that is more than a matrix, worked through a few rows of logits at a time, as `head_chunks.py` does it.

An adapter on the head, a quantised head, one whose forward somebody else has changed: the layer itself is called on
the states of a chunk, and its own autograd turns the gradient of the chunk's logits into that of the states and of
whatever the layer trains. So what lies in it (dropout of an adapter, a norm, a dequantisation) is its own affair.

The price, against a linear head: what autograd keeps of one chunk, and for each chunk a gradient as large as what the
layer trains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from softlabels.core.linear_head import Cap
from trainers.loss.head import CHUNK_BYTES, accumulator
from trainers.loss.head_chunks import Chunks
from trainers.loss.vocabulary import Vocabulary

WIDE = 4
"""Rows of V numbers that a layer's forward and backward hold of a position, beside the chunk's own buffers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CalledHead:
    """A head of which only its forward is known."""

    call: Callable[[Tensor], Tensor]
    """From `[n, D]` to `[n, V]`, before scale and cap."""
    trained: tuple[Tensor, ...]
    """What of it gradients are wanted of."""
    vocab_size: int
    """V."""
    cap: Cap
    """From its output to logits."""
    autocast: torch.dtype | None = None
    """In what its products run; None: as it is."""


class CalledChunks(Chunks):
    """The chunks of a head that is called; arguments as of `HeadChunks`."""

    def __init__(
        self,
        hidden: Tensor,
        head: CalledHead,
        ids: Tensor,
        kept: Tensor,
        labels: Tensor,
        *,
        temperature: float = 1.0,
        chunk_bytes: int | None = None,
        with_mean: bool = False,
    ) -> None:
        self.leaves = (hidden, *head.trained)
        self.head = head
        on = torch.is_grad_enabled()
        self._need = [on and x.requires_grad for x in (hidden, *head.trained)]
        budget = chunk_bytes or CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["cuda"])
        wide = WIDE + 1 + (temperature != 1.0) + (head.cap.softcap is not None)
        super().__init__(
            hidden,
            vocabulary=Vocabulary(head.vocab_size),
            cap=head.cap,
            ids=ids,
            kept=kept,
            labels=labels,
            rows=max(1, budget // (head.vocab_size * wide * accumulator(hidden).itemsize)),
            training=any(self._need),
            temperature=temperature,
            with_mean=with_mean,
        )
        self.d_hidden = torch.empty_like(self.hidden) if self._need[0] else None
        self.d_trained = [
            torch.zeros_like(x, dtype=self.dtype) if need else None
            for x, need in zip(head.trained, self._need[1:], strict=True)
        ]

    def _products(self, part: slice, out: Tensor) -> None:
        self._states = self.hidden[part].detach().requires_grad_(self._need[0])
        with (
            torch.set_grad_enabled(self.training),
            torch.autocast(
                self.hidden.device.type,
                dtype=self.head.autocast,
                enabled=self.head.autocast is not None,
            ),
        ):
            self._raw = self.head.call(self._states)
        out.copy_(self._raw.detach())

    def _spread(self, part: slice, dz: Tensor) -> None:
        asked = [
            x
            for x, need in zip((self._states, *self.head.trained), self._need, strict=True)
            if need
        ]
        found = iter(
            torch.autograd.grad(self._raw, asked, dz.to(self._raw.dtype), allow_unused=True)
        )
        if self.d_hidden is not None:
            d = next(found)
            self.d_hidden[part] = 0.0 if d is None else d
        for total in self.d_trained:
            if total is not None and (d := next(found)) is not None:
                total += d

    def results(self) -> tuple[Tensor | None, ...]:
        """Gradients of hidden and of what the head trains."""
        trained = [
            None if d is None else d.to(x.dtype)
            for d, x in zip(self.d_trained, self.head.trained, strict=True)
        ]
        return (self.d_hidden, *trained)
