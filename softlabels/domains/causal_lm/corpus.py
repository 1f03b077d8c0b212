"""Documents to rows of a causal LM: packed, whole or in pieces, as the teacher's tokenizer has them."""

from __future__ import annotations

from collections.abc import Iterator

from softlabels.core.rows import Cursor, Row
from softlabels.corpora.packing import pack
from softlabels.domains.maker import CorpusPass, RowMaker
from softlabels.errors import ConfigError


class PackedDocuments(RowMaker):
    """See `corpora/packing.py`."""

    transformers_teacher = "softlabels.domains.causal_lm.teacher:HFTeacher"

    def rows(self, over: CorpusPass) -> Iterator[tuple[Cursor, Row]]:
        """Refuses more tokens of a document in one row than the teacher was made to read at a time.

        A model computes on beyond its context, and its distributions there are noise. Encoders' tokenizers check their
        own.
        """
        teacher, context = over.teacher, over.teacher.context
        packed = pack(
            over.corpora,
            teacher.tokenizer,
            seq_len=over.config.seq_len,
            vocab_size=teacher.record.vocab_size,
            start=over.start,
            skip_empty=over.config.skip_empty,
            counts=over.counts,
            alive=over.alive,
            ahead=over.ahead,
        )
        for cursor, row in packed:
            longest = int(row.segment_lengths.max())
            if context is not None and longest > context:
                document = int(row.documents[row.segment_lengths.argmax()])
                raise ConfigError(
                    f"--seq-len: a row holds {longest:,} tokens of document {document}, and {teacher.record.spec} "
                    f"reads {context:,} at a time (its context); use --seq-len {context}, which cuts documents into "
                    "pieces and loses none of them"
                )
            yield cursor, row


MAKER = PackedDocuments()
