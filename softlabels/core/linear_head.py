"""A linear head over the vocabulary: what makes logits of the states that it is given."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Cap(NamedTuple):
    """What becomes of the output of a head before it is a logit."""

    scale: float = 1.0
    """It is multiplied by this,"""
    softcap: float | None = None
    """then becomes `softcap * tanh(z / softcap)`; None: as it is."""

    def __call__(self, z: Tensor) -> Tensor:
        """Logits of the head's output."""
        if self.scale != 1.0:
            z = z * self.scale
        return z if self.softcap is None else torch.tanh(z / self.softcap) * self.softcap


class LinearHead(NamedTuple):
    """A teacher's head. Logits of states `h [N, D]`: `cap(h @ weight.T + bias)`."""

    weight: Tensor
    """`[V, D]`."""
    bias: Tensor | None = None
    """`[V]`."""
    scale: float = 1.0
    """Of its `cap`."""
    softcap: float | None = None
    """Of its `cap`."""

    @property
    def cap(self) -> Cap:
        """Scale and cap."""
        return Cap(self.scale, self.softcap)


def bias_of(model: Any, head: Any) -> Tensor | None:
    """`[V]`: what is added to a head's product, by its layer or, in BART's kin, by a buffer beside it."""
    own: Tensor | None = getattr(head, "bias", None)
    beside: Tensor | None = getattr(model, "final_logits_bias", None)
    if beside is None:
        return own
    beside = beside.reshape(-1).to(head.weight.dtype)
    return beside if own is None else own + beside
