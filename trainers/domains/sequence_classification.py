"""Classifiers of texts as students, and as exports: `input_ids`, `attention_mask` -> `logits [B, C]`.

Padding stands on the right, as in training: an encoder with learnt positions counts them from the first token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from softlabels.core.rows import UNLABELLED
from softlabels.domains.text import TextRow
from trainers.data.tasks import Task
from trainers.domains.encoder import EncoderDomain
from trainers.exports.domains import Example, Laid, Wrapped
from trainers.exports.texts import Texts, text_example


class _Classifier(Wrapped):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits.float()


class SequenceClassification(EncoderDomain, Texts):
    """A row is an example, its class the one output."""

    name = "sequence-classification"
    usage = (
        "`input_ids` and `attention_mask` are `[batch, length]` int64, of any batch and length up to the model's "
        "longest; the mask is 1 at tokens and 0 at padding, which is on the right. `logits[b]` are those of text b, "
        "one for each class of `id2label` in `config.json`."
    )
    unit = "texts"
    module = _Classifier
    sample = "not a bad film"
    unmasked = {}  # noqa: RUF012

    def head_parameters(self, task: Task, width: int) -> int:
        """A pooler, and the head."""
        return width * width + width + (width + 1) * len(task.classes)

    def of_row(self, row: TextRow) -> list[Example]:
        """Its text."""
        return [text_example(row.fed_ids, row.labels[row.labels != UNLABELLED])]

    def lay(self, examples: Sequence[Example], *, left: bool = False) -> Laid:
        """On the right always."""
        inputs, _ = self.side_by_side(examples, left=False)
        return Laid(inputs=inputs, places=np.arange(len(examples)))


DOMAIN = SequenceClassification()
