"""The builder: corpus -> teacher -> selection -> codec -> store.

The flow:
 1. read the plan, if there is one, and sweep what a dead builder left; without one the folder must hold nothing;
 2. load the teacher (a plan's dtype wins over `auto`);
 3. without a plan: pack the whole corpus once, cut it into shards, publish the plan;
    with one: refuse a different job;
 4. until all shards are committed: claim one that no living builder holds, pack its rows again from
    where the plan says they begin, compare them with the plan, run the teacher, select on its device;
    then, on a second thread and while the teacher is at the next one, encode, commit, release; wait
    where others hold all that is left;
 5. publish the card and, last, the manifest.

Stopping it at any moment loses at most the shard that is being taught (a kill that leaves no moment
to finish: the one that is being written, too); running it again finishes the job. Any number of
builders, on all hosts that share the path, may run at once; none knows how many there are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from softlabels.builder.config import BuildConfig
from softlabels.builder.plan import check_same_job, make_plan
from softlabels.builder.rows import open_inputs
from softlabels.builder.shard_builder import ShardBuilder
from softlabels.core.progress import Reporter, Silent
from softlabels.corpora.overlap import refuse_overlap
from softlabels.errors import PlanError
from softlabels.estimators import make_estimator
from softlabels.format.manifest import Manifest, Plan
from softlabels.making.claims import clear_claims
from softlabels.making.complete import complete
from softlabels.making.finish import finish
from softlabels.making.plan import begun, sweep_left
from softlabels.teachers import MIB, Teacher, TeacherOptions
from softlabels.teachers.ensemble import open_teachers
from softlabels.teachers.listing import check_listing

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
    corpora = open_inputs(config)
    refuse_overlap(corpora, config.corpus, store)
    plan = begun(store, report.notice)
    if plan is not None and plan.provenance is not None:
        raise PlanError(
            f"{store}: was begun by `softlabels {plan.provenance.operation}`; run that again, or choose another --out"
        )
    if teacher is None:
        teacher = open_teachers(
            config.teacher, config.average, teacher_options(config, plan, report)
        )
    check_listing(config, teacher)
    estimator.check_vocab(teacher.record.vocab_size)
    if plan is None:
        plan = make_plan(config, store, estimator, corpora, teacher, report)
        sweep_left(store, report.notice)
    else:
        check_same_job(plan, config, estimator, teacher, store)
        if (finished := complete(store, report)) is not None:
            return finished
    commits = ShardBuilder(config, store, plan, estimator, corpora, teacher, report).run()
    for remark in teacher.remarks():
        report.notice(remark)
    manifest = finish(store, plan, commits)
    clear_claims(store)
    return manifest


def teacher_options(config: BuildConfig, plan: Plan | None, report: Reporter) -> TeacherOptions:
    """How a build runs its teacher; a plan's dtype wins over `auto`."""
    options = TeacherOptions(
        domain=config.domain,
        device=config.device,
        dtype=config.dtype,
        head_bytes=None if config.head_mib is None else config.head_mib * MIB,
        notice=report.notice,
    )
    if plan is not None and config.dtype == "auto":
        return replace(options, dtype=plan.identity.teacher.dtype)
    return options
