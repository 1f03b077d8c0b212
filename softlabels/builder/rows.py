"""The rows of a build: its corpora, opened and packed as its configuration says, whole or a planned shard at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import cast

from softlabels.builder.config import BuildConfig
from softlabels.core.rows import BEGINNING, Cursor, InputRow, Row
from softlabels.corpora import Corpus, check_begin, open_corpora
from softlabels.corpora.packing import CorpusCounts, pack
from softlabels.corpora.pictures import image_rows
from softlabels.corpora.pieces import masked_texts
from softlabels.corpora.texts import classified_texts
from softlabels.corpora.words import classified_words
from softlabels.domains.masking import MASKED
from softlabels.errors import ConfigError, CorpusError
from softlabels.format.identity import MaskingRecord
from softlabels.format.manifest import PlannedShard
from softlabels.format.shard import inputs_digest
from softlabels.images.sources import ImageSource, open_images
from softlabels.teachers import Teacher

__all__ = [
    "PlannedRows",
    "images_of",
    "masking_of",
    "open_inputs",
    "packed_rows",
]


def open_inputs(config: BuildConfig) -> Sequence[Corpus]:
    """What rows are made from: corpora, or, of images, their one source.

    Raises:
        ConfigError: an unknown kind.
        CorpusError: nothing matches, or the first documents cannot be read.
    """
    if config.of_images:
        return [cast(Corpus, open_images(config.corpus, flag="--corpus"))]
    corpora = open_corpora(config.corpus)
    check_begin(corpora, skip_empty=config.skip_empty)
    return corpora


CLASSIFIED = {
    "sequence-classification": classified_texts,
    "token-classification": classified_words,
}
"""How rows are made where texts have classes."""


def packed_rows(
    config: BuildConfig,
    corpora: Sequence[Corpus],
    teacher: Teacher,
    *,
    start: Cursor = BEGINNING,
    counts: CorpusCounts | None = None,
) -> Iterator[tuple[Cursor, InputRow]]:
    """Rows of the corpora from a cursor on, each with where it begins.

    Raises:
        ConfigError: one is longer than the teacher can read.
        CorpusError: what the corpus holds cannot be taught.
    """
    if config.domain in CLASSIFIED:
        return CLASSIFIED[config.domain](
            corpora,
            teacher,
            seq_len=config.seq_len,
            truncate=config.truncate,
            start=start,
            skip_empty=config.skip_empty,
            counts=counts,
        )
    if (masking := masking_of(config)) is not None:
        return masked_texts(
            corpora,
            teacher.tokenizer,
            masking,
            seq_len=config.seq_len,
            start=start,
            skip_empty=config.skip_empty,
            counts=counts,
        )
    if config.of_images:
        return image_rows(config, images_of(corpora), teacher, start=start, counts=counts)
    packed = pack(
        corpora,
        teacher.tokenizer,
        seq_len=config.seq_len,
        vocab_size=teacher.record.vocab_size,
        start=start,
        skip_empty=config.skip_empty,
        counts=counts,
    )
    return _within_context(packed, teacher)


def _within_context(
    packed: Iterator[tuple[Cursor, Row]], teacher: Teacher
) -> Iterator[tuple[Cursor, Row]]:
    """Refuse more tokens of a document in one row than a teacher was made to read at a time.

    A model computes on beyond its context, and its distributions there are noise. Encoders' tokenizers check their
    own.

    Raises:
        ConfigError: with both numbers.
    """
    context = teacher.context
    for cursor, row in packed:
        longest = int(row.segment_lengths.max())
        if context is not None and longest > context:
            document = int(row.documents[row.segment_lengths.argmax()])
            raise ConfigError(
                f"--seq-len: a row holds {longest:,} tokens of document {document}, and {teacher.record.spec} reads "
                f"{context:,} at a time (its context); use --seq-len {context}, which cuts documents into pieces and "
                "loses none of them"
            )
        yield cursor, row


class PlannedRows:
    """The rows of planned shards.

    Shards that are taken in order are one pass over the corpus; any other shard begins a new pass, in
    which the documents before it are read but not tokenised.
    """

    def __init__(self, config: BuildConfig, corpora: Sequence[Corpus], teacher: Teacher) -> None:
        self._config, self._corpora, self._teacher = config, corpora, teacher
        self._rows: Iterator[tuple[Cursor, InputRow]] = iter(())
        self._next = -1

    def rows_of(self, shard: PlannedShard) -> list[InputRow]:
        """A shard's rows.

        Raises:
            CorpusError: they are not the ones that were planned.
        """
        if self._next != shard.start_row:
            start = Cursor(shard.document, shard.offset)
            self._rows = packed_rows(self._config, self._corpora, self._teacher, start=start)
        self._next = -1  # an error in the midst of a shard leaves nothing to go on from
        rows = [row for _, row in islice(self._rows, shard.rows)]
        if len(rows) != shard.rows or inputs_digest(rows) != shard.inputs_sha256:
            raise CorpusError(
                f"{', '.join(self._config.corpus)}: the rows of shard {shard.index} (from document {shard.document}, "
                f"token {shard.offset}) are not those that were planned: the corpus changed; restore it, or choose "
                "another --out"
            )
        self._next = shard.start_row + shard.rows
        return rows


def masking_of(config: BuildConfig) -> MaskingRecord | None:
    """How a build of `masked-lm` hides tokens; None in other domains."""
    if config.domain != "masked-lm":
        return None
    return MaskingRecord(
        share=0.15 if config.mask_share is None else config.mask_share,
        targets=config.mask_targets or MASKED,
        views=config.views,
        seed=config.seed,
    )


def images_of(corpora: Sequence[Corpus]) -> ImageSource:
    """What `open_inputs` gave of images."""
    return cast(ImageSource, corpora[0])
