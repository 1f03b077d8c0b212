"""The builder: corpus -> teacher -> selection -> codec -> store.

The flow:
 1. sweep what a dead builder left; read the plan, if there is one;
 2. load the teacher (a plan's dtype wins over `auto`);
 3. without a plan: pack the whole corpus once, cut it into shards, publish the plan;
    with one: refuse a different job;
 4. until all shards are committed: claim one that no living builder holds, pack its rows again from
    where the plan says they begin, compare them with the plan, run the teacher, select on its device,
    encode, commit, release; wait where others hold all that is left;
 5. publish the card and, last, the manifest.

Killing it at any moment loses at most the shard in hand; running it again finishes the job. Any number
of builders, on all hosts that share the path, may run at once; none knows how many there are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from softlabels.config import BuildConfig
from softlabels.corpora import Corpus, open_corpora
from softlabels.errors import FormatError, IntegrityError
from softlabels.estimators import Estimator, make_estimator
from softlabels.planning import PlannedRows, check_folder, check_same_job, make_plan
from softlabels.progress import Reporter, Silent
from softlabels.store.claims import Claim, Claims, clear_claims
from softlabels.store.commit import (
    adopt_shard,
    commit_shard,
    committed,
    recorded,
    sweep,
    withdraw,
)
from softlabels.store.dictionaries import Dictionaries
from softlabels.store.encoding import FindDictionary, decode_shard, encode_shard
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
from softlabels.store.plan import load_plan
from softlabels.store.shard import Shard
from softlabels.targets import SoftTargets
from softlabels.teach import teach
from softlabels.teachers import MIB, Teacher, TeacherOptions, open_teacher

__all__ = ["build", "teacher_options"]

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two looks at the shards that other builders have in hand."""


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
            clear_claims(store)  # of a builder that died when all was done
            return load_manifest(store)
    commits = _build_shards(config, store, plan, estimator, corpora, teacher, report)
    manifest = finish(store, plan, commits)
    clear_claims(store)
    return manifest


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
    """Build what no living builder has in hand, until every shard is committed by somebody."""
    claims = Claims(store)
    source = PlannedRows(config, corpora, teacher)
    before = recorded(store)  # by builders of an earlier day: bytes may have rotted since
    commits: dict[int, Commit] = {}
    damaged: set[int] = set()
    planned = {s.index for s in plan.shards}

    def look(shard: PlannedShard) -> Commit | None:
        return committed(store, plan, shard, whole=shard.index in before)

    def collect() -> int:
        """Take up the records that others made; returns their positions."""
        positions = 0
        for index in sorted((recorded(store) - commits.keys() - damaged) & planned):
            try:
                found = look(plan.shards[index])
            except (IntegrityError, FormatError):
                damaged.add(index)  # whoever claims the shard makes it again
                continue
            if found is not None:
                commits[index] = found
                positions += found.positions
        return positions

    collect()
    todo = [s for s in plan.shards if s.index not in commits]
    if commits:
        report.notice(f"resuming: {len(commits)} of {len(plan.shards)} shards are done")
    report.stage("teach", sum(s.positions for s in todo), "positions")
    pause, waited = SHORTEST_PAUSE, False
    while todo:
        claim = claims.take([s.index for s in todo])
        if claim is None:
            if not waited:
                report.notice(
                    f"waiting: the shards that are left ({len(todo)}) are in other builders' hands"
                )
            waited = True
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            pause = SHORTEST_PAUSE
            with claim:
                shard = plan.shards[claim.index]
                try:
                    found = look(shard)
                except (IntegrityError, FormatError) as e:
                    report.notice(f"building shard {shard.index} again: {e}")
                    withdraw(store, shard)
                    found = None
                found = found or adopt_shard(store, plan, shard)
                if found is None:
                    found = _build_shard(
                        config, store, plan, shard, claim, estimator, source, teacher, report
                    )
                else:
                    report.advance(shard.positions)
                commits[shard.index] = found
        if positions := collect():
            report.advance(positions)
        todo = [s for s in plan.shards if s.index not in commits]
    return [commits[i] for i in range(len(plan.shards))]


def _build_shard(
    config: BuildConfig,
    store: Path,
    plan: Plan,
    shard: PlannedShard,
    claim: Claim,
    estimator: Estimator,
    source: PlannedRows,
    teacher: Teacher,
    report: Reporter,
) -> Commit:
    def advance(positions: int) -> None:
        claim.renew()
        report.advance(positions)

    start = time.perf_counter()
    rows = source.rows_of(shard)
    claim.renew()
    targets, statistics = teach(
        rows,
        plan.identity,
        estimator,
        teacher,
        start_row=shard.start_row,
        batch_tokens=config.batch_tokens,
        advance=advance,
    )
    content = Shard(start_row=shard.start_row, rows=rows, targets=targets)
    data = encode_shard(content, plan.identity, statistics)
    claim.renew()
    find = Dictionaries(store, plan.identity.teacher.vocab_size)
    _check_round_trip(content, data, plan.identity, find, where=str(store / shard.name))
    seconds = time.perf_counter() - start
    return commit_shard(store, plan, shard, data, statistics, seconds)


def _check_round_trip(
    content: Shard, data: bytes, identity: Identity, find: FindDictionary, *, where: str
) -> None:
    """Decode what is about to be published and compare it with what the teacher gave."""
    back = decode_shard(data, identity, start_row=content.start_row, where=where, dictionary=find)
    a, b = content.targets, back.targets
    bound = identity.encoding
    t = 1.0 if 1.0 in a.temperatures else a.temperatures[0]
    (ids, logp), (ids_back, logp_back) = _by_id(a, t), _by_id(b, t)
    same = np.array_equal(ids, ids_back)
    if same:
        with np.errstate(invalid="ignore"):
            error = np.abs(logp - logp_back)
        reach = np.where(np.isfinite(logp), np.abs(logp), 0).max(initial=0.0) + 64.0
        slack = 2 * bound.relative_error * reach + bound.absolute_error + 1e-4
        same = bool((error[np.isfinite(logp)] <= slack).all())
    if not same:
        raise IntegrityError(
            f"{where}: decodes to something else than was encoded; please report this"
        )


def _by_id(
    targets: SoftTargets, temperature: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Ids `[N, K]` in ascending order, what is not kept last as 2^31, and their log-probabilities."""
    ids = np.where(targets.kept, targets.ids, np.int64(2**31))
    order = np.argsort(ids, axis=1)
    order = order[:, : int(targets.kept.sum(axis=1).max(initial=0))]  # places that nobody fills
    logp = targets.log_probs(temperature)
    return np.take_along_axis(ids, order, 1), np.take_along_axis(logp, order, 1)
