"""The rows of a build's planned shards, a shard at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from softlabels.builder.config import BuildConfig
from softlabels.core.rows import Cursor, InputRow
from softlabels.corpora import Corpus
from softlabels.domains import DOMAINS
from softlabels.domains.maker import RowMaker
from softlabels.errors import CorpusError
from softlabels.format.manifest import PlannedShard
from softlabels.format.shard import inputs_digest
from softlabels.teachers import Teacher

__all__ = ["PlannedRows"]


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
            maker: RowMaker = DOMAINS.load(self._config.domain).maker
            self._rows = maker.rows(self._config, self._corpora, self._teacher, start=start)
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
