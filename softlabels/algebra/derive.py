"""Publishing a store that is made from others, without a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from softlabels.core.progress import Reporter
from softlabels.format.identity import Identity
from softlabels.format.manifest import Manifest, Plan, Provenance
from softlabels.format.shard_records import PlannedShard
from softlabels.making.commit import Reused
from softlabels.making.job import make_store
from softlabels.making.one_shard import Made
from softlabels.making.plan import make_plan, numbered


@dataclass(kw_only=True)
class Derived:
    """The shards of a store that is made from others, as a `softlabels.making.job.Job`."""

    store: Path
    command: str
    shards: Sequence[Reused | Callable[[PlannedShard], Made]]
    """A source's, or how it is made of theirs."""
    stage: str = field(default="write", init=False)

    def shard(self, plan: Plan, index: int, advance: Callable[[int], None]) -> Made | Reused:
        """The file of a source, or what is made of them."""
        found = self.shards[index]
        return found if isinstance(found, Reused) else found(plan.shards[index])


def derive(
    out: Path,
    identity: Identity,
    provenance: Provenance,
    planned: Sequence[PlannedShard],
    shards: Sequence[Reused | Callable[[PlannedShard], Made]],
    files: Mapping[str, bytes],
    report: Reporter,
    *,
    shard_rows: int,
) -> Manifest:
    """Make a store of what others hold, or finish one that was begun, as `make_store` does.

    Args:
        planned: its shards, without number and name.
        shards: how each comes about.
    """
    named = numbered(planned, identity)
    plan = make_plan(identity, named, files, shard_rows=shard_rows, provenance=provenance)
    job = Derived(store=out, command=provenance.operation, shards=shards)
    return make_store(job, plan, files, report)
