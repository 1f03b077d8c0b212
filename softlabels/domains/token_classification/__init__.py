"""`token-classification`: a class for each word; rows are `TextRow` with a position at each word's first token."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from softlabels.domains.text import TextDomain, TextRow


class TokenClassification(TextDomain):
    """A list of words is a row."""

    name = "token-classification"
    lists = (
        ("input_ids", np.int32),
        ("label_mask", np.bool_),
        ("labels", np.int32),
    )
    numbers = (("document", np.int64),)
    classified = True
    transformers = "AutoModelForTokenClassification"

    def row(
        self,
        input_ids: npt.NDArray[np.int32],
        label_mask: npt.NDArray[np.bool_],
        labels: npt.NDArray[np.int32],
        *,
        document: int,
    ) -> TextRow:
        """The row of a text `[S]`, which of its tokens `[S]` begin a word, and the words' classes `[N]`."""
        return TextRow(
            domain=self.name,
            input_ids=input_ids,
            fed_ids=input_ids,
            document=document,
            view=0,
            label_mask=label_mask,
            labels=labels,
        )


DOMAIN = TokenClassification()
