"""Documents to rows of token classification: a list of words is a row, each word's first token has the target.

A text that is longer than a row is refused, or, with `--truncate`, cut to the row's length and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from softlabels.corpora import Corpus, Document, documents_of
from softlabels.corpora.packing import CorpusCounts
from softlabels.corpora.texts import label_id
from softlabels.domains import token_classification
from softlabels.domains.text import TextRow
from softlabels.errors import CorpusError
from softlabels.rows import BEGINNING, Cursor
from softlabels.teachers import TextTeacher

__all__ = ["classified_words"]


def classified_words(
    corpora: Sequence[Corpus],
    teacher: TextTeacher,
    *,
    seq_len: int,
    truncate: bool = False,
    start: Cursor = BEGINNING,
    skip_empty: bool = False,
    counts: CorpusCounts | None = None,
) -> Iterator[tuple[Cursor, TextRow]]:
    """Rows of `token-classification`, from `start` on.

    Args:
        seq_len: S, at most.
        truncate: cut longer texts.
        start: a cursor that an earlier pass yielded.
        counts: filled in as rows are yielded.

    Raises:
        CorpusError: no words, too many, one that the tokenizer leaves out, a label that the teacher does not know.
    """
    counts = counts if counts is not None else CorpusCounts()
    for number, document in documents_of(corpora, skip_empty=skip_empty):
        if number < start.document:
            continue
        if document is None:
            counts.skipped_empty += 1
            continue
        row = _row(document, number, teacher, seq_len, truncate=truncate, counts=counts)
        counts.documents += 1
        yield Cursor(number, 0), row


def _row(
    document: Document,
    number: int,
    teacher: TextTeacher,
    seq_len: int,
    *,
    truncate: bool,
    counts: CorpusCounts,
) -> TextRow:
    if document.words is None:
        raise CorpusError(
            f'{document.where}: expected "words"; texts and conversations are of other domains'
        )
    ids, words, whole = teacher.tokenizer.encode_words(document.words, most=seq_len)
    if whole > len(ids):
        if not truncate:
            raise CorpusError(
                f"{document.where}: {whole} tokens do not fit in a row of {seq_len}; raise --seq-len, or pass "
                "--truncate to cut such texts (they are counted in the manifest)"
            )
        counts.truncated += 1
    begins = (words >= 0) & (np.diff(words, prepend=-1) != 0)
    found = words[begins]
    last = len(document.words) if whole == len(ids) else int(words.max(initial=-1)) + 1
    missing = np.setdiff1d(np.arange(last), found)
    if len(missing):
        raise CorpusError(
            f"{document.where}: word {missing[0]}, {document.words[missing[0]]!r}, has no token, so it can have no "
            "class; remove it"
        )
    labels = document.word_labels or (None,) * len(document.words)
    return token_classification.make_row(
        ids,
        begins,
        np.array(
            [
                label_id(label, teacher.classes, where=f"{document.where}: word {i}")
                for i, label in enumerate(labels[:last])
            ],
            np.int32,
        ),
        document=number,
    )
