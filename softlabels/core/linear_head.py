"""A teacher's linear head over the vocabulary: what makes logits of the states that it is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LinearHead(NamedTuple):
    """Logits of states `h [N, D]`: `cap(scale * (h @ weight.T + bias))`, of `cap(z) = softcap * tanh(z / softcap)`."""

    weight: Tensor
    """`[V, D]`."""
    bias: Tensor | None = None
    """`[V]`."""
    scale: float = 1.0
    softcap: float | None = None
    """None: logits are not capped."""
