"""What all students of texts share as exports: they are of transformers, and their inputs are made and padded alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers.exports.domains import Arrays, Example, Exported, Origin, of_transformers

Ids = npt.NDArray[np.integer]
NONE = np.empty(0, np.int64)


def text_example(ids: Ids, labels: Ids, labelled: Ids | None = None, **beside: Ids) -> Example:
    """A text of `[S]` ids, all of them attended to, and what is fed beside it.

    `labelled` says which output each of the labels belongs to; None: they begin with the first.
    """
    fed = {"input_ids": ids, "attention_mask": np.ones(len(ids)), **beside}
    return Example(
        inputs={name: v.astype(np.int64) for name, v in fed.items()},
        labels=labels.astype(np.int64),
        labelled=np.arange(len(labels)) if labelled is None else labelled.astype(np.int64),
    )


class Texts(Exported):
    """`input_ids` and `attention_mask`, both `[B, S]` int64."""

    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    axes: Mapping[str, Mapping[int, str]] = {
        "input_ids": {0: "batch", 1: "length"},
        "attention_mask": {0: "batch", 1: "length"},
    }
    sample: str
    """A text for the model card."""
    unmasked: Mapping[str, Any] = {"use_cache": False}
    """What a model is told when it is asked about one text."""

    def origin(self, folder: Path) -> Origin:
        """All are of transformers."""
        return of_transformers(self.name)

    def side_by_side(
        self, examples: Sequence[Example], *, left: bool
    ) -> tuple[Arrays, npt.NDArray[np.int64]]:
        """One rectangle, padding id 0 under mask 0, and `[B]`: where in its row each text begins."""
        lengths = np.array([len(e.inputs["input_ids"]) for e in examples], np.int64)
        width = int(lengths.max())
        firsts = width - lengths if left else np.zeros_like(lengths)
        ids, mask = (np.zeros((len(examples), width), np.int64) for _ in range(2))
        for b, (example, first, n) in enumerate(zip(examples, firsts, lengths, strict=True)):
            ids[b, first : first + n] = example.inputs["input_ids"]
            mask[b, first : first + n] = 1
        return {"input_ids": ids, "attention_mask": mask}, firsts

    def shortest(self, example: Example) -> Example:
        """One token of each input."""
        inputs = {n: v[:1] for n, v in example.inputs.items()}
        return Example(inputs=inputs, labels=NONE, labelled=NONE)

    def reference(self, model: Any, example: Example) -> Tensor:
        """No mask, nothing to pad."""
        inputs = {n: v for n, v in example.inputs.items() if n != "attention_mask"}
        tensors = {n: torch.from_numpy(v)[None] for n, v in inputs.items()}
        logits: Tensor = model(**tensors, **self.unmasked).logits
        return logits.flatten(0, -2)

    def preparation(self, folder: Path, details: Mapping[str, Any]) -> str:
        """With the tokenizer where there is one."""
        if (folder / "tokenizer.json").is_file():
            ids = (
                "import numpy as np, tokenizers\n"
                'tokenizer = tokenizers.Tokenizer.from_file("PATH/tokenizer.json")\n'
                f'ids = np.array([tokenizer.encode("{self.sample}").ids])\n'
            )
        else:
            ids = "import numpy as np\nids = np.array([[1, 2, 3]])  # of the student's vocabulary\n"
        return ids + 'inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}\n'
