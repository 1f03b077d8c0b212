"""Where a command makes a store: in a folder (`job.py`), or in a place of another kind, with a scratch folder here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Protocol

from softlabels.core.progress import Reporter
from softlabels.errors import IntegrityError
from softlabels.format.encoding import FindDictionary
from softlabels.format.files import Address
from softlabels.format.manifest import MANIFEST, Manifest, Plan, Statistics
from softlabels.format.pages import positions_of
from softlabels.format.shard_records import PlannedShard
from softlabels.making.commit import Reused, recorded
from softlabels.making.dictionary import ShardDictionary
from softlabels.making.job import begin, carry_out
from softlabels.making.one_shard import Job, encoded
from softlabels.making.place import PAGE, everything
from softlabels.making.place.builder import (
    LONGEST_PAUSE,
    SHORTEST_PAUSE,
    PlaceBuilder,
    Written,
)
from softlabels.making.place.claims import PlaceClaims
from softlabels.making.place.commit import COMMITS, indices
from softlabels.making.place.dictionary import PlaceDictionary
from softlabels.making.place.finish import clear_in, finish_in, finished_in
from softlabels.making.place.names import PLANNING
from softlabels.making.place.plan import Mirror, begin_in, begun_in
from softlabels.making.place.quarantine import clear_mark
from softlabels.making.plan import begun
from softlabels.making.planning import Renewing, planning
from softlabels.making.share import Share
from softlabels.making.writer import Writer

COUNTED = 10_000
"""Of a plan of so many shards a builder asks first which are recorded, ten requests at most."""


class Site(Protocol):
    """Where a store is made."""

    folder: Path
    """What is read again and again lies here: the store itself, or a copy of what is beside its shards."""

    @property
    def root(self) -> Path | Address:
        """What messages call it."""

    def begun(self, report: Reporter) -> Plan | None:
        """The plan that is there; None: none yet, and nothing of anybody else's. Raises as `begun`."""

    def planning(
        self, report: Reporter, plan: Plan | None, files: Mapping[str, bytes]
    ) -> AbstractContextManager[tuple[Plan | None, Reporter]]:
        """Wait for the plan that another builder makes, or be the one that makes it; as `making.planning.planning`."""

    def begin(self, asked: Plan, files: Mapping[str, bytes], report: Reporter) -> Plan:
        """The plan in force: the one that is there, or else the one that is asked for, published. Raises as `begin`."""

    def has_shards(self) -> bool:
        """Whether a shard is recorded."""

    def make(self, job: Job, plan: Plan, report: Reporter, share: Share | None) -> Manifest:
        """Make the store of the plan in force, or find it finished. Raises as `make_store`."""


class FolderSite:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = self.root = folder

    def begun(self, report: Reporter) -> Plan | None:
        """The plan that is there."""
        return begun(self.folder, report.notice)

    def planning(
        self, report: Reporter, plan: Plan | None, files: Mapping[str, bytes]
    ) -> AbstractContextManager[tuple[Plan | None, Reporter]]:
        """Plan once."""
        return planning(self.folder, report, plan, files)

    def begin(self, asked: Plan, files: Mapping[str, bytes], report: Reporter) -> Plan:
        """The plan in force."""
        return begin(self.folder, asked, files, report)

    def has_shards(self) -> bool:
        """Whether a shard is recorded."""
        return recorded(self.folder).size > 0

    def make(self, job: Job, plan: Plan, report: Reporter, share: Share | None) -> Manifest:
        """Make the store."""
        return carry_out(job, plan, report, share)


class PlaceSite:
    """A `Place`, some of whose files are in a scratch folder, too."""

    def __init__(self, mirror: Mirror, try_out: Callable[[bool], None] = lambda _: None) -> None:
        """`try_out` refuses a place that cannot be written to by several; it is told whether a store was begun."""
        self._mirror, self.folder = mirror, mirror.folder
        self._try_out = try_out
        self._known: set[int] | None = None
        """Shards that were recorded when that was asked; None: it was not, or there were too many to be listed."""

    @property
    def root(self) -> Path | Address:
        """The address."""
        return self._mirror.place.root

    def begun(self, report: Reporter) -> Plan | None:
        """The plan that is there."""
        plan = begun_in(self._mirror)
        self._try_out(plan is not None)
        return plan

    @contextmanager
    def planning(
        self, report: Reporter, plan: Plan | None, files: Mapping[str, bytes]
    ) -> Iterator[tuple[Plan | None, Reporter]]:
        """Plan once, under a claim of its own; `begin` refuses other files beside the shards."""
        pause = SHORTEST_PAUSE
        with closing(PlaceClaims(self._mirror.place, 0)) as claims:
            while plan is None and (plan := begun_in(self._mirror)) is None:
                if (lease := claims.take_end(PLANNING)) is not None:
                    try:  # perhaps who held the claim before has planned
                        yield begun_in(self._mirror), Renewing(report, lease.renew)
                    finally:
                        lease.release()
                    return
                if pause == SHORTEST_PAUSE:
                    report.notice("waiting: another builder plans the shards")
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        yield plan, report

    def begin(self, asked: Plan, files: Mapping[str, bytes], report: Reporter) -> Plan:
        """The plan in force."""
        return begin_in(self._mirror, asked, files, command="build")

    def has_shards(self) -> bool:
        """Whether a shard is recorded."""
        page = self._mirror.place.list(COMMITS)
        self._known = None if len(page) == PAGE else indices(page)
        return bool(indices(page))

    def make(self, job: Job, plan: Plan, report: Reporter, share: Share | None) -> Manifest:
        """Make the store."""
        place = self._mirror.place
        known = self._recorded(len(plan.shards))
        manifest = None
        if known is None or len(known) == len(plan.shards):
            try:
                manifest = finished_in(place)
            except IntegrityError:
                if not clear_mark(place, MANIFEST):
                    raise
        if manifest is not None:
            report.notice(f"{place.root} is complete already")
        else:
            manifest = self._made(job, plan, report, share, known or set())
        clear_in(place)
        return manifest

    def _recorded(self, shards: int) -> set[int] | None:
        """Which shards are recorded; None: there are too many for that to be asked."""
        if self._known is None and shards <= COUNTED:
            self._known = indices(everything(self._mirror.place, COMMITS))
        return self._known

    def _made(
        self, job: Job, plan: Plan, report: Reporter, share: Share | None, known: set[int]
    ) -> Manifest:
        shards, work = len(plan.shards), _JobWork(job, plan, self._mirror, report)
        begin = None if share is None else share.of(shards).start
        claims = PlaceClaims(self._mirror.place, shards, first=work.first, begin=begin)
        report.stage(job.stage, positions_of(plan.shards), "positions")
        try:
            writer = Writer[Written](report.notice)
            PlaceBuilder(self._mirror.place, plan, work, report, claims, writer, known=known).run()
            return finish_in(self._mirror, plan, claims)
        finally:
            claims.close()


class _JobWork:
    """What a job makes, as a `Work`."""

    def __init__(self, job: Job, plan: Plan, mirror: Mirror, report: Reporter) -> None:
        self._job, self._plan, self._report = job, plan, report
        self._dictionary: ShardDictionary = PlaceDictionary(mirror, plan)
        self.first = self._dictionary.first
        self.find: FindDictionary = self._dictionary.find

    def make(
        self, shard: PlannedShard, advance: Callable[[int], None]
    ) -> Callable[[], tuple[bytes, Statistics, float]]:
        """The job's part; returns what is left to do, which needs neither the job nor a device."""
        self._dictionary.train(shard, self._report)
        start = time.perf_counter()
        made = self._job.shard(self._plan, shard.index, advance)
        seconds = time.perf_counter() - start

        def rest() -> tuple[bytes, Statistics, float]:
            if isinstance(made, Reused):
                return made.read(), made.statistics, made.seconds
            begun = time.perf_counter()
            data = encoded(self._job, self._plan, shard.index, made, self._dictionary)
            took = seconds + time.perf_counter() - begun
            return data, made.statistics, took if made.seconds is None else made.seconds

        return rest
