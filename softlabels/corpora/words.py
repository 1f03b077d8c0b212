"""Documents to rows of token classification: a list of words is a row, each word's first token has the target.

A text that is longer than a row is refused, or, with `--truncate`, cut to the row's length and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from softlabels.core.rows import Cursor
from softlabels.corpora import Corpus, Document
from softlabels.corpora.labelled import Cut, label_id, one_row_each
from softlabels.domains import token_classification
from softlabels.domains.text import TextRow
from softlabels.errors import CorpusError
from softlabels.teachers import Teacher

__all__ = ["classified_words"]


def classified_words(
    corpora: Sequence[Corpus], teacher: Teacher, **how: Any
) -> Iterator[tuple[Cursor, TextRow]]:
    """Rows of `token-classification`; `how` as for `one_row_each`.

    Raises:
        CorpusError: no words, too many, one that the tokenizer leaves out, a label that the teacher does not know.
    """
    return one_row_each(corpora, lambda d, number, cut: _row(d, number, teacher, cut), **how)


def _row(document: Document, number: int, teacher: Teacher, cut: Cut) -> TextRow:
    if document.words is None:
        raise CorpusError(
            f'{document.where}: expected "words"; texts and conversations are of other domains'
        )
    ids, words, whole = teacher.tokenizer.encode_words(document.words, most=cut.seq_len)
    cut.check(document, whole)
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
                label_id(label, teacher.need_classes(), where=f"{document.where}: word {i}")
                for i, label in enumerate(labels[:last])
            ],
            np.int32,
        ),
        document=number,
    )
