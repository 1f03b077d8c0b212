"""Documents to rows of an encoder and decoder: a pair of texts is a row."""

from __future__ import annotations

from softlabels.corpora import Document
from softlabels.domains.labelled import Cut, RowEach
from softlabels.domains.seq2seq import PairRow, start_of
from softlabels.errors import CorpusError
from softlabels.teachers import Teacher


class Pairs(RowEach):
    """Sources with their targets; neither may be longer than `--seq-len`."""

    transformers_teacher = "softlabels.domains.seq2seq.teacher:from_transformers"

    def row(self, document: Document, number: int, teacher: Teacher, cut: Cut) -> PairRow:
        """The row of a pair."""
        if document.prompt is None or document.completion is None:
            raise CorpusError(
                f'{document.where}: expected a "source" and a "target"; other records are of other domains'
            )
        encode = teacher.tokenizer.encode_text
        source, of_source = encode(document.prompt, most=cut.seq_len)
        target, of_target = encode(document.completion, most=cut.seq_len)
        cut.check(document, of_source, of_target)
        return PairRow(
            source_ids=source,
            target_ids=target,
            start=start_of(teacher.tokenizer.record),
            document=number,
        )


MAKER = Pairs()
