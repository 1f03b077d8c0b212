"""Students whose whole model runs at once: encoders with a head over classes or tokens.

What their head is given is caught on its way (`head_input`), so whatever lies between body and head (a pooler, a
transform, dropout) stays the model's own affair.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from softlabels.core.head_input import head_input
from softlabels.errors import ConfigError
from trainers.data.batch import Batch
from trainers.students import Student


def class_head(model: nn.Module, classes: int, *, where: str) -> nn.Linear:
    """The last linear layer of a classifier, from features to classes.

    Raises:
        ConfigError: there is none of so many outputs.
    """
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not found:
        raise ConfigError(
            f"{where}: {type(model).__name__} has no linear layer with {classes} outputs, one for each class of the "
            "store; give a model that ends in one"
        )
    return found[-1]


def token_head(model: Any, *, where: str) -> nn.Linear:
    """The layer of a masked LM that leads to the vocabulary.

    Raises:
        ConfigError: it has none that is linear.
    """
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        return head
    raise ConfigError(
        f"{where}: {type(model).__name__} has no linear layer over the vocabulary as its output embeddings; give a "
        "model that has"
    )


class EncoderStudent(Student):
    """An encoder that reads a text whole, with a linear head."""

    fed: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Any, head: nn.Linear, *, source: Path | None = None) -> None:
        super().__init__(model, source=source)
        object.__setattr__(self, "_head", head)  # the model's own: registered once

    _head: nn.Linear

    @property
    def vocab_size(self) -> int:
        """C: the width of the head."""
        return int(self._head.weight.shape[0])

    def hidden(self, batch: Batch) -> Tensor:
        """What the head is given: `[N, D]` of a class for a whole text, `[B, S, D]` of one for each token."""
        return head_input(self._head, lambda: self.forward_model(batch))[0]

    def forward_model(self, batch: Batch) -> Any:
        """Run the whole model."""
        return self.model(**batch.inputs)

    def hidden_and_layer(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """`hidden`, and `[N, D]`: what the last layer gave at the positions."""
        layers: list[Tensor] = []

        def keep(_: nn.Module, __: Any, out: Any) -> None:
            layers.append(out[0])

        with self.model.base_model.register_forward_hook(keep):
            hidden = self.hidden(batch)
        return hidden, batch.at_positions(layers[-1])

    def head_layer(self) -> nn.Linear:
        """The linear layer that is the head."""
        return self._head
