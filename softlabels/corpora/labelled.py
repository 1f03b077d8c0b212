"""What corpora of labelled documents have in common: one row each, cut to its length, with a label or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from softlabels.core.rows import BEGINNING, UNLABELLED, Cursor
from softlabels.corpora import Corpus, Document, documents_of
from softlabels.corpora.packing import CorpusCounts
from softlabels.errors import CorpusError

__all__ = ["Cut", "label_id", "one_row_each"]

R = TypeVar("R")


class Cut:
    """What becomes of documents longer than a row.

    Args:
        seq_len: S, at most.
        truncate: cut them and count them; else they are refused.
        counts: where they are counted.
    """

    def __init__(self, seq_len: int, *, truncate: bool, counts: CorpusCounts) -> None:
        self.seq_len, self._truncate, self._counts = seq_len, truncate, counts

    def check(self, document: Document, tokens: int) -> None:
        """Told of the tokens of each whole document.

        Raises:
            CorpusError: too many.
        """
        if tokens <= self.seq_len:
            return
        if not self._truncate:
            raise CorpusError(
                f"{document.where}: {tokens} tokens do not fit in a row of {self.seq_len}; raise --seq-len, or pass "
                "--truncate to cut such texts (they are counted in the manifest)"
            )
        self._counts.truncated += 1


def one_row_each(
    corpora: Sequence[Corpus],
    make_row: Callable[[Document, int, Cut], R],
    *,
    seq_len: int,
    truncate: bool = False,
    start: Cursor = BEGINNING,
    skip_empty: bool = False,
    counts: CorpusCounts | None = None,
) -> Iterator[tuple[Cursor, R]]:
    """Rows from `start` on.

    Args:
        make_row: of a document and its ordinal.
        seq_len: S, at most.
        truncate: cut longer documents.
        start: a cursor that an earlier pass yielded.
        counts: filled in as rows are yielded.

    Raises:
        CorpusError: an empty document, one that is too long, or whatever `make_row` refuses.
    """
    counts = counts if counts is not None else CorpusCounts()
    cut = Cut(seq_len, truncate=truncate, counts=counts)
    for number, document in documents_of(corpora, skip_empty=skip_empty):
        if number < start.document:
            continue
        if document is None:
            counts.skipped_empty += 1
            continue
        row = make_row(document, number, cut)
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
