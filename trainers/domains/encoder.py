"""Domains whose students are encoders: a model that reads a text whole, and a linear head."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from torch import nn

from trainers.data.tasks import Task
from trainers.domains import SizedDomain
from trainers.students.encoders import EncoderStudent, class_head
from trainers.students.made import context_of_rows, heads


class EncoderDomain(SizedDomain):
    """Sized students are a BERT."""

    def head(self, model: Any, task: Task, *, where: str) -> nn.Linear:
        """The model's own, over the classes."""
        return class_head(model, len(task.classes), where=where)

    def student(
        self, model: Any, task: Task, *, where: str, source: Path | None = None
    ) -> EncoderStudent:
        """The whole model runs at once."""
        return EncoderStudent(model, self.head(model, task, where=where), source=source)

    @abstractmethod
    def head_parameters(self, task: Task, width: int) -> int:
        """Of what lies beyond the layers."""

    def parameters(self, task: Task, width: int, depth: int) -> int:
        """Of a BERT."""
        d, inner = width, 4 * width
        layer = 4 * (d * d + d) + (d * inner + inner) + (inner * d + d) + 4 * d
        body = (task.vocab_size + context_of_rows(task) + 1) * d + 2 * d + depth * layer
        return body + self.head_parameters(task, width)

    def config(self, task: Task, width: int, depth: int, transformers: Any) -> Any:
        """Of a BERT."""
        return transformers.BertConfig(
            **task.tokens,
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads(width),
            max_position_embeddings=context_of_rows(task),
            intermediate_size=4 * width,
            type_vocab_size=1,
            tie_word_embeddings=not task.classes,
            **task.settings,
        )
