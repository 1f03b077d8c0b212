"""The builder: corpus -> teacher -> selection -> codec -> store.

The flow:
 1. sweep what a dead builder left; read the plan, if there is one;
 2. load the teacher (a plan's dtype wins over `auto`);
 3. without a plan: pack the whole corpus once, cut it into shards, publish the plan;
    with one: refuse a different job;
 4. for each shard that is not committed: pack its rows again from where the plan says they begin,
    compare them with the plan, run the teacher, select on its device, encode, commit;
 5. publish the card and, last, the manifest.

Killing it at any moment loses at most the shard in hand; running it again finishes the job.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from softlabels.config import BuildConfig
from softlabels.corpora import Corpus, open_corpora
from softlabels.errors import CorpusError, FormatError, IntegrityError
from softlabels.estimators import Estimator, make_estimator
from softlabels.planning import check_folder, check_same_job, make_plan, packed_rows
from softlabels.progress import Reporter, Silent
from softlabels.rows import Cursor, Row
from softlabels.store.commit import (
    adopt_shard,
    commit_shard,
    committed,
    sweep,
    withdraw,
)
from softlabels.store.finish import finish
from softlabels.store.manifest import (
    MANIFEST,
    Commit,
    Identity,
    Manifest,
    Plan,
    PlannedShard,
    load_manifest,
)
from softlabels.store.parquet import decode_shard, encode_shard
from softlabels.store.plan import load_plan
from softlabels.store.shard import Shard, inputs_digest
from softlabels.teach import teach
from softlabels.teachers import MIB, Teacher, TeacherOptions, open_teacher

__all__ = ["build", "teacher_options"]


def build(
    config: BuildConfig,
    out: Path | str,
    *,
    reporter: Reporter | None = None,
    teacher: Teacher | None = None,
) -> Manifest:
    """Make a store, or finish one that was begun.

    Args:
        config: what to build.
        out: the store's folder; made if absent.
        reporter: told of progress.
        teacher: used instead of loading `config.teacher`.

    Raises:
        PlanError: `out` holds a different job.
        CorpusError, TeacherError, StoreError, ConfigError: what, where and the way out.
    """
    report = reporter or Silent()
    store = Path(out)
    estimator = make_estimator(config.estimator, config.estimator_parameters)
    corpora = open_corpora(config.corpus)
    if store.exists():
        for path in sweep(store):
            report.notice(f"removed {path.name}, left by a builder that died")
    plan = load_plan(store)
    if plan is None and store.is_dir() and any(store.iterdir()):
        check_folder(store)
    if teacher is None:
        teacher = open_teacher(config.teacher, teacher_options(config, plan, report))
    estimator.check_vocab(teacher.record.vocab_size)
    if plan is None:
        plan = make_plan(config, store, estimator, corpora, teacher, report)
    else:
        check_same_job(plan, config, estimator, teacher, store)
        if (store / MANIFEST).exists():
            report.notice(f"{store} is complete already")
            return load_manifest(store)
    commits = _build_shards(config, store, plan, estimator, corpora, teacher, report)
    return finish(store, plan, commits)


def teacher_options(config: BuildConfig, plan: Plan | None, report: Reporter) -> TeacherOptions:
    """How a build runs its teacher; a plan's dtype wins over `auto`."""
    options = TeacherOptions(
        device=config.device,
        dtype=config.dtype,
        head_bytes=None if config.head_mib is None else config.head_mib * MIB,
        notice=report.notice,
    )
    if plan is not None and config.dtype == "auto":
        return replace(options, dtype=plan.identity.teacher.dtype)
    return options


# -- shards ---------------------------------------------------------------------------------------


def _build_shards(
    config: BuildConfig,
    store: Path,
    plan: Plan,
    estimator: Estimator,
    corpora: Sequence[Corpus],
    teacher: Teacher,
    report: Reporter,
) -> list[Commit]:
    commits: dict[int, Commit] = {}
    for shard in plan.shards:
        try:
            found = committed(store, plan, shard)
        except (IntegrityError, FormatError) as e:
            report.notice(f"building shard {shard.index} again: {e}")
            withdraw(store, shard)
            found = None
        found = found or adopt_shard(store, plan, shard)
        if found is not None:
            commits[shard.index] = found
    todo = [s for s in plan.shards if s.index not in commits]
    if commits:
        report.notice(f"resuming: {len(commits)} of {len(plan.shards)} shards are done")
    report.stage("teach", sum(s.positions for s in todo), "positions")
    for shard in todo:
        start = time.perf_counter()
        rows = _planned_rows(config, shard, corpora, teacher)
        targets, statistics = teach(
            rows,
            plan.identity,
            estimator,
            teacher,
            start_row=shard.start_row,
            batch_tokens=config.batch_tokens,
            advance=report.advance,
        )
        content = Shard(start_row=shard.start_row, rows=rows, targets=targets)
        data = encode_shard(content, plan.identity, statistics)
        _check_round_trip(content, data, plan.identity, where=str(store / shard.name))
        seconds = time.perf_counter() - start
        commits[shard.index] = commit_shard(store, plan, shard, data, statistics, seconds)
    return [commits[i] for i in range(len(plan.shards))]


def _planned_rows(
    config: BuildConfig, shard: PlannedShard, corpora: Sequence[Corpus], teacher: Teacher
) -> list[Row]:
    packed = packed_rows(config, corpora, teacher, start=Cursor(shard.document, shard.offset))
    rows = [row for _, row in islice(packed, shard.rows)]
    if len(rows) != shard.rows or inputs_digest(rows) != shard.inputs_sha256:
        raise CorpusError(
            f"{', '.join(config.corpus)}: the rows of shard {shard.index} (from document {shard.document}, token "
            f"{shard.offset}) are not those that were planned: the corpus changed; restore it, or choose another --out"
        )
    return rows


def _check_round_trip(content: Shard, data: bytes, identity: Identity, *, where: str) -> None:
    """Decode what is about to be published and compare it with what the teacher gave."""
    back = decode_shard(data, identity, start_row=content.start_row, where=where)
    a, b = content.targets, back.targets
    bound = identity.encoding
    reach = (
        np.where(a.kept, a.gaps, 0).max(initial=0.0) + 64.0
    )  # largest |value| that was encoded, and some
    slack = 2 * (bound.relative_error * reach + bound.absolute_error) + 1e-4
    same = (
        np.array_equal(a.ids[a.kept], b.ids[b.kept])
        and np.array_equal(a.kept.sum(1), b.kept.sum(1))
        and bool((np.abs(a.gaps[a.kept] - b.gaps[b.kept]) <= slack).all())
    )
    if not same:
        raise IntegrityError(
            f"{where}: decodes to something else than was encoded; please report this"
        )
