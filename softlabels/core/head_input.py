"""What a model's head is given, got through the model's own forward but without its logits.

So whatever lies between body and head (a pooler, a scale, dropout), and whatever wraps the whole model (DDP's
gradient reduction, the autocast that accelerate puts around `forward`), stays the model's own affair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from softlabels.errors import ConfigError

T = TypeVar("T")


def head_input(head: nn.Module, forward: Callable[[], T]) -> tuple[Tensor, T]:
    """Run a forward; of `[B, S, D]` its head then computes nothing.

    Returns:
        What the head was given, `[B, S, D]` or `[N, D]`; what `forward` returned, of the former with logits
        `[B, 0, V]`.

    Raises:
        ConfigError: it does not call the head, or calls it more than once.
    """
    caught: list[Tensor] = []

    def catch(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        caught.append(args[0])
        return (args[0][:, :0] if args[0].dim() == 3 else args[0],)

    with head.register_forward_pre_hook(catch):
        out = forward()
    if len(caught) != 1:
        raise ConfigError(
            f"the model's forward calls its head, {head}, {len(caught)} times, expected once; use a model that does"
        )
    return caught[0], out
