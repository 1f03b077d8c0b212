"""`masked-lm`: tokens of a text that are hidden from the model; rows are `MaskedRow`.

Only the text is stored, and which masked view of it the row is: the masks are drawn again (`masking.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from softlabels.core.rows import UNLABELLED, Int32
from softlabels.domains.masked_lm.masking import ATTENDED, mask_tokens, masking_of
from softlabels.domains.text import TextDomain, TextRow
from softlabels.errors import IntegrityError
from softlabels.format.columns import Column
from softlabels.format.identity import Identity, MaskingRecord, TokenizerRecord


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedRow(TextRow):
    """One masked view of a text, or of a piece of a long one."""

    piece: int
    """Which piece of the text, from 0."""

    @property
    def context(self) -> Int32:
        """`[N] int32`: the label where it is known, else the token that is fed, which is the likeliest."""
        fed = self.fed_ids[self.label_mask]
        return np.where(self.labels == UNLABELLED, fed, self.labels).astype(np.int32)


class MaskedLM(TextDomain):
    """A text, or a piece of a long one, is a row in each of its masked views."""

    name = "masked-lm"
    lists = (("input_ids", np.int32),)
    numbers = (
        ("document", np.int64),
        ("piece", np.int32),
        ("view", np.int32),
    )
    transformers = "AutoModelForMaskedLM"

    def row(
        self,
        input_ids: npt.NDArray[np.int32],
        masking: MaskingRecord,
        tokenizer: TokenizerRecord,
        *,
        document: int,
        piece: int,
        view: int,
    ) -> MaskedRow:
        """The row of a piece `[S]` in one of its views."""
        fed, hidden = mask_tokens(input_ids, masking, tokenizer, view=view)
        known = np.zeros(len(input_ids), np.bool_)
        known[hidden] = True
        everywhere = masking.targets == ATTENDED
        return MaskedRow(
            domain=self.name,
            input_ids=input_ids,
            fed_ids=fed,
            document=document,
            piece=piece,
            view=view,
            label_mask=np.ones(len(input_ids), np.bool_) if everywhere else known,
            labels=np.where(known, input_ids, UNLABELLED).astype(np.int32)
            if everywhere
            else input_ids[hidden],
        )

    def rows_of(
        self, columns: Mapping[str, Column], identity: Identity, *, where: str
    ) -> list[MaskedRow]:
        """The rows of these columns, masked again.

        Raises:
            IntegrityError: a number below 0, or a view that the store has not.
            FormatError: the identity does not say how to mask.
        """
        masking = masking_of(identity)
        numbers = {name: columns[name].values for name, _ in self.numbers}
        for name, values in numbers.items():
            if len(values) and values.min() < 0:
                raise IntegrityError(f"{where} holds a {name} {values.min()}, expected at least 0")
        if (numbers["view"] >= masking.views).any():
            raise IntegrityError(
                f"{where} holds view {numbers['view'].max()}, the manifest says that there are {masking.views}"
            )
        return [
            self.row(masking=masking, tokenizer=identity.tokenizer, **record)
            for record in self.records(columns)
        ]


DOMAIN = MaskedLM()
