"""Causal language models as students, and as exports: `input_ids`, `attention_mask` -> `logits [B, S, V]`.

The mask is an input, for without it a batch padded on the left cannot be right. Positions are counted inside from the
mask, so that padding on either side gives a text the logits that it has alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from softlabels.core.rows import Row
from trainers.data.tasks import Task
from trainers.domains import SizedDomain
from trainers.exports.domains import Example, Laid, Wrapped
from trainers.exports.texts import Texts, text_example
from trainers.students import Student
from trainers.students.made import context_of_rows, heads

SHORTEST = 512
"""Context, at least: positions are rotations, which cost no parameters."""


def _inner(width: int) -> int:
    """Of a gated layer: 8/3 of the width, in steps of 32."""
    return max(32, round(width * 8 / 3 / 32) * 32)


class _Masked(Wrapped):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
        logits: Tensor = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).logits
        return logits.float()


class CausalLM(SizedDomain, Texts):
    """Each document of a row is an example of its own, as the exported model sees texts."""

    name = "causal-lm"
    usage = (
        "`input_ids` and `attention_mask` are `[batch, length]` int64, of any batch and length up to the model's "
        "longest; the mask is 1 at tokens and 0 at padding, which may be on the left or the right. One text in each "
        "row: unlike in training, texts do not share one. `logits[b, t]` are those of the token after token t; at "
        "padding they mean nothing."
    )
    unit = "tokens"
    module = _Masked
    sample = "It is a truth"

    def student(self, model: Any, task: Task, *, where: str, source: Path | None = None) -> Student:
        """Body and head are called apart."""
        return Student(model, source=source)

    def parameters(self, task: Task, width: int, depth: int) -> int:
        """Of a Llama whose head is tied to its embeddings."""
        v, d = task.vocab_size, width
        return v * d + depth * (4 * d * d + 3 * d * _inner(d) + 2 * d) + d

    def config(self, task: Task, width: int, depth: int, transformers: Any) -> Any:
        """Of a Llama."""
        return transformers.LlamaConfig(
            **task.tokens,
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads(width),
            max_position_embeddings=max(context_of_rows(task), SHORTEST),
            intermediate_size=_inner(width),
            tie_word_embeddings=True,
            architectures=["LlamaForCausalLM"],
        )

    def of_row(self, row: Row) -> list[Example]:
        """Its documents."""
        stops = np.cumsum(row.segment_lengths)[:-1]
        found = []
        for ids, mask in zip(
            *(np.split(x, stops) for x in (row.input_ids, row.label_mask)), strict=True
        ):
            labelled = np.flatnonzero(mask)
            found.append(text_example(ids, ids[labelled + 1], labelled))
        return found

    def lay(self, examples: Sequence[Example], *, left: bool = False) -> Laid:
        """On either side."""
        inputs, firsts = self.side_by_side(examples, left=left)
        begins = firsts + np.arange(len(examples)) * inputs["input_ids"].shape[1]
        places = [b + np.arange(self.size(e)) for b, e in zip(begins, examples, strict=True)]
        return Laid(inputs=inputs, places=np.concatenate(places))

    def size(self, example: Example) -> int:
        """Tokens."""
        return len(example.inputs["input_ids"])


DOMAIN = CausalLM()
