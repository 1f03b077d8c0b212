"""Causal language models: `input_ids`, `attention_mask` -> `logits [B, S, V]`.

The mask is an input, for without it a batch padded on the left cannot be right. Positions are counted inside from the
mask, so that padding on either side gives a text the logits that it has alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from trainers.exports.domains import Example, Laid

if TYPE_CHECKING:
    from softlabels.rows import Row
    from softlabels.store.reader import Store

__all__ = ["CAUSAL_LM", "CausalLM"]


class _Masked(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
        logits: Tensor = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).logits
        return logits.float()


class CausalLM:
    """Each document of a row is an example of its own, as the exported model sees texts."""

    name = "causal-lm"
    inputs = ("input_ids", "attention_mask")
    axes: Mapping[str, Mapping[int, str]] = {
        "input_ids": {0: "batch", 1: "length"},
        "attention_mask": {0: "batch", 1: "length"},
    }
    usage = (
        "`input_ids` and `attention_mask` are `[batch, length]` int64, of any batch and length up to the model's "
        "longest; the mask is 1 at tokens and 0 at padding, which may be on the left or the right. One text in each "
        "row: unlike in training, texts do not share one. `logits[b, t]` are those of the token after token t; at "
        "padding they mean nothing."
    )
    unit = "tokens"
    auto_class = "AutoModelForCausalLM"

    def module(self, model: Any) -> nn.Module:
        """The model with its mask as an input."""
        return _Masked(model)

    def examples(self, store: Store, rows: Sequence[int]) -> list[Example]:
        """The documents of those rows."""
        found = []
        for r in rows:
            row = cast("Row", store.row(r).row)
            start = 0
            for n in row.segment_lengths.tolist():
                ids = row.input_ids[start : start + n].astype(np.int64)
                labelled = np.flatnonzero(row.label_mask[start : start + n])
                found.append(_example(ids, labelled))
                start += n
        return found

    def lay(self, examples: Sequence[Example], *, left: bool = False) -> Laid:
        """Padding is id 0 under mask 0."""
        lengths = [self.size(e) for e in examples]
        width = max(lengths)
        ids, mask = (np.zeros((len(examples), width), np.int64) for _ in range(2))
        places = []
        for b, (example, n) in enumerate(zip(examples, lengths, strict=True)):
            first = width - n if left else 0
            ids[b, first : first + n] = example.inputs["input_ids"]
            mask[b, first : first + n] = 1
            places.append(b * width + first + np.arange(n))
        return Laid(
            inputs={"input_ids": ids, "attention_mask": mask}, places=np.concatenate(places)
        )

    def shortest(self, example: Example) -> Example:
        """One token."""
        return _example(example.inputs["input_ids"][:1], np.empty(0, np.int64))

    def reference(self, model: Any, example: Example) -> Tensor:
        """No mask, nothing to pad."""
        ids = torch.from_numpy(example.inputs["input_ids"])[None]
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
        return logits

    def preparation(self, files: Collection[str]) -> str:
        """With the tokenizer where there is one."""
        if "tokenizer.json" in files:
            ids = (
                "import numpy as np, tokenizers\n"
                'tokenizer = tokenizers.Tokenizer.from_file("PATH/tokenizer.json")\n'
                'ids = np.array([tokenizer.encode("It is a truth").ids])\n'
            )
        else:
            ids = "import numpy as np\nids = np.array([[1, 2, 3]])  # of the student's vocabulary\n"
        return ids + 'inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}\n'

    def size(self, example: Example) -> int:
        """Tokens."""
        return len(example.inputs["input_ids"])


CAUSAL_LM = CausalLM()


def _example(ids: Any, labelled: Any) -> Example:
    return Example(
        inputs={"input_ids": ids, "attention_mask": np.ones(len(ids), np.int64)},
        labels=ids[labelled + 1],
        labelled=labelled,
    )
