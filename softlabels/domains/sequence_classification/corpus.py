"""Documents to rows of a classifier: a text is a row, its label comes with it."""

from __future__ import annotations

from softlabels.corpora import Document
from softlabels.domains.labelled import Cut, RowEach, label_id
from softlabels.domains.sequence_classification import DOMAIN
from softlabels.domains.text import TextRow
from softlabels.errors import CorpusError
from softlabels.teachers import Teacher


class ClassifiedTexts(RowEach):
    """Texts, each with a class."""

    transformers_teacher = "softlabels.teachers.hf_classifier:from_transformers"

    def row(self, document: Document, number: int, teacher: Teacher, cut: Cut) -> TextRow:
        """The row of a text."""
        if document.text is None:
            raise CorpusError(
                f'{document.where}: expected a "text"; conversations and word lists are of other domains'
            )
        ids, whole = teacher.tokenizer.encode_text(document.text, most=cut.seq_len)
        cut.check(document, whole)
        label = label_id(document.label, teacher.need_classes(), where=document.where)
        return DOMAIN.row(ids, document=number, label=label)


MAKER = ClassifiedTexts()
