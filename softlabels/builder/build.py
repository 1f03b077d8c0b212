"""The builder: corpus -> teacher -> selection -> codec -> store.

The flow:
 1. look at the corpora and at the disk (`start/first.py`); read the plan, if there is one; without one the folder must
    hold nothing;
 2. load the teacher (a plan's dtype wins over `auto`);
 3. without a plan: find the `--k` that `--mean-k` asks for, pack the whole corpus once and cut it into shards, or wait
    for the builder that does (`making/planning.py`);
 4. compare what an engine says of the first rows with a second path from the same weights (`guard.py`);
 5. begin, commit, finish (`softlabels/making/job.py`): of each shard the rows are packed again from where the plan says
    that they begin, compared with the plan, and shown to the teacher; what it says is selected from on its device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from softlabels.builder.config import BuildConfig
from softlabels.builder.draws import with_found_k
from softlabels.builder.guard import guard
from softlabels.builder.plan import files_beside, plan_build
from softlabels.builder.teach import Impossible, teach
from softlabels.core.progress import Reporter, Silent
from softlabels.core.rows import Cursor, InputRow
from softlabels.corpora import Corpus
from softlabels.domains import DOMAINS
from softlabels.domains.maker import CorpusPass, RowMaker
from softlabels.errors import PairingError
from softlabels.estimators import native
from softlabels.format.identity import Identity
from softlabels.format.manifest import Manifest, Plan
from softlabels.format.shard import Shard
from softlabels.format.shard_records import PlannedShard
from softlabels.making.commit import Reused
from softlabels.making.one_shard import Made
from softlabels.making.place.plan import Mirror
from softlabels.making.plan import Passes, check_rows
from softlabels.making.same_job import RAN_ON, check_command, check_same_job, differences
from softlabels.making.share import Share
from softlabels.making.site import FolderSite, PlaceSite, Site
from softlabels.start.first import check_first
from softlabels.teachers import MIB, Teacher, TeacherOptions
from softlabels.teachers.ensemble import open_teachers
from softlabels.teachers.listing import check_listing


def build(
    config: BuildConfig,
    out: Path | str,
    *,
    reporter: Reporter | None = None,
    teacher: Teacher | None = None,
    share: Share | None = None,
) -> Manifest:
    """Make a store, or finish one that was begun.

    Args:
        out: folder of the store, or its address in a bucket.
        share: the shards that this builder takes first.
        teacher: used instead of loading `config.teacher`.

    Raises:
        PlanError: `out` holds a different job.
        CorpusError, TeacherError, StoreError, ConfigError: what, where and the way out.
    """
    with site_of(out) as site:
        return build_at(config, site, reporter=reporter, teacher=teacher, share=share)


@contextmanager
def site_of(out: Path | str, *, only_read: bool = False) -> Iterator[Site]:
    """Where a store is made; of a bucket, which must obey preconditions, with a scratch folder for as long.

    Args:
        only_read: nothing is to be written there, so a bucket is not tried out.

    Raises:
        ConfigError: no address of a bucket.
    """
    if "://" not in str(out):
        yield FolderSite(Path(out))
        return
    from softlabels.store.remote.bucket import BucketPlace, probe

    place = BucketPlace(str(out))
    with TemporaryDirectory(prefix="softlabels-") as scratch:
        mirror = Mirror(place, Path(scratch))
        yield PlaceSite(mirror) if only_read else PlaceSite(mirror, partial(probe, place))


def build_at(
    config: BuildConfig,
    site: Site,
    *,
    reporter: Reporter | None = None,
    teacher: Teacher | None = None,
    share: Share | None = None,
) -> Manifest:
    """As `build`, at a site."""
    report = reporter or Silent()
    corpora = check_first(config, site.folder if isinstance(site.root, Path) else None, report)
    planned = site.begun(report)
    if planned is not None:
        check_command(site.root, planned, "build")
    identity = None if planned is None else planned.identity
    teacher = load_teacher(config, identity, report, teacher)
    files = {} if planned is not None else files_beside(config, teacher, Silent())
    with site.planning(report, planned, files) as (planned, watched):
        identity = None if planned is None else planned.identity
        config = with_found_k(config, corpora, teacher, identity, watched)
        plan, files = plan_build(config, corpora, teacher, watched, planned)
        if planned is not None:
            check_same_job(site.root, planned, plan, command="build")
        if planned is None or not site.has_shards():
            compared = compare_engine(config, teacher, corpora, watched)
            plan = msgspec.structs.replace(plan, compared_rows=compared)
        plan = site.begin(plan, files, report) if planned is None else planned
    job = Taught(config, site.folder, teacher=teacher, corpora=corpora)
    manifest = site.make(job, plan, report, share)
    for remark in job.remarks():
        report.notice(remark)
    return manifest


def compare_engine(
    config: BuildConfig, teacher: Teacher, corpora: Sequence[Corpus], report: Reporter
) -> int | None:
    """Compare what an engine says of the first rows with a second path: how many, as `guard` has it.

    Raises:
        TeacherError: names the fault.
    """
    over = CorpusPass(config=config, corpora=corpora, teacher=teacher)
    begin = DOMAINS.load(config.domain).maker.rows(over)
    first = (row for _, row in islice(begin, config.limit_rows))
    return guard(teacher, first, config.make_estimator(), report, seed=config.seed)


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
    impossible: Impossible = field(default_factory=Impossible, init=False)
    """Ids of probability 0 in the shards that this process taught."""
    _passes: Passes[tuple[Cursor, InputRow]] | None = field(default=None, init=False)
    _advance: Callable[[int], None] = field(default=lambda _: None, init=False)
    """Of the shard in hand: told of nothing while the corpus is read, so that its claim is renewed."""

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
        self._advance = advance
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
            impossible=self.impossible,
        )
        content = Shard(start_row=shard.start_row, rows=rows, targets=targets)
        return Made(content=content, statistics=statistics)

    def remarks(self) -> list[str]:
        """Lines for people about what this process taught."""
        if self.teacher is None:
            return []
        return self.teacher.remarks() + self.impossible.remarks(self.teacher.record.spec)

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
                start = Cursor(shard.document, shard.offset, shard.source)
                over = CorpusPass(
                    config=config,
                    corpora=corpora,
                    teacher=teacher,
                    start=start,
                    alive=lambda: self._advance(0),
                )
                return maker.rows(over)

            self._passes = Passes(begin)
        self.teacher, self.corpora = teacher, corpora
        return teacher, self._passes


def load_teacher(
    config: BuildConfig, planned: Identity | None, report: Reporter, given: Teacher | None = None
) -> Teacher:
    """The teacher of a build, which serves its estimator.

    Args:
        planned: of the plan that it goes on with, if there is one; its dtype wins over `auto`.
        given: used instead of loading one.

    Raises:
        ConfigError, TeacherError: it cannot be loaded, or does not serve this build.
    """
    options = replace(teacher_options(config, planned), notice=report.notice)
    teacher = given if given is not None else open_teachers(config.teacher, config.average, options)
    estimator = config.make_estimator()
    check_listing(config, estimator, teacher)
    estimator.check_vocab(teacher.record.vocab_size)
    record = teacher.record
    large = record.device == "cpu" and record.vocab_size >= native.FEWEST_IDS
    if large and native.built().library is None:
        report.notice(
            f"selection is left to torch, which takes twice as long as compiled C: {native.built().reason}"
        )
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
