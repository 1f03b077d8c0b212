"""Domains in which a document is one row, cut to its length, with a label or none."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from softlabels.core.rows import BEGINNING, UNLABELLED, Cursor, InputRow
from softlabels.corpora import Corpus, Document, documents_of
from softlabels.corpora.packing import CorpusCounts
from softlabels.domains.maker import RowMaker
from softlabels.errors import CorpusError
from softlabels.teachers import Teacher

if TYPE_CHECKING:
    from softlabels.builder.config import BuildConfig


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What becomes of documents longer than a row."""

    seq_len: int
    truncate: bool
    """Cut them and count them; else they are refused."""
    counts: CorpusCounts
    """Where they are counted."""

    def check(self, document: Document, *tokens: int) -> None:
        """Told how many tokens each sequence of a whole document has.

        Raises:
            CorpusError: too many.
        """
        if max(tokens) <= self.seq_len:
            return
        if not self.truncate:
            raise CorpusError(
                f"{document.where}: {max(tokens)} tokens do not fit in a row of {self.seq_len}; raise --seq-len, or "
                "pass --truncate to cut such texts (they are counted in the manifest)"
            )
        self.counts.truncated += 1


class RowEach(RowMaker):
    """A document is a row."""

    @abstractmethod
    def row(self, document: Document, number: int, teacher: Teacher, cut: Cut) -> InputRow:
        """The row of a document.

        Raises:
            CorpusError: it is of another kind, is too long, or its labels are none of the teacher's.
        """

    def rows(
        self,
        config: BuildConfig,
        corpora: Sequence[Corpus],
        teacher: Teacher,
        *,
        start: Cursor = BEGINNING,
        counts: CorpusCounts | None = None,
    ) -> Iterator[tuple[Cursor, InputRow]]:
        """Rows in the order of the documents."""
        counts = counts if counts is not None else CorpusCounts()
        cut = Cut(seq_len=config.seq_len, truncate=config.truncate, counts=counts)
        for number, document in documents_of(corpora, skip_empty=config.skip_empty):
            if number < start.document:
                continue
            if document is None:
                counts.skipped_empty += 1
                continue
            row = self.row(document, number, teacher, cut)
            counts.documents += 1
            yield Cursor(number, 0), row


def label_id(label: str | int | None, classes: Sequence[str], *, where: str) -> int:
    """The number of a label; `UNLABELLED` of None.

    Raises:
        CorpusError: the teacher has no such class.
    """
    if label is None:
        return UNLABELLED
    if isinstance(label, str) and label in classes:
        return list(classes).index(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(classes):
        return label
    shown = ", ".join(classes[:8]) + (", …" if len(classes) > 8 else "")
    raise CorpusError(
        f"{where}: label {label!r} is none of the teacher's {len(classes)} classes ({shown}); give a name of these, a "
        f"number from 0 to {len(classes) - 1}, or none"
    )
