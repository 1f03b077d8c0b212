"""`causal-lm`: position t predicts token t+1; rows are `softlabels.core.rows.Row`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from softlabels.core.rows import LABEL_SHIFT, Row
from softlabels.domains import Domain
from softlabels.errors import IntegrityError
from softlabels.format.columns import Column
from softlabels.format.identity import Identity


class CausalLM(Domain):
    """Documents packed into rows."""

    name = "causal-lm"
    label_shift = LABEL_SHIFT
    lists = (
        ("input_ids", np.int32),
        ("segment_lengths", np.int32),
        ("documents", np.int64),
        ("label_mask", np.bool_),
    )
    chained = True
    transformers = "AutoModelForCausalLM"

    def rows_of(
        self, columns: Mapping[str, Column], identity: Identity, *, where: str
    ) -> list[Row]:
        """The rows of these columns."""
        return [Row(**record) for record in self.records(columns)]

    def check(self, row: Row, identity: Identity, *, where: str) -> None:
        """Refuse a row that contradicts itself."""
        tokens = len(row.input_ids)
        if tokens == 0 or len(row.label_mask) != tokens:
            raise IntegrityError(
                f"{where}: {tokens} input_ids but {len(row.label_mask)} entries of label_mask"
            )
        lengths = row.segment_lengths.tolist()  # mostly one or a few
        if not lengths or min(lengths) < 1 or sum(lengths) != tokens:
            raise IntegrityError(f"{where}: segment_lengths do not sum to the {tokens} tokens")
        if len(row.documents) != len(lengths):
            raise IntegrityError(
                f"{where}: {len(lengths)} segments but {len(row.documents)} documents"
            )
        ends = row.segment_lengths.cumsum() - 1
        if row.label_mask[ends].any():
            raise IntegrityError(
                f"{where}: label_mask asks for a token beyond the end of a document"
            )
        v = identity.teacher.vocab_size
        if row.input_ids.view(np.uint32).max() >= v:  # a negative id is among the largest
            raise IntegrityError(f"{where} has an input id outside 0..{v - 1}")


DOMAIN = CausalLM()
