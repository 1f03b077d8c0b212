"""Documents to rows of an encoder and decoder: a pair of texts is a row."""

from __future__ import annotations

from softlabels.corpora import Document
from softlabels.domains.labelled import RowEach, count_cut
from softlabels.domains.maker import CorpusPass
from softlabels.domains.seq2seq import PairRow, start_of
from softlabels.errors import CorpusError


class Pairs(RowEach):
    """Sources with their targets; neither may be longer than `--seq-len`."""

    transformers_teacher = "softlabels.domains.seq2seq.teacher:from_transformers"

    def row(self, document: Document, number: int, over: CorpusPass) -> PairRow:
        """The row of a pair."""
        if document.prompt is None or document.completion is None:
            raise CorpusError(
                f'{document.where}: expected a "source" and a "target"; other records are of other domains'
            )
        encode = over.teacher.tokenizer.encode_text
        source, of_source = encode(document.prompt, most=over.config.seq_len)
        target, of_target = encode(document.completion, most=over.config.seq_len)
        count_cut(over, document, of_source, of_target)
        return PairRow(
            source_ids=source,
            target_ids=target,
            start=start_of(over.teacher.tokenizer.record),
            document=number,
        )


MAKER = Pairs()
