"""Making a store: begin -> commit -> finish, the one protocol of all commands that make one.

The flow:
 1. begin: take up the plan that is there, and sweep what a dead builder left, or publish the plan that is asked for;
    refuse a folder that holds another job, or anything else;
 2. commit, until every shard is recorded by somebody: claim a run of shards that no living builder holds (`leases.py`;
    those that a dictionary is trained on come first, one at a time); take over what is there already, if it is whole;
    else have the job make it; then, on a thread of its own and while the job is at the next shard, encode, check by
    decoding, publish, record, and after the last of them release the claim; wait where others hold all that is left;
 3. finish, one builder of many: read all records, and, where nobody was at work when this builder began, the shards
    that were recorded by then; move aside and make again what is damaged; publish the card and, last, the manifest;
    clear the claims.

A builder that joins others trusts their records: it reads the plan and lists names, however large the store is.

What differs from command to command is the plan, and a `Job`: how the content of a shard comes about.

Stopping it at any moment loses at most the shard that is being made (a kill that leaves no moment to finish: the one
that is being written, too); running the same command again finishes the job. Any number of builders, on all hosts that
share the path, may run at once; none knows how many there are. At most two shards are in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from softlabels.core.progress import Reporter
from softlabels.errors import IntegrityError
from softlabels.format.manifest import MANIFEST, Manifest, Plan, load_manifest
from softlabels.format.part import refuse_part
from softlabels.making.builder import Builder
from softlabels.making.claims import clear_claims
from softlabels.making.finish import check_shards
from softlabels.making.one_shard import Job
from softlabels.making.pages import clear_pages
from softlabels.making.plan import begun, load_plan, publish_plan, sweep_left, sweep_paged
from softlabels.making.quarantine import QUARANTINE
from softlabels.making.repair import repair_store
from softlabels.making.same_job import check_same_job
from softlabels.making.share import Share


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
    return carry_out(
        job, begin(job.store, asked, files, report, command=job.command), report, share
    )


def carry_out(job: Job, plan: Plan, report: Reporter, share: Share | None = None) -> Manifest:
    """As `make_store`, of the plan that is in force."""
    if (finished := _finished(job.store, report)) is not None:
        return finished
    manifest = Builder(job, plan, report, share).run()
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
        if (plan := load_plan(store)) is not None:
            clear_pages(store, plan.shards, manifest.shards)
            sweep_paged(store, plan, report.notice)
        return manifest
    mended = repair_store(store)
    for action in mended.actions:
        report.notice(f"{action.action} {action.file}: {action.reason}")
    if mended.quarantine:
        report.notice(f"what is not proven to be the store's is now in {store / QUARANTINE}")
    if mended.problems:
        raise IntegrityError(mended.problems[0])
    return None if mended.rebuild else load_manifest(store)
