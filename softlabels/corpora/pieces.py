"""Documents to rows of a masked LM: a text is one row, or as many pieces as it takes, in each masked view.

No token is lost: a text that is longer than a row is cut into pieces, each with the tokenizer's own marks at its ends.
Views follow one another, each a pass over the whole corpus, so that views of one text are far apart. A text of which
nothing can be hidden is left out, and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from softlabels.core.rows import BEGINNING, Cursor
from softlabels.corpora import Corpus, documents_of
from softlabels.corpora.packing import CorpusCounts
from softlabels.domains import masked_lm
from softlabels.domains.masking import unmaskable
from softlabels.errors import CorpusError
from softlabels.format.identity import MaskingRecord
from softlabels.teachers import TeacherTokenizer

__all__ = ["masked_texts"]


def masked_texts(
    corpora: Sequence[Corpus],
    tokenizer: TeacherTokenizer,
    masking: MaskingRecord,
    *,
    seq_len: int,
    start: Cursor = BEGINNING,
    skip_empty: bool = False,
    counts: CorpusCounts | None = None,
) -> Iterator[tuple[Cursor, masked_lm.MaskedRow]]:
    """Rows of `masked-lm`, from `start` on.

    Args:
        seq_len: S, at most.
        start: a cursor that an earlier pass yielded: its document counts those of earlier views, too, its
            offset is the piece.
        counts: filled in as rows are yielded, each document once.

    Raises:
        CorpusError: an empty document, one that is no text, a row too short for a token between the marks.
    """
    counts = counts if counts is not None else CorpusCounts()
    ordinal = -1
    for view in range(masking.views):
        for number, document in documents_of(corpora, skip_empty=skip_empty):
            ordinal += 1
            if ordinal < start.document:
                continue
            if document is None:
                counts.skipped_empty += view == 0
                continue
            if document.text is None:
                raise CorpusError(
                    f'{document.where}: expected a "text"; conversations and word lists are of other domains'
                )
            pieces = tokenizer.encode_pieces(document.text, most=seq_len)
            if all(unmaskable(ids, tokenizer.record).all() for ids in pieces):
                counts.skipped_short += view == 0
                continue
            counts.documents += view == 0
            for piece, ids in enumerate(pieces):
                if (ordinal, piece) < start:
                    continue
                row = masked_lm.make_row(
                    ids, masking, tokenizer.record, document=number, piece=piece, view=view
                )
                yield Cursor(ordinal, piece), row
