"""The shards of a build: corpus -> rows -> teacher -> selection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from softlabels.builder.config import BuildConfig
from softlabels.builder.teach import teach
from softlabels.core.progress import Reporter
from softlabels.core.rows import Cursor, InputRow
from softlabels.corpora import Corpus
from softlabels.domains import DOMAINS
from softlabels.domains.maker import RowMaker
from softlabels.errors import PairingError
from softlabels.format.identity import Identity
from softlabels.format.manifest import Plan, PlannedShard
from softlabels.format.shard import Shard
from softlabels.making.commit import Reused
from softlabels.making.job import Made
from softlabels.making.rows import Passes, check_rows
from softlabels.making.same_job import RAN_ON, differences
from softlabels.teachers import MIB, Teacher, TeacherOptions
from softlabels.teachers.ensemble import open_teachers
from softlabels.teachers.listing import check_listing


@dataclass
class Taught:
    """The shards that a teacher is run for, as a `softlabels.making.job.Job`."""

    config: BuildConfig
    store: Path
    command: str = "build"
    old: tuple[Reused, ...] = ()
    """Of an `append`: the shards that come before its own."""
    teacher: Teacher | None = None
    """None: loaded when the first shard is asked for, once in a process."""
    corpora: Sequence[Corpus] | None = None
    stage: str = field(default="teach", init=False)
    _passes: Passes[tuple[Cursor, InputRow]] | None = field(default=None, init=False)

    def __reduce__(self) -> tuple[type[Taught], tuple[Any, ...]]:
        return Taught, (self.config, self.store, self.command, self.old)  # what is open stays here

    def shard(self, plan: Plan, index: int, advance: Callable[[int], None]) -> Made | Reused:
        """A planned shard; the teacher sees every row of a new one.

        Raises:
            CorpusError: its rows are not the ones that were planned.
            TeacherError: what, where and the way out.
        """
        if index < len(self.old):
            return self.old[index]
        shard, config = plan.shards[index], self.config
        teacher, passes = self._open(plan)
        rows = [row for _, row in passes.take(shard)]
        check_rows(shard, rows, where=", ".join(config.corpus))
        targets, statistics = teach(
            rows,
            plan.identity,
            config.make_estimator(),
            teacher,
            start_row=shard.start_row,
            batch_tokens=config.batch_tokens,
            advance=advance,
        )
        content = Shard(start_row=shard.start_row, rows=rows, targets=targets)
        return Made(content=content, statistics=statistics)

    def _open(self, plan: Plan) -> tuple[Teacher, Passes[tuple[Cursor, InputRow]]]:
        config, teacher, corpora = self.config, self.teacher, self.corpora
        if teacher is None:
            options = teacher_options(config, plan.identity)
            teacher = _cached_teacher(config.teacher, config.average, options)
            check_teacher(self.store, plan.identity, teacher)
        if self._passes is None:
            maker: RowMaker = DOMAINS.load(config.domain).maker
            corpora = maker.open(config) if corpora is None else corpora

            def begin(shard: PlannedShard) -> Iterator[tuple[Cursor, InputRow]]:
                start = Cursor(shard.document, shard.offset)
                return maker.rows(config, corpora, teacher, start=start)

            self._passes = Passes(begin)
        self.teacher, self.corpora = teacher, corpora
        return teacher, self._passes


def load_teacher(
    config: BuildConfig, planned: Identity | None, report: Reporter, given: Teacher | None = None
) -> Teacher:
    """The teacher of a build, which serves its estimator.

    Args:
        config: of the build.
        planned: of the plan that it goes on with, if there is one; its dtype wins over `auto`.
        report: told of what was chosen.
        given: used instead of loading one.

    Raises:
        ConfigError, TeacherError: it cannot be loaded, or does not serve this build.
    """
    options = replace(teacher_options(config, planned), notice=report.notice)
    teacher = given if given is not None else open_teachers(config.teacher, config.average, options)
    estimator = config.make_estimator()
    check_listing(config, estimator, teacher)
    estimator.check_vocab(teacher.record.vocab_size)
    return teacher


def teacher_options(config: BuildConfig, planned: Identity | None) -> TeacherOptions:
    """How a build runs its teacher; a plan's dtype wins over `auto`."""
    return TeacherOptions(
        domain=config.domain,
        device=config.device,
        dtype=config.dtype if planned is None or config.dtype != "auto" else planned.teacher.dtype,
        head_bytes=None if config.head_mib is None else config.head_mib * MIB,
    )


@lru_cache(maxsize=1)
def _cached_teacher(spec: str | tuple[str, ...], average: str, options: TeacherOptions) -> Teacher:
    return open_teachers(spec, average, options)


def check_teacher(store: Path, identity: Identity, teacher: Teacher) -> None:
    """Refuse another teacher than a store's.

    Raises:
        PairingError: names what differs.
    """
    own = msgspec.structs.replace(
        identity, teacher=teacher.record, tokenizer=teacher.tokenizer.record
    )
    for found in differences(identity, own, without=RAN_ON):
        raise PairingError(
            f"--teacher {teacher.record.spec}: its {found.field} is {found.second!r}, that of {store} is "
            f"{found.first!r}; give the teacher that made the store"
        )
