"""All of a teacher's distribution at a batch's positions, from states that `softlabels states` kept.

Where a store keeps some ids of a position, these are the teacher itself: states times head are its logits, exact at any
temperature. A run with `--teacher-states` learns from them instead of the store's targets; the store gives inputs,
labels, the order of rows, and which positions have a soft target.

Through a vocabulary view the head keeps the rows of the view's ids: the distribution on condition that one of them
comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from softlabels.core.rows import InputRow, Row
from softlabels.core.views import VocabView
from softlabels.errors import PairingError, TokenizerError
from softlabels.format.shard import StoredRow
from softlabels.store.reader import Store
from softlabels.store.states import TeacherStates
from trainers.data.batch import TeacherLogits
from trainers.loss.head import Head


@dataclass(frozen=True, kw_only=True)
class FullTeacher:
    """A teacher's states and its head, for the rows of a store. Not shared between threads."""

    states: TeacherStates
    head: Head
    """Over the ids that the store is read in."""
    view: VocabView | None
    where: str
    """The store, for messages."""

    @classmethod
    def open(
        cls, folder: Path | str, store: Store, *, flag: str = "--teacher-states"
    ) -> FullTeacher:
        """The states of a folder, for a store.

        Raises:
            FormatError, IntegrityError: it holds no states, or not as recorded.
            PairingError, TokenizerError: they do not go with the store.
        """
        states = TeacherStates(folder)
        record, identity = states.record, store.identity
        if record.tokenizer_sha256 != identity.tokenizer.sha256:
            raise TokenizerError(
                f"{flag} {folder}: its tokenizer (sha256 {record.tokenizer_sha256[:12]}…) is not that of {store.path} "
                f"(sha256 {identity.tokenizer.sha256[:12]}…), so the same id means another token; write the states of "
                "this store's rows: `softlabels states`"
            )
        for what, mine, other in (
            ("domain", record.domain, identity.domain),
            ("vocabulary", record.teacher.vocab_size, identity.teacher.vocab_size),
        ):
            if mine != other:
                raise PairingError(
                    f"{flag} {folder}: its {what} is {mine}, that of {store.path} is {other}; write the states of this "
                    "store's rows: `softlabels states`"
                )
        weight, bias, scale, softcap = states.head()
        if store.view is not None:
            ids = torch.from_numpy(_source_ids(store.view))
            weight, bias = weight[ids], None if bias is None else bias[ids]
        head = Head(weight=weight, bias=bias, scale=scale, softcap=softcap)
        return cls(states=states, head=head, view=store.view, where=str(store.path))

    def to(self, device: torch.device) -> FullTeacher:
        """With its head on a device."""
        bias = None if self.head.bias is None else self.head.bias.to(device)
        return replace(self, head=replace(self.head, weight=self.head.weight.to(device), bias=bias))

    def at(self, rows: Sequence[StoredRow]) -> TeacherLogits:
        """At the positions of some rows of the store.

        Raises:
            PairingError: a row has no states.
            IntegrityError: a file is not as recorded.
        """
        named = [self._named(stored.row) for stored in rows]
        digests, counts = [row.digest() for row in named], [row.n for row in named]
        where = f"{self.where}: rows {[stored.index for stored in rows]}"
        return TeacherLogits(self.states.of(digests, counts, where=where), self.head)

    def facts(self) -> dict[str, Any]:
        """For run.json."""
        return {"digest": self.states.digest, "teacher": self.states.record.teacher.name}

    def _named(self, row: InputRow) -> InputRow:
        """The row in the store's own ids, after which its inputs are called."""
        if self.view is None or self.view.table is None:
            return row
        ids = _source_ids(self.view)[cast(Row, row).input_ids]
        return replace(cast(Row, row), input_ids=ids.astype(np.int32))


def _source_ids(view: VocabView) -> np.ndarray[Any, np.dtype[np.int64]]:
    """`[M]`: the store's id of each of the view's.

    Raises:
        PairingError: one of them is none of the store's.
    """
    if view.table is None:
        return np.arange(view.size)
    found = np.full(view.size, -1, np.int64)
    kept = np.flatnonzero(view.table >= 0)
    found[view.table[kept]] = kept
    if (found < 0).any():
        raise PairingError(
            f"--vocab {view.spec}: id {int(np.argmin(found))} is none of the teacher's, so that its head has no row "
            "for it; leave --teacher-states out, or choose a view without such ids"
        )
    return found
