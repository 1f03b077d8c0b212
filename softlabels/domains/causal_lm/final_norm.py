"""The norm after a body's last layer, which some engines' states are given before, and others after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn


class Normed(NamedTuple):
    """What a body did."""

    norm: nn.Module | None
    """The module that its last states come from; None: they come from several."""
    before: Tensor
    """`[B, S, D]`: what the norm was given; without one the last states."""
    out: Any
    """What the body returned."""


def through_norm(body: nn.Module, fed: Mapping[str, Tensor], **settings: Any) -> Normed:
    """Run a body of transformers and see what its last states come from."""
    given: dict[nn.Module, tuple[Any, Any]] = {}

    def keep(module: nn.Module, args: Any, out: Any) -> None:
        given[module] = (args[0] if args else None, out)

    hooks = [m.register_forward_hook(keep) for m in body.modules() if not list(m.children())]
    try:
        out = body(**fed, **settings)
    finally:
        for hook in hooks:
            hook.remove()
    last = out.last_hidden_state
    norm = next((m for m, (_, said) in given.items() if said is last), None)
    return Normed(norm, last if norm is None else given[norm][0], out)
