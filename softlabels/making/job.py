"""Making a store: begin -> commit -> finish, the one protocol of all commands that make one.

The flow:
 1. begin: take up the plan that is there, and sweep what a dead builder left, or publish the plan that is asked for;
    refuse a folder that holds another job, or anything else;
 2. commit, until every shard is recorded by somebody: claim one that no living builder holds (those that a dictionary
    is trained on come first); take over what is there already, if it is whole, and move it aside, if it is damaged;
    else have the job make it; then, on a thread of its own and while the job is at the next shard, encode, check by
    decoding, publish, record, release the claim; wait where others hold all that is left;
 3. finish: publish the card and, last, the manifest; clear the claims.

What differs from command to command is the plan, and a `Job`: how the content of a shard comes about.

Stopping it at any moment loses at most the shard that is being made (a kill that leaves no moment to finish: the one
that is being written, too); running the same command again finishes the job. Any number of builders, on all hosts that
share the path, may run at once; none knows how many there are. At most two shards are in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from softlabels.core.progress import Reporter
from softlabels.errors import FormatError, IntegrityError
from softlabels.format.encoding import check_round_trip, encode_shard
from softlabels.format.manifest import (
    MANIFEST,
    Commit,
    Manifest,
    Plan,
    PlannedShard,
    Statistics,
    load_manifest,
)
from softlabels.format.part import refuse_part
from softlabels.format.shard import Shard
from softlabels.making.claims import Claim, Claims, clear_claims
from softlabels.making.commit import (
    Reused,
    Seen,
    adopt_shard,
    commit_shard,
    committed,
    look,
    recorded,
    withdraw,
)
from softlabels.making.dictionary import ShardDictionary
from softlabels.making.finish import check_shards, finish
from softlabels.making.plan import begun, publish_plan, sweep_left
from softlabels.making.quarantine import QUARANTINE
from softlabels.making.repair import repair_store
from softlabels.making.same_job import check_same_job
from softlabels.making.share import Share
from softlabels.making.writer import Writer

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two looks at the shards that other builders have in hand."""


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
    return _encoded(job, plan, index, found, ShardDictionary(job.store, plan)), found.statistics


def make_store(
    job: Job,
    asked: Plan,
    files: Mapping[str, bytes],
    report: Reporter,
    *,
    share: Share | None = None,
) -> Manifest:
    """Make a store, or finish one that was begun, or find it finished.

    Args:
        job: how its shards come about.
        asked: its plan, not sealed.
        files: what lies beside the shards.
        share: the shards that this builder takes first; None: there is no order among builders.

    Raises:
        PlanError: the folder holds another job, or something else.
        SoftLabelsError: what, where and the way out.
    """
    plan = begin(job.store, asked, files, report, command=job.command)
    if (finished := _finished(job.store, report)) is not None:
        return finished
    manifest = finish(job.store, plan, _Builder(job, plan, report, share).run())
    clear_claims(job.store)
    return manifest


def begin(
    store: Path,
    asked: Plan,
    files: Mapping[str, bytes],
    report: Reporter,
    *,
    command: str = "build",
) -> Plan:
    """The plan in force: the one that is there, or else the one that is asked for, published.

    Raises:
        PlanError: another job is planned there, perhaps since this moment by another builder; or it is no store.
    """
    planned = begun(store, report.notice)
    if planned is None:
        planned = publish_plan(store, asked, files)
        sweep_left(store, report.notice)
    check_same_job(store, planned, asked, command=command)
    return planned


def _finished(store: Path, report: Reporter) -> Manifest | None:
    """The manifest of a store that is finished; None: it is not, and shards are to be made.

    Every shard is looked at, without being read. If one is missing or torn the store is repaired, which withdraws the
    manifest, and the shard is made again.

    Raises:
        IntegrityError: something is gone that cannot be made again, or the store is a part.
        StoreError: shards are gone, and a builder is at work on the store.
    """
    if not (store / MANIFEST).exists():
        return None
    refuse_part(store)
    manifest = load_manifest(store)
    try:
        check_shards(store, manifest.shards)
    except IntegrityError as e:
        report.notice(f"{store} was finished, but is not whole: {e}")
    else:
        report.notice(f"{store} is complete already")
        clear_claims(store)  # of a builder that died when all was done
        return manifest
    mended = repair_store(store)
    for action in mended.actions:
        report.notice(f"{action.action} {action.file}: {action.reason}")
    if mended.quarantine:
        report.notice(f"what is not proven to be the store's is now in {store / QUARANTINE}")
    if mended.problems:
        raise IntegrityError(mended.problems[0])
    return None if mended.rebuild else load_manifest(store)


class _Builder:
    """One builder at work on a plan, whatever others do meanwhile; used once."""

    def __init__(self, job: Job, plan: Plan, report: Reporter, share: Share | None) -> None:
        self._own = range(0) if share is None else share.of(len(plan.shards))
        self._job, self._store, self._plan, self._report = job, job.store, plan, report
        self._dictionary = ShardDictionary(self._store, plan)
        self._writer = Writer(report.notice)
        self._before = recorded(self._store)  # on an earlier day: bytes may have rotted since
        self._commits: dict[int, Commit] = {}
        self._damaged: set[int] = set()
        self._pause, self._waited = SHORTEST_PAUSE, False

    def run(self) -> list[Commit]:
        """Go on until every shard is committed; returns all records, in order."""
        shards, report = self._plan.shards, self._report
        self._collect()
        if self._commits:
            report.notice(f"resuming: {len(self._commits)} of {len(shards)} shards are done")
        report.stage(self._job.stage, sum(s.positions for s in self._todo()), "positions")
        looked = time.monotonic()
        with closing(Claims(self._store)) as claims, self._writer:
            while (todo := self._todo()) or self._writer.index is not None:
                claim = None
                first = [s.index for s in todo if s.index < self._dictionary.first]
                if first or not self._writes_first():
                    claim = self._claim(claims, first or [s.index for s in todo])
                if claim is not None:
                    self._pause = SHORTEST_PAUSE
                    self._take(claim)
                elif self._writer.index is not None:
                    self._settle()
                else:
                    self._wait(len(todo))
                if claim is None or time.monotonic() > looked + SHORTEST_PAUSE:
                    report.advance(self._collect())  # one listing of all records
                    looked = time.monotonic()
        return [self._commits[i] for i in range(len(shards))]

    def _claim(self, claims: Claims, indices: list[int]) -> Claim | None:
        """One of these shards: of its share, as long as one is free there, the next."""
        own = [i for i in indices if i in self._own]
        claim = claims.take(own, in_order=True) if own else None
        return claims.take(indices) if claim is None else claim

    def _todo(self) -> list[PlannedShard]:
        """Shards that neither have a record nor are being written here."""
        own = self._writer.index
        return [s for s in self._plan.shards if s.index not in self._commits and s.index != own]

    def _writes_first(self) -> bool:
        """Whether a shard that the dictionary is trained on is being written here."""
        return self._writer.index is not None and self._writer.index < self._dictionary.first

    def _look(self, shard: PlannedShard) -> Commit | None:
        return committed(self._store, self._plan, shard, whole=shard.index in self._before)

    def _collect(self) -> int:
        """Take up the records that others made; returns their positions."""
        positions = 0
        known = self._commits.keys() | self._damaged | {self._writer.index}
        for index in sorted(recorded(self._store) - known):
            if index >= len(self._plan.shards):
                continue
            try:
                found = self._look(self._plan.shards[index])
            except (IntegrityError, FormatError):
                self._damaged.add(index)  # whoever claims the shard makes it again
                continue
            if found is not None:
                self._commits[index] = found
                positions += found.positions
        return positions

    def _wait(self, left: int) -> None:
        if not self._waited:
            self._report.notice(
                f"waiting: the shards that are left ({left}) are in other builders' hands"
            )
        self._waited = True
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _settle(self, waiting: Claim | None = None) -> None:
        """Wait for the shard that is being written, if there is one."""
        if written := self._writer.finish(waiting):
            self._commits[written[0]] = written[1]

    def _take(self, claim: Claim) -> None:
        """Make a claimed shard, unless it is there."""
        shard = self._plan.shards[claim.index]
        with ExitStack() as held:
            held.enter_context(claim)
            seen = look(self._store, shard)
            try:
                found = self._look(shard)
            except (IntegrityError, FormatError) as e:
                if not self._may_withdraw(claim, shard, seen):
                    self._damaged.discard(shard.index)  # and is looked at again
                    return
                self._report.notice(f"making shard {shard.index} again: {e}")
                for aside in withdraw(self._store, shard, seen):
                    self._report.notice(f"what was found is now {aside}")
                found = None
            found = found or adopt_shard(self._store, self._plan, shard, notice=self._report.notice)
            if found is not None:
                self._report.advance(shard.positions)
                self._commits[shard.index] = found
                return
            write = self._make(shard, claim)
            self._settle(claim)
            self._writer.start(claim, write)
            held.pop_all()  # the claim is the writer's now

    def _may_withdraw(self, claim: Claim, shard: PlannedShard, seen: Seen) -> bool:
        """Whether a shard that was found damaged is this builder's to withdraw.

        Not if it stood still for so long that another took over: that one has judged, too, and may have mended it.

        Raises:
            IntegrityError: another builder finished the store with it.
        """
        if look(self._store, shard) != seen:
            return False
        if (self._store / MANIFEST).exists():
            raise IntegrityError(
                f"{self._store / shard.name}: was found damaged, and another builder has finished the store with it; "
                f"run `softlabels repair {self._store}` (nothing was changed)"
            )
        return claim.in_force()

    def _make(self, shard: PlannedShard, claim: Claim) -> Callable[[], Commit]:
        """The job's part; returns what is left to do, which needs neither the job nor a device."""
        told = 0

        def advance(positions: int) -> None:
            nonlocal told
            told += positions
            claim.renew()
            self._writer.renew()
            self._report.advance(positions)

        self._dictionary.train(shard, self._report)
        start = time.perf_counter()
        made = self._job.shard(self._plan, shard.index, advance)
        seconds = time.perf_counter() - start
        advance(shard.positions - told)
        return partial(self._write, shard, made, seconds)

    def _write(self, shard: PlannedShard, made: Made | Reused, seconds: float) -> Commit:
        """Encode, check and publish, on the writer's thread; `seconds` were spent on it before."""
        start = time.perf_counter()
        data: bytes | Reused
        if isinstance(made, Reused):
            data = made
        else:
            data = _encoded(self._job, self._plan, shard.index, made, self._dictionary)
        if made.seconds is not None:
            seconds = made.seconds
        else:
            seconds += time.perf_counter() - start
        return commit_shard(
            self._store,
            self._plan,
            shard,
            data,
            made.statistics,
            seconds,
            notice=self._report.notice,
        )


def _encoded(job: Job, plan: Plan, index: int, made: Made, dictionary: ShardDictionary) -> bytes:
    """The bytes of a shard, checked."""
    shard, identity = plan.shards[index], plan.identity
    book = dictionary.of(shard)
    data = encode_shard(made.content, identity, made.statistics, dictionary=book)
    where = str(job.store / shard.name)
    check_round_trip(made.content, data, identity, dictionary.find, where=where)
    return data
