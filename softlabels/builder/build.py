"""The builder: corpus -> teacher -> selection -> codec -> store.

The flow:
 1. read the plan, if there is one; without one the folder must hold nothing;
 2. load the teacher (a plan's dtype wins over `auto`);
 3. without a plan: pack the whole corpus once and cut it into shards;
 4. begin, commit, finish (`softlabels/making/job.py`): of each shard the rows are packed again from where the plan says
    that they begin, compared with the plan, and shown to the teacher; what it says is selected from on its device.
"""

from __future__ import annotations

from pathlib import Path

from softlabels.builder.config import BuildConfig
from softlabels.builder.plan import plan_build
from softlabels.builder.shard_builder import Taught, load_teacher
from softlabels.core.progress import Reporter, Silent
from softlabels.corpora.overlap import refuse_overlap
from softlabels.domains import DOMAINS
from softlabels.format.manifest import Manifest
from softlabels.making.job import make_store
from softlabels.making.plan import begun
from softlabels.making.same_job import check_command
from softlabels.teachers import Teacher


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
        reporter: receives the progress.
        teacher: used instead of loading `config.teacher`.

    Raises:
        PlanError: `out` holds a different job.
        CorpusError, TeacherError, StoreError, ConfigError: what, where and the way out.
    """
    report = reporter or Silent()
    store = Path(out)
    corpora = DOMAINS.load(config.domain).maker.open(config)
    refuse_overlap(corpora, config.corpus, store)
    planned = begun(store, report.notice)
    if planned is not None:
        check_command(store, planned, "build")
    identity = None if planned is None else planned.identity
    teacher = load_teacher(config, identity, report, teacher)
    plan, files = plan_build(config, corpora, teacher, report, planned)
    job = Taught(config, store, teacher=teacher, corpora=corpora)
    manifest = make_store(job, plan, files, report)
    for remark in teacher.remarks():
        report.notice(remark)
    return manifest
