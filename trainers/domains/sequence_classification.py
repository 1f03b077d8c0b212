"""Classifiers of texts as students, and as exports: `input_ids`, `attention_mask` -> `logits [B, C]`.

Padding stands on the right, as in training: an encoder with learnt positions counts them from the first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from softlabels.core.rows import UNLABELLED
from trainers.data.tasks import Task
from trainers.domains.encoder import EncoderDomain
from trainers.exports.domains import Example, Laid
from trainers.exports.texts import Texts, text_example

if TYPE_CHECKING:
    from softlabels.domains.text import TextRow
    from softlabels.store.reader import Store


class _Classifier(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

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
    sample = "not a bad film"

    def head_parameters(self, task: Task, width: int) -> int:
        """A pooler, and the head."""
        return width * width + width + (width + 1) * len(task.classes)

    def module(self, model: Any) -> nn.Module:
        """The model with its mask as an input."""
        return _Classifier(model)

    def examples(self, store: Store, rows: Sequence[int]) -> list[Example]:
        """The texts of those rows."""
        found = []
        for r in rows:
            row = cast("TextRow", store.row(r).row)
            known = row.labels[row.labels != UNLABELLED].astype(np.int64)
            ids = row.fed_ids.astype(np.int64)
            found.append(text_example(ids, known, np.arange(len(known))))
        return found

    def lay(self, examples: Sequence[Example], *, left: bool = False) -> Laid:
        """On the right always."""
        inputs, _ = self.side_by_side(examples, left=False)
        return Laid(inputs=inputs, places=np.arange(len(examples)))

    def reference(self, model: Any, example: Example) -> Tensor:
        """No mask, nothing to pad: `[1, C]`."""
        logits: Tensor = model(input_ids=torch.from_numpy(example.inputs["input_ids"])[None]).logits
        return logits

    def size(self, example: Example) -> int:
        """One text."""
        return 1


DOMAIN = SequenceClassification()
