"""Documents to rows of an encoder: a text is a row, its label comes with it.

A text that is longer than a row is refused, or, with `--truncate`, cut to the row's length and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from softlabels.corpora import Corpus, Document, documents_of
from softlabels.corpora.packing import CorpusCounts
from softlabels.domains import sequence_classification
from softlabels.domains.text import TextRow
from softlabels.errors import CorpusError
from softlabels.rows import BEGINNING, UNLABELLED, Cursor
from softlabels.teachers import TextTeacher

__all__ = ["classified_texts", "label_id"]


def classified_texts(
    corpora: Sequence[Corpus],
    teacher: TextTeacher,
    *,
    seq_len: int,
    truncate: bool = False,
    start: Cursor = BEGINNING,
    skip_empty: bool = False,
    counts: CorpusCounts | None = None,
) -> Iterator[tuple[Cursor, TextRow]]:
    """Rows of `sequence-classification`, from `start` on.

    Args:
        seq_len: S, at most.
        truncate: cut longer texts.
        start: a cursor that an earlier pass yielded.
        counts: filled in as rows are yielded.

    Raises:
        CorpusError: an empty text, one that is too long, a label that the teacher does not know.
    """
    counts = counts if counts is not None else CorpusCounts()
    for number, document in documents_of(corpora, skip_empty=skip_empty):
        if number < start.document:
            continue
        if document is None:
            counts.skipped_empty += 1
            continue
        ids = _tokens(document, teacher, seq_len, truncate=truncate, counts=counts)
        label = label_id(document.label, teacher.classes, where=document.where)
        counts.documents += 1
        yield (
            Cursor(number, 0),
            sequence_classification.make_row(ids, document=number, label=label),
        )


def _tokens(
    document: Document, teacher: TextTeacher, seq_len: int, *, truncate: bool, counts: CorpusCounts
) -> npt.NDArray[np.int32]:
    if document.text is None:
        raise CorpusError(
            f'{document.where}: expected a "text"; conversations and word lists are of other domains'
        )
    ids, whole = teacher.tokenizer.encode_text(document.text, most=seq_len)
    if whole > len(ids):
        if not truncate:
            raise CorpusError(
                f"{document.where}: {whole} tokens do not fit in a row of {seq_len}; raise --seq-len, or pass "
                "--truncate to cut such texts (they are counted in the manifest)"
            )
        counts.truncated += 1
    return ids


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
