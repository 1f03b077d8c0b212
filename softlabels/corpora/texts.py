"""Documents to rows of an encoder: a text is a row, its label comes with it.

A text that is longer than a row is refused, or, with `--truncate`, cut to the row's length and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from softlabels.core.rows import Cursor
from softlabels.corpora import Corpus, Document
from softlabels.corpora.labelled import Cut, label_id, one_row_each
from softlabels.domains import sequence_classification
from softlabels.domains.text import TextRow
from softlabels.errors import CorpusError
from softlabels.teachers import Teacher

__all__ = ["classified_texts"]


def classified_texts(
    corpora: Sequence[Corpus], teacher: Teacher, **how: Any
) -> Iterator[tuple[Cursor, TextRow]]:
    """Rows of `sequence-classification`; `how` as for `one_row_each`.

    Raises:
        CorpusError: an empty text, one that is too long, a label that the teacher does not know.
    """

    def make_row(document: Document, number: int, cut: Cut) -> TextRow:
        if document.text is None:
            raise CorpusError(
                f'{document.where}: expected a "text"; conversations and word lists are of other domains'
            )
        ids, whole = teacher.tokenizer.encode_text(document.text, most=cut.seq_len)
        cut.check(document, whole)
        label = label_id(document.label, teacher.need_classes(), where=document.where)
        return sequence_classification.make_row(ids, document=number, label=label)

    return one_row_each(corpora, make_row, **how)
