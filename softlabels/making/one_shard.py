"""One shard: how its content comes about, and the bytes of its file. Nothing here claims or publishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from softlabels.format.encoding import check_round_trip, encode_shard
from softlabels.format.manifest import Plan, Statistics
from softlabels.format.shard import Shard
from softlabels.making.commit import Reused
from softlabels.making.dictionary import ShardDictionary


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """The content of a shard, still to be encoded."""

    content: Shard
    statistics: Statistics
    seconds: float | None = None
    """What it cost when a teacher was run for it; None: what it takes now."""


class Job(Protocol):
    """How the shards of a plan come about.

    It pickles: settings, and where corpus, teacher or source lie. What it opens of them stays in its process.
    """

    store: Path
    """The folder that is made."""
    command: str
    """Of `softlabels`, for messages."""
    stage: str
    """What making a shard is called, in reports of progress."""

    def shard(self, plan: Plan, index: int, advance: Callable[[int], None]) -> Made | Reused:
        """The content of a planned shard: the same whenever, wherever and in whatever order it is asked for.

        Args:
            plan: as it was published.
            advance: may be told of positions that are done, where that takes long.

        Raises:
            SoftLabelsError: the sources are not those of the plan any more, …
        """


def make_shard(job: Job, plan: Plan, index: int) -> tuple[bytes, Statistics]:
    """The bytes of a shard's file, checked by decoding them, and what was counted of it.

    It claims, publishes and starts nothing, so any process may call it that sees the job's sources and the store's
    folder (for its dictionary). `make_store` publishes the same bytes.

    Raises:
        SoftLabelsError: as `Job.shard`; IntegrityError: the bytes decode to something else.
    """
    found = job.shard(plan, index, lambda _: None)
    if isinstance(found, Reused):
        return found.read(), found.statistics
    return encoded(job, plan, index, found, ShardDictionary(job.store, plan)), found.statistics


def encoded(job: Job, plan: Plan, index: int, made: Made, dictionary: ShardDictionary) -> bytes:
    """The bytes of a shard, checked."""
    shard, identity = plan.shards[index], plan.identity
    book = dictionary.of(shard)
    data = encode_shard(made.content, identity, made.statistics, dictionary=book)
    where = str(job.store / shard.name)
    check_round_trip(made.content, data, identity, dictionary.find, where=where)
    return data
