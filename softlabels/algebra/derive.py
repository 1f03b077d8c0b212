"""Publishing a store that is made from others, by the protocol of a build.

The flow:
 1. publish the plan, or refuse a folder that holds another job, or anything else;
 2. for each shard without a record: give a source's file a second name, or make, encode, check and publish
    a new one; then the record;
 3. publish the card and, last, the manifest.

One shard is in memory at a time. Whatever ends a run, the same run finishes the job.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from softlabels.codecs.codebook import Codebook
from softlabels.core.durable import publish, publish_link
from softlabels.core.progress import Reporter
from softlabels.core.records import FORMAT, FORMAT_VERSION, check_file
from softlabels.errors import FormatError, IntegrityError, PlanError
from softlabels.format.dictionaries import Dictionaries
from softlabels.format.encoding import check_round_trip, container_of, encode_shard
from softlabels.format.identity import Identity
from softlabels.format.manifest import (
    Commit,
    FileRecord,
    Manifest,
    Plan,
    PlannedShard,
    Provenance,
    Statistics,
)
from softlabels.format.shard import Shard
from softlabels.format.statistics import statistics_of
from softlabels.making.commit import (
    adopt_shard,
    commit_shard,
    committed,
    look,
    record_shard,
    withdraw,
)
from softlabels.making.complete import complete
from softlabels.making.finish import finish
from softlabels.making.plan import PLAN, begun, publish_named, sweep_left
from softlabels.making.quarantine import move_aside, sighting

__all__ = ["Made", "Piece", "Reused", "begin", "commit_pieces", "derive", "make_plan", "named"]

UNLINKABLE = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}
"""Another file system, one without hard links, or one that has no room for another name: the file is copied."""


@dataclass(frozen=True, kw_only=True)
class Reused:
    """A shard of a source that stays as it is."""

    file: Path
    sha256: str
    bytes: int
    statistics: Statistics
    seconds: float
    """What it cost; see `Commit`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """A shard that was made from those of the sources."""

    content: Shard
    teacher_nll: float | None
    """Of `Statistics`; None: not known of these rows."""
    seconds: float
    dictionary: Codebook | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A shard of the new store, and where it comes from."""

    planned: PlannedShard
    source: Reused | Callable[[], Made]


def named(pieces: Sequence[Piece], identity: Identity) -> list[PlannedShard]:
    """The planned shards of pieces, numbered and named one after the other."""
    suffix, n = container_of(identity).suffix, len(pieces)
    return [
        msgspec.structs.replace(p.planned, index=i, name=f"data/train-{i:05d}-of-{n:05d}.{suffix}")
        for i, p in enumerate(pieces)
    ]


def make_plan(
    identity: Identity,
    provenance: Provenance,
    shards: list[PlannedShard],
    files: Mapping[str, bytes],
    *,
    shard_rows: int,
) -> Plan:
    """The plan of a store that is made from others; not sealed yet."""
    return Plan(
        format=FORMAT,
        version=FORMAT_VERSION,
        identity=identity,
        shard_rows=shard_rows,
        files={
            name: FileRecord(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
            for name, data in files.items()
        },
        shards=shards,
        digest="0" * 64,
        provenance=provenance,
    )


def derive(
    out: Path, plan: Plan, files: Mapping[str, bytes], pieces: Sequence[Piece], report: Reporter
) -> Manifest:
    """Make a store from pieces, or finish one that was begun.

    Raises:
        PlanError: `out` holds another job.
        StoreError: the disk is full, a source is damaged, …: what, where and the way out.
    """
    plan = begin(out, plan, files, report)
    if (finished := complete(out, report)) is not None:
        return finished
    return finish(out, plan, commit_pieces(out, plan, pieces, report))


def begin(out: Path, plan: Plan, files: Mapping[str, bytes], report: Reporter) -> Plan:
    """Publish a plan, or find the same one; returns the one in force.

    Raises:
        PlanError: `out` holds another job.
    """
    found = begun(out, report.notice)
    if found is None:
        found = publish_named(out, plan, files)
        sweep_left(out, report.notice)
    for name in ("provenance", "identity", "shards", "files", "shard_rows"):
        if getattr(found, name) != getattr(plan, name):
            raise PlanError(
                f"{out}: its {PLAN} is of another job (its {name} differs); repeat the command that began it with the "
                "same sources, or choose another --out"
            )
    return found


def commit_pieces(out: Path, plan: Plan, pieces: Sequence[Piece], report: Reporter) -> list[Commit]:
    """Publish and record what is not there yet; returns the records of the pieces, in order."""
    find = Dictionaries(out, plan.identity.teacher.vocab_size)
    report.stage("write", sum(p.planned.rows for p in pieces), "rows")
    commits = []
    for shard, piece in zip(plan.shards, pieces, strict=False):
        seen = look(out, shard)
        try:
            found = committed(out, plan, shard)
        except (IntegrityError, FormatError) as e:
            report.notice(f"making shard {shard.index} again: {e}")
            for aside in withdraw(out, shard, seen):
                report.notice(f"what was found is now {aside}")
            found = None
        if found is None and isinstance(piece.source, Reused):
            found = _reuse(out, plan, shard, piece.source, report)
        elif found is None and not isinstance(piece.source, Reused):
            found = adopt_shard(out, plan, shard, notice=report.notice) or _make(
                out, plan, shard, piece.source(), find, report
            )
        assert found is not None
        commits.append(found)
        report.advance(shard.rows)
    return commits


def _reuse(out: Path, plan: Plan, shard: PlannedShard, source: Reused, report: Reporter) -> Commit:
    path = out / shard.name
    while not _published(path, source):
        seen = sighting(path)
        try:
            check_file(path, sha256=source.sha256, size=source.bytes)
        except IntegrityError as e:
            if (aside := move_aside(out, path, seen)) is not None:
                report.notice(
                    f"moved {path} to {aside}, since no record of the store names it ({e})"
                )
            continue
        break
    return record_shard(
        out, plan, shard, source.sha256, source.bytes, source.statistics, source.seconds
    )


def _published(path: Path, source: Reused) -> bool:
    try:
        return publish_link(path, source.file)
    except OSError as e:
        if e.errno not in UNLINKABLE:
            return publish(path, _data(source))  # and meets the same error, which it explains
    return publish(path, _data(source))


def _data(source: Reused) -> bytes:
    return check_file(source.file, sha256=source.sha256, size=source.bytes)


def _make(
    out: Path,
    plan: Plan,
    shard: PlannedShard,
    made: Made,
    find: Dictionaries,
    report: Reporter,
) -> Commit:
    statistics = statistics_of(
        made.content.targets, made.content.rows, plan.identity, nll=made.teacher_nll
    )
    data = encode_shard(made.content, plan.identity, statistics, dictionary=made.dictionary)
    check_round_trip(made.content, data, plan.identity, find, where=str(out / shard.name))
    return commit_shard(out, plan, shard, data, statistics, made.seconds, notice=report.notice)
