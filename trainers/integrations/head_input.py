"""What a model's head is given, got through the model's own forward but without its logits.

Calling the body alone would go past whatever wraps the whole model: DDP's gradient reduction, the autocast that
accelerate puts around `forward`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from softlabels.errors import ConfigError

__all__ = ["head_input"]


def head_input(model: Any, head: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
    """Hidden states `[B, S, D]` at the head, and the model's outputs, whose logits are `[B, 0, V]`.

    Args:
        model: a causal LM, wrapped or not.
        head: its output embeddings.
        inputs: of its forward, without labels.

    Raises:
        ConfigError: the forward does not call the head, or calls it more than once.
    """
    caught: list[Tensor] = []

    def catch(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        caught.append(args[0])
        return (args[0][:, :0],)

    with head.register_forward_pre_hook(catch):
        outputs = model(**inputs, use_cache=False)
    if len(caught) != 1:
        raise ConfigError(
            f"{type(model).__name__}: its forward calls its output embeddings {len(caught)} times, expected once; "
            "train it with softtrain run"
        )
    return caught[0], outputs
