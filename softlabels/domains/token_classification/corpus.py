"""Documents to rows of token classification: a list of words is a row, each word's first token has the target."""

from __future__ import annotations

import numpy as np

from softlabels.corpora import Document
from softlabels.domains.labelled import RowEach, count_cut, label_id
from softlabels.domains.maker import CorpusPass
from softlabels.domains.text import TextRow
from softlabels.domains.token_classification import DOMAIN
from softlabels.errors import CorpusError


class ClassifiedWords(RowEach):
    """Lists of words, each with a class."""

    transformers_teacher = "softlabels.teachers.hf_classifier:HFClassifierTeacher"

    def row(self, document: Document, number: int, over: CorpusPass) -> TextRow:
        """The row of a list; a word that the tokenizer leaves out is refused."""
        if document.words is None:
            raise CorpusError(
                f'{document.where}: expected "words"; texts and conversations are of other domains'
            )
        ids, words, whole = over.teacher.tokenizer.encode_words(
            document.words, most=over.config.seq_len
        )
        count_cut(over, document, whole)
        begins = (words >= 0) & (np.diff(words, prepend=-1) != 0)
        last = len(document.words) if whole == len(ids) else int(words.max(initial=-1)) + 1
        missing = np.setdiff1d(np.arange(last), words[begins])
        if len(missing):
            raise CorpusError(
                f"{document.where}: word {missing[0]}, {document.words[missing[0]]!r}, has no token, so it can have no "
                "class; remove it"
            )
        labels = document.word_labels or (None,) * len(document.words)
        numbers = [
            label_id(label, over.teacher.need_classes(), where=f"{document.where}: word {i}")
            for i, label in enumerate(labels[:last])
        ]
        return DOMAIN.row(ids, begins, np.array(numbers, np.int32), document=number)


MAKER = ClassifiedWords()
