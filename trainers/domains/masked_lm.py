"""Masked language models as students."""

from __future__ import annotations

from typing import Any

from torch import nn

from trainers.data.tasks import Task
from trainers.domains.encoder import EncoderDomain
from trainers.students.encoders import token_head


class MaskedLM(EncoderDomain):
    """The head is over the tokens, tied to their embeddings."""

    name = "masked-lm"

    def head(self, model: Any, task: Task, *, where: str) -> nn.Linear:
        """The model's own, over the tokens."""
        return token_head(model, where=where)

    def head_parameters(self, task: Task, width: int) -> int:
        """A layer, its norm, and a bias for each token."""
        return width * width + width + 2 * width + task.vocab_size


DOMAIN = MaskedLM()
