"""Documents to rows of a classifier: a text is a row, its label comes with it."""

from __future__ import annotations

from softlabels.corpora import Document
from softlabels.domains.labelled import RowEach, count_cut, label_id
from softlabels.domains.maker import CorpusPass
from softlabels.domains.sequence_classification import DOMAIN
from softlabels.domains.text import TextRow
from softlabels.errors import CorpusError


class ClassifiedTexts(RowEach):
    """Texts, each with a class."""

    transformers_teacher = "softlabels.teachers.hf_classifier:HFClassifierTeacher"

    def row(self, document: Document, number: int, over: CorpusPass) -> TextRow:
        """The row of a text."""
        if document.text is None:
            raise CorpusError(
                f'{document.where}: expected a "text"; conversations and word lists are of other domains'
            )
        ids, whole = over.teacher.tokenizer.encode_text(document.text, most=over.config.seq_len)
        count_cut(over, document, whole)
        label = label_id(document.label, over.teacher.need_classes(), where=document.where)
        return DOMAIN.row(ids, document=number, label=label)


MAKER = ClassifiedTexts()
