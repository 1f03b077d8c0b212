"""Making the shards of a plan: one builder's part, whatever others do meanwhile.

The flow, until every shard is committed by somebody:
 1. claim a shard that no living builder holds (those that a dictionary is trained on come first);
 2. take over what is there already, if it is whole;
 3. else run the teacher over its rows; then, on a thread of its own and while the teacher is at the
    next shard, encode, check by decoding, commit, release the claim.

At most two shards are in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from softlabels.builder.config import BuildConfig
from softlabels.builder.dictionary import ShardDictionary
from softlabels.builder.rows import PlannedRows
from softlabels.builder.teach import teach
from softlabels.builder.writer import Writer
from softlabels.codecs.codebook import Codebook
from softlabels.core.progress import Reporter
from softlabels.corpora import Corpus
from softlabels.errors import FormatError, IntegrityError
from softlabels.estimators import Estimator
from softlabels.format.encoding import check_round_trip, encode_shard
from softlabels.format.manifest import MANIFEST, Commit, Plan, PlannedShard, Statistics
from softlabels.format.shard import Shard
from softlabels.making.claims import Claim, Claims
from softlabels.making.commit import (
    Seen,
    adopt_shard,
    commit_shard,
    committed,
    look,
    recorded,
    withdraw,
)
from softlabels.teachers import Teacher

__all__ = ["ShardBuilder"]

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two looks at the shards that other builders have in hand."""


class ShardBuilder:
    """One builder at work on a plan; use it once."""

    def __init__(
        self,
        config: BuildConfig,
        store: Path,
        plan: Plan,
        estimator: Estimator,
        corpora: Sequence[Corpus],
        teacher: Teacher,
        report: Reporter,
    ) -> None:
        self._config, self._store, self._plan = config, store, plan
        self._estimator, self._teacher, self._report = estimator, teacher, report
        self._source = PlannedRows(config, corpora, teacher)
        self._dictionary = ShardDictionary(store, plan, report)
        self._writer = Writer(report.notice)
        self._before = recorded(store)  # by builders of an earlier day: bytes may have rotted since
        self._commits: dict[int, Commit] = {}
        self._damaged: set[int] = set()
        self._pause, self._waited = SHORTEST_PAUSE, False

    def run(self) -> list[Commit]:
        """Build until every shard is committed; returns all records, in order.

        Raises:
            CorpusError, TeacherError, StoreError: what, where and the way out.
        """
        shards, report = self._plan.shards, self._report
        self._collect()
        if self._commits:
            report.notice(f"resuming: {len(self._commits)} of {len(shards)} shards are done")
        report.stage("teach", sum(s.positions for s in self._todo()), "positions")
        with closing(Claims(self._store)) as claims, self._writer:
            while (todo := self._todo()) or self._writer.index is not None:
                claim = None
                first = [s.index for s in todo if s.index < self._dictionary.first]
                if first or not self._writes_first():
                    claim = claims.take(first or [s.index for s in todo])
                if claim is not None:
                    self._pause = SHORTEST_PAUSE
                    self._take(claim)
                elif self._writer.index is not None:
                    self._settle()
                else:
                    self._wait(len(todo))
                report.advance(self._collect())
        return [self._commits[i] for i in range(len(shards))]

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
                self._report.notice(f"building shard {shard.index} again: {e}")
                for aside in withdraw(self._store, shard, seen):
                    self._report.notice(f"what was found is now {aside}")
                found = None
            found = found or adopt_shard(self._store, self._plan, shard, notice=self._report.notice)
            if found is not None:
                self._report.advance(shard.positions)
                self._commits[shard.index] = found
                return
            write = self._teach(shard, claim)
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

    def _teach(self, shard: PlannedShard, claim: Claim) -> Callable[[], Commit]:
        """The teacher's part; returns what is left to do, which needs neither the teacher nor its device."""

        def advance(positions: int) -> None:
            claim.renew()
            self._writer.renew()
            self._report.advance(positions)

        book = self._dictionary.of(shard)
        start = time.perf_counter()
        rows = self._source.rows_of(shard)
        claim.renew()
        targets, statistics = teach(
            rows,
            self._plan.identity,
            self._estimator,
            self._teacher,
            start_row=shard.start_row,
            batch_tokens=self._config.batch_tokens,
            advance=advance,
        )
        content = Shard(start_row=shard.start_row, rows=rows, targets=targets)
        seconds = time.perf_counter() - start
        return partial(self._write, shard, claim, content, statistics, book, seconds)

    def _write(
        self,
        shard: PlannedShard,
        claim: Claim,
        content: Shard,
        statistics: Statistics,
        book: Codebook | None,
        seconds: float,
    ) -> Commit:
        """Encode, check and publish, on the writer's thread; `seconds` were spent on it before."""
        start = time.perf_counter()
        identity = self._plan.identity
        data = encode_shard(content, identity, statistics, dictionary=book)
        claim.renew()
        where = str(self._store / shard.name)
        check_round_trip(content, data, identity, self._dictionary.find, where=where)
        seconds += time.perf_counter() - start
        return commit_shard(
            self._store,
            self._plan,
            shard,
            data,
            statistics,
            seconds,
            notice=self._report.notice,
        )
