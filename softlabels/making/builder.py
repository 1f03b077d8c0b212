"""One builder at work on a plan in a folder, whatever others do meanwhile (`job.py` has the flow).

At most two shards are in memory: the one that the job is at, and the one that is being written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

import numpy as np

from softlabels.core.progress import Reporter
from softlabels.core.records import check_file
from softlabels.core.rows import Int64
from softlabels.errors import FormatError, IntegrityError
from softlabels.format.manifest import MANIFEST, Commit, Manifest, Plan, load_manifest
from softlabels.format.pages import positions_of
from softlabels.format.shard_records import PlannedShard
from softlabels.making.claims import Claim, Claims, at_work
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
from softlabels.making.finish import finish
from softlabels.making.leases import Lease, Ledger
from softlabels.making.one_shard import Job, Made, encoded
from softlabels.making.plan import sweep_paged
from softlabels.making.share import Share
from softlabels.making.writer import Writer

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two looks at the shards that other builders have in hand."""
LISTING = 5.0
"""Seconds between two listings of all records, at least, while there is something to make."""
CHEAP = 2**20
"""Tokens of a document that a builder tokenises again to begin in its midst: a second or so."""
RARELY = 20
"""Times as long as a listing took, at least: of a million names it takes a second."""


class Builder:
    """One builder at work on a plan, whatever others do meanwhile; used once."""

    def __init__(self, job: Job, plan: Plan, report: Reporter, share: Share | None) -> None:
        shards = len(plan.shards)
        self._own = None if share is None else share.of(shards)
        self._job, self._store, self._plan, self._report = job, job.store, plan, report
        self._dictionary = ShardDictionary(self._store, plan)
        self._writer = Writer[Commit](report.notice)
        self._todo = Ledger(shards, self._dictionary.first)
        """Shards that neither have a record nor are being written here."""
        self._commits: dict[int, Commit] = {}
        self._damaged = set[int]()
        self._unsure = set[int]()
        """Shards whose bytes are to be read before the store is finished."""
        self._following: int | None = None
        self._pause, self._waited = SHORTEST_PAUSE, False
        self._listed, self._took = -LISTING, 0.0
        """When all records were listed last, and how long that took."""

    def run(self) -> Manifest:
        """Go on until the store is finished, by this builder or by another."""
        shards, report = self._plan.shards, self._report
        alone = not at_work(self._store)
        self._collect()
        if done := len(shards) - len(self._todo):
            report.notice(f"resuming: {done} of {len(shards)} shards are done")
        if alone:  # recorded on an earlier day, and bytes may have rotted since; a joiner trusts who is at work
            own = range(len(shards)) if self._own is None else self._own
            self._unsure = {i for i in own if i not in self._todo}
        with closing(Claims(self._store)) as claims, self._writer:
            while True:
                self._make_all(claims)
                if (manifest := self._end(claims)) is not None:
                    return manifest

    def _make_all(self, claims: Claims) -> None:
        """Until every shard is recorded, by whichever builders."""
        shards = self._plan.shards
        left = positions_of(shards) - positions_of(shards, self._todo.made)
        self._report.stage(self._job.stage, left, "positions")
        while len(self._todo) or self._writer.index is not None:
            claim = self._claim(claims)
            if claim is not None:
                self._pause = SHORTEST_PAUSE
                self._work(claim)
            elif self._writer.index is not None:
                self._settle()
                self._collect()
            elif len(self._todo):
                self._wait(len(self._todo))
                self._collect()

    def _claim(self, claims: Claims) -> Claim | None:
        """A lease: of its share the next; else the next of its stretch; else a stretch that nobody has begun; else any.

        So a store grows from its beginning, and who follows it (`softtrain run --follow`) need not wait for its end.
        Where it is dear to begin to read elsewhere a stretch has no end.
        """
        todo = self._todo.open()
        if not todo or (todo[0] >= self._dictionary.first and self._writes_first()):
            return None
        own = [i for i in todo if i in self._own] if self._own else []
        following = [i for i in todo if i == self._following and self._goes_on(i)]
        for wanted in (own, following):
            if wanted and (claim := claims.take(wanted, in_order=True)):
                return claim
        if self._listed_before(0.0):  # else it would claim what others made last
            self._collect()
            todo = self._todo.open()
        stretches = [i for i in todo if self._todo.begins_stretch(i)]
        return (claims.take(stretches) if stretches else None) or claims.take(todo)

    def _goes_on(self, index: int) -> bool:
        """Whether the lease that begins with a shard is of this builder's stretch."""
        return not (self._todo.begins_stretch(index) and self._begins_cheaply(index))

    def _begins_cheaply(self, index: int) -> bool:
        """Whether the corpus can be read from a shard on without reading much before it."""
        shard = self._plan.shards[index]
        return shard.source is not None and shard.offset <= CHEAP

    def _work(self, claim: Claim) -> None:
        """Make the shards of a claimed lease that are still to be made, in order."""
        with Lease(claim, self._todo.lease(claim.index)) as lease:
            self._following = lease.shards.stop
            for index in lease.shards:
                if self._listed_before(LISTING):
                    self._collect()
                if index in self._todo:
                    self._take(lease, self._plan.shards[index])

    def _writes_first(self) -> bool:
        """Whether a shard that the dictionary is trained on is being written here."""
        return self._writer.index is not None and self._writer.index < self._dictionary.first

    def _look(self, shard: PlannedShard) -> Commit | None:
        return committed(self._store, self._plan, shard, whole=shard.index in self._damaged)

    def _collect(self) -> None:
        """Count as made what others recorded: one listing, and no record is read before the store is finished."""
        begun = time.monotonic()
        made = self._todo.all_done(self._recorded())
        self._listed = time.monotonic()
        self._took = self._listed - begun
        self._report.advance(positions_of(self._plan.shards, made))

    def _listed_before(self, seconds: float) -> bool:
        """Whether the last listing is so old, and `RARELY` times as old as it took."""
        return time.monotonic() > self._listed + max(seconds, RARELY * self._took)

    def _recorded(self) -> Int64:
        found = recorded(self._store)
        return found[~np.isin(found, list(self._damaged))] if self._damaged else found

    def _wait(self, left: int) -> None:
        if not self._waited:
            self._report.notice(
                f"waiting: the shards that are left ({left}) are in other builders' hands"
            )
        self._waited = True
        self._sleep()

    def _sleep(self) -> None:
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _settle(self, waiting: Claim | None = None) -> None:
        """Wait for the shard that is being written, if there is one."""
        if written := self._writer.finish(waiting):
            self._commits[written[0]] = written[1]

    def _end(self, claims: Claims) -> Manifest | None:
        """The manifest, published by this builder or by another; None: shards are to be made again.

        The claim on it is that of one shard more than there are, so one builder of many reads all records.
        """
        self._pause = SHORTEST_PAUSE
        while not (self._store / MANIFEST).exists():
            claim = claims.take([len(self._plan.shards)])
            if claim is None:
                if self._pause == SHORTEST_PAUSE:
                    self._report.notice("waiting: another builder finishes the store")
                self._sleep()
                continue
            with claim:
                for name, beside in self._plan.files.items():
                    check_file(self._store / name, sha256=beside.sha256, size=beside.bytes)
                if not self._read_records(claim):
                    return None
                sweep_paged(self._store, self._plan, self._report.notice)
                commits = [self._commits[i] for i in range(len(self._plan.shards))]
                return finish(self._store, self._plan, commits)
        return load_manifest(self._store)

    def _read_records(self, claim: Claim) -> bool:
        """Read what others recorded, and the shards that are to be read; whether all are there and whole."""
        if self._unsure:
            self._report.stage("check", len(self._unsure), "shards")
        for shard in self._plan.shards:
            index, unsure = shard.index, shard.index in self._unsure
            if index in self._commits and not unsure:
                continue
            claim.renew()
            try:
                found = committed(self._store, self._plan, shard, whole=unsure)
            except (IntegrityError, FormatError):
                self._damaged.add(index)  # whoever claims the shard makes it again
                found = None
            if found is None:
                self._commits.pop(index, None)
                self._todo.undone(index)
            else:
                self._commits[index] = found
            if unsure:
                self._report.advance(1)
        self._unsure.clear()
        return not len(self._todo)

    def _take(self, lease: Lease, shard: PlannedShard) -> None:
        """Make a shard of a lease, unless it is there."""
        claim, seen = lease.claim, look(self._store, shard)
        try:
            found = self._look(shard)
        except (IntegrityError, FormatError) as e:
            if not self._may_withdraw(claim, shard, seen):
                self._damaged.discard(shard.index)  # and is looked at again
                self._unsure.add(shard.index)
                return
            self._report.notice(f"making shard {shard.index} again: {e}")
            for aside in withdraw(self._store, shard, seen):
                self._report.notice(f"what was found is now {aside}")
            found = None
        self._damaged.discard(shard.index)
        found = found or adopt_shard(self._store, self._plan, shard, notice=self._report.notice)
        if found is not None:
            self._report.advance(shard.positions)
            self._commits[shard.index] = found
        else:
            write = self._make(shard, claim)
            self._settle(claim)
            self._writer.start(lease.part(shard.index), write)
        self._todo.done(shard.index)

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
        data = (
            made
            if isinstance(made, Reused)
            else encoded(self._job, self._plan, shard.index, made, self._dictionary)
        )
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
