"""Domains in which a document is one row, cut to its length, with a label or none."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

from softlabels.core.rows import UNLABELLED, Cursor, InputRow
from softlabels.corpora import Document, documents_of
from softlabels.domains.maker import CorpusPass, RowMaker
from softlabels.errors import CorpusError


class RowEach(RowMaker):
    """A document is a row."""

    @abstractmethod
    def row(self, document: Document, number: int, over: CorpusPass) -> InputRow:
        """The row of a document.

        Raises:
            CorpusError: it is of another kind, is too long, or its labels are none of the teacher's.
        """

    def rows(self, over: CorpusPass) -> Iterator[tuple[Cursor, InputRow]]:
        """Rows in the order of the documents."""
        for number, document in documents_of(
            over.corpora, skip_empty=over.config.skip_empty, start=over.start, alive=over.alive
        ):
            if document is None:
                over.counts.skipped_empty += 1
                continue
            row = self.row(document, number, over)
            over.counts.documents += 1
            yield Cursor(number, 0, document.location), row


def count_cut(over: CorpusPass, document: Document, *tokens: int) -> None:
    """Count a document of which a sequence has more tokens than a row; `CorpusError` unless such are to be cut."""
    if max(tokens) <= over.config.seq_len:
        return
    if not over.config.truncate:
        raise CorpusError(
            f"{document.where}: {max(tokens)} tokens do not fit in a row of {over.config.seq_len}; raise --seq-len, "
            "or pass --truncate to cut such texts (they are counted in the manifest)"
        )
    over.counts.truncated += 1


def label_id(label: str | int | None, classes: Sequence[str], *, where: str) -> int:
    """The number of a label, `UNLABELLED` of None; `CorpusError` if the teacher has no such class."""
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
