"""How many rows a shard has, said before the corpus is read.

A corpus of many bytes is estimated from its beginning. Without `--shard-rows` its shards then have more rows, so that
there are no more than `USUAL` of them. What a builder holds in memory is bounded by `LARGE_ROWS`: of a corpus for which
such shards are too small there are more, up to `MOST`. Above some thousands their records lie in pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from softlabels.builder.config import BuildConfig
from softlabels.core.progress import Reporter
from softlabels.corpora import Corpus
from softlabels.corpora.beginning import beginnings, share_taken
from softlabels.domains import DOMAINS
from softlabels.domains.maker import CorpusPass, RowMaker
from softlabels.errors import PlanError
from softlabels.teachers import Teacher

ROWS = 256
"""In a shard, where nothing asks for more."""
USUAL = 32_768
"""Shards of a store, where larger ones make up for it: a folder of as many names is listed in no time."""
LARGE_ROWS = 8_192
"""Rows of a shard, of which a builder holds two: a GB, if a row has 512 tokens."""
MOST = 2**20
"""Shards of a store for which rows are chosen."""
CANNOT_FIT = 2 * MOST
"""Shards that no build plans: each takes half a kB of memory until all are known."""
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
        PlanError: `--shard-rows` is so small that there would be too many shards.
    """
    rows = estimated_rows(config, corpora, teacher)
    if rows is None:
        return config if config.shard_rows is not None else replace(config, shard_rows=ROWS)
    least = -(-round(rows * DOUBT) // MOST)
    if config.shard_rows is None:
        chosen = chosen_rows(rows)
        if chosen > ROWS:
            shards = -(-rows // chosen)
            report.notice(
                f"about {rows:,} rows: {chosen:,} in a shard (--shard-rows), about {shards:,} shards"
            )
        return replace(config, shard_rows=chosen)
    if rows / DOUBT / config.shard_rows > CANNOT_FIT:
        raise PlanError(
            f"--shard-rows {config.shard_rows}: the corpus has about {rows:,} rows, and a store has at most "
            f"{CANNOT_FIT:,} shards; use --shard-rows {least} or more, or leave it out"
        )
    return config


def chosen_rows(rows: int) -> int:
    """Rows of a shard of a corpus of about so many rows."""
    usual, least = (-(-round(rows * DOUBT) // shards) for shards in (USUAL, MOST))
    wanted = max(min(usual, LARGE_ROWS), least)
    return max(ROWS, -(-wanted // ROWS) * ROWS)


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
