"""Classifiers of texts: `input_ids`, `attention_mask` -> `logits [B, C]`, one answer for each text.

Padding stands on the right, as in training: an encoder with learnt positions counts them from the first token.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from softlabels.rows import UNLABELLED
from trainers.exports.domains import Example, Laid

if TYPE_CHECKING:
    from softlabels.domains.text import TextRow
    from softlabels.store.reader import Store

__all__ = ["SEQUENCE_CLASSIFICATION", "SequenceClassification"]


class _Classifier(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits.float()


class SequenceClassification:
    """A row is an example, its class the one output."""

    name = "sequence-classification"
    inputs = ("input_ids", "attention_mask")
    axes: Mapping[str, Mapping[int, str]] = {
        "input_ids": {0: "batch", 1: "length"},
        "attention_mask": {0: "batch", 1: "length"},
    }
    usage = (
        "`input_ids` and `attention_mask` are `[batch, length]` int64, of any batch and length up to the model's "
        "longest; the mask is 1 at tokens and 0 at padding, which is on the right. `logits[b]` are those of text b, "
        "one for each class of `id2label` in `config.json`."
    )
    unit = "texts"
    auto_class = "AutoModelForSequenceClassification"

    def module(self, model: Any) -> nn.Module:
        """The model with its mask as an input."""
        return _Classifier(model)

    def examples(self, store: Store, rows: Sequence[int]) -> list[Example]:
        """The texts of those rows."""
        found = []
        for r in rows:
            row = cast("TextRow", store.row(r).row)
            known = row.labels[row.labels != UNLABELLED].astype(np.int64)
            found.append(_example(row.fed_ids.astype(np.int64), known))
        return found

    def lay(self, examples: Sequence[Example], *, left: bool = False) -> Laid:
        """Padding is id 0 under mask 0, on the right always."""
        lengths = [len(e.inputs["input_ids"]) for e in examples]
        ids, mask = (np.zeros((len(examples), max(lengths)), np.int64) for _ in range(2))
        for b, (example, n) in enumerate(zip(examples, lengths, strict=True)):
            ids[b, :n] = example.inputs["input_ids"]
            mask[b, :n] = 1
        return Laid(
            inputs={"input_ids": ids, "attention_mask": mask}, places=np.arange(len(examples))
        )

    def shortest(self, example: Example) -> Example:
        """One token."""
        return _example(example.inputs["input_ids"][:1], np.empty(0, np.int64))

    def reference(self, model: Any, example: Example) -> Tensor:
        """No mask, nothing to pad: `[1, C]`."""
        logits: Tensor = model(input_ids=torch.from_numpy(example.inputs["input_ids"])[None]).logits
        return logits

    def preparation(self, files: Collection[str]) -> str:
        """With the tokenizer where there is one."""
        if "tokenizer.json" in files:
            ids = (
                "import numpy as np, tokenizers\n"
                'tokenizer = tokenizers.Tokenizer.from_file("PATH/tokenizer.json")\n'
                'ids = np.array([tokenizer.encode("not a bad film").ids])\n'
            )
        else:
            ids = "import numpy as np\nids = np.array([[1, 2, 3]])  # of the student's vocabulary\n"
        return ids + 'inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}\n'

    def size(self, example: Example) -> int:
        """One text."""
        return 1


SEQUENCE_CLASSIFICATION = SequenceClassification()


def _example(ids: Any, labels: Any) -> Example:
    return Example(
        inputs={"input_ids": ids, "attention_mask": np.ones(len(ids), np.int64)},
        labels=labels,
        labelled=np.arange(len(labels)),
    )
