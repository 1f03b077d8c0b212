"""`sequence-classification`: one class for a whole text; rows are `TextRow` with one position, token 0."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from softlabels.domains.text import TextDomain, TextRow


class SequenceClassification(TextDomain):
    """A text is a row."""

    name = "sequence-classification"
    lists = (("input_ids", np.int32),)
    numbers = (
        ("document", np.int64),
        ("label", np.int32),
    )
    classified = True
    transformers = "AutoModelForSequenceClassification"

    def row(self, input_ids: npt.NDArray[np.int32], *, document: int, label: int) -> TextRow:
        """The row of a text `[S]` and its class."""
        mask = np.zeros(len(input_ids), np.bool_)
        mask[:1] = True
        return TextRow(
            domain=self.name,
            input_ids=input_ids,
            fed_ids=input_ids,
            document=document,
            view=0,
            label_mask=mask,
            labels=np.full(min(len(input_ids), 1), label, np.int32),
        )


DOMAIN = SequenceClassification()
