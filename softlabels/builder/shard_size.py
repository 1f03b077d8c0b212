"""How many rows a shard has, so that the records of all shards fit, said before the corpus is read.

Plan and manifest are records, of which readers refuse more than `RECORD_LIMIT` bytes. A corpus of so many bytes that it
could need more shards is estimated from its beginning; without `--shard-rows` its shards then have more rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from softlabels.builder.config import BuildConfig
from softlabels.core.progress import Reporter
from softlabels.core.records import RECORD_LIMIT
from softlabels.corpora import Corpus
from softlabels.corpora.beginning import beginnings, share_taken
from softlabels.domains import DOMAINS
from softlabels.domains.maker import CorpusPass, RowMaker
from softlabels.errors import PlanError
from softlabels.teachers import Teacher

ROWS = 256
"""In a shard, where nothing asks for more."""
LARGEST, SMALLEST = 480, 268
"""Bytes of a plan for each shard: of numbers of 13 digits, and the fewest that there can be."""
FIT, CANNOT_FIT = RECORD_LIMIT // LARGEST, RECORD_LIMIT // SMALLEST
"""Shards that any plan can hold, and that none can."""
LARGE = 2**28
"""Bytes of files from which on a corpus is estimated: a smaller one needs fewer shards."""
SAMPLE = 2**20
"""Bytes of its beginning that are tokenised for that."""
DOUBT = 1.25
"""The rows of a corpus are at most so many times those that its beginning promises."""


def with_shard_rows(
    config: BuildConfig, corpora: Sequence[Corpus], teacher: Teacher, report: Reporter
) -> BuildConfig:
    """The same build, with the rows of a shard.

    Raises:
        PlanError: `--shard-rows` is so small that no plan can hold the shards.
    """
    rows = estimated_rows(config, corpora, teacher)
    if rows is None:
        return config if config.shard_rows is not None else replace(config, shard_rows=ROWS)
    least = -(-round(rows * DOUBT) // FIT)
    if config.shard_rows is None:
        chosen = max(ROWS, -(-least // ROWS) * ROWS)
        if chosen > ROWS:
            report.notice(
                f"about {rows:,} rows: {chosen:,} in a shard (--shard-rows), since a plan holds {FIT:,} shards"
            )
        return replace(config, shard_rows=chosen)
    if rows / DOUBT / config.shard_rows > CANNOT_FIT:
        raise PlanError(
            f"--shard-rows {config.shard_rows}: the corpus has about {rows:,} rows, and a plan holds {FIT:,} shards; "
            f"use --shard-rows {least} or more, or leave it out"
        )
    return config


def estimated_rows(config: BuildConfig, corpora: Sequence[Corpus], teacher: Teacher) -> int | None:
    """How many rows a job has, about; None: so few that it does not matter, or nothing tells before they are read."""
    maker: RowMaker = DOMAINS.load(config.domain).maker
    if (known := maker.known_rows(config, corpora)) is not None:
        return known if config.limit_rows is None else min(known, config.limit_rows)
    parts = beginnings(corpora, SAMPLE)
    if parts is None or sum(p.total for p in parts) < LARGE:
        return None
    over = CorpusPass(config=config, corpora=parts, teacher=teacher)
    most = config.limit_rows
    taken = sum(1 for _ in islice(maker.rows(over), most))
    rows = round(taken / share_taken(parts))
    return rows if most is None else min(rows, most)
