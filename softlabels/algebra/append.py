"""`append`: new documents by the same job, as a new generation of a store; the old one stays what it is.

The new generation is a folder of its own, in which the old shards have a second name (the same one) and the
new ones are built: their rows are numbered on, so their random draws are those of one build over both texts.
The teacher sees only what is new; the old shards are read once, to be checked.

The flow:
 1. check the old generation, tokenise and plan the new documents: one plan for old and new shards;
 2. begin, commit, finish (`softlabels/making/job.py`), by any number of builders at once: an old shard is given its
    name, a new one is built as `build` does.

Until the new manifest is there, the new folder is not a store, and the old generation the current one.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import msgspec

from softlabels.algebra.combine import (
    APART,
    check_renumbers,
    combined_corpus,
    combined_teacher,
    document_count,
    planned_again,
)
from softlabels.algebra.sources import checked_shards, files_of, open_source, provenance_of
from softlabels.builder.build import Taught, check_teacher, compare_engine, load_teacher
from softlabels.builder.config import AppendConfig, BuildConfig
from softlabels.builder.plan import survey
from softlabels.builder.recorded import config_of
from softlabels.core.progress import Reporter, Silent
from softlabels.corpora.overlap import refuse_overlap
from softlabels.domains import DOMAINS
from softlabels.errors import PairingError
from softlabels.format.dictionaries import FOLDER
from softlabels.format.encoding import container_of
from softlabels.format.identity import Identity
from softlabels.format.manifest import Manifest
from softlabels.format.shard_records import PlannedShard
from softlabels.making.commit import recorded
from softlabels.making.job import make_store
from softlabels.making.plan import begun, make_plan, shard_rows_of
from softlabels.making.same_job import differences
from softlabels.store.reader import Store
from softlabels.teachers import Teacher

GROWING = ("merge", "append")
"""What may have made a store that grows: its shards are as the teacher gave them."""


def append(
    source: Path | str,
    config: AppendConfig,
    out: Path | str,
    *,
    reporter: Reporter | None = None,
    teacher: Teacher | None = None,
) -> Manifest:
    """Make the next generation of a store, or finish one that was begun.

    Args:
        source: the present generation; it is only read.
        out: the new generation's folder; made if absent.
        teacher: used instead of loading `config.teacher`.

    Raises:
        PairingError: another teacher or tokenizer, or a store that no build can go on with.
        PlanError: `out` holds a different job.
        CorpusError, TeacherError, StoreError, ConfigError: what, where and the way out.
    """
    report, out = reporter or Silent(), Path(out)
    store = open_source(Path(source), out)
    old = store.manifest.identity
    _check_growing(store)
    job = _job(store, config)
    corpora = DOMAINS.load(job.domain).maker.open(job)
    refuse_overlap(corpora, [c.spec for c in corpora], out)
    begun(out, report.notice)  # a foreign folder is refused before the work
    report.stage("check", len(store.manifest.shards), "shards")
    checked = list(checked_shards(store, report))
    teacher = load_teacher(job, old, report, teacher)
    check_teacher(store.folder, old, teacher)
    before = b"".join(s.digests for s in checked)
    new, unnamed = survey(job, corpora, teacher, report, before=before)
    _check_alike(store, new)
    compared = None if recorded(out).size else compare_engine(job, teacher, corpora, report)
    generation = _generation(store)
    planned = planned_again(checked, plain=old.encoding.plain, start_row=0, documents=0)
    planned += _numbered_on(store, unnamed, generation, new)
    files = files_of(store, "tokenizer", FOLDER)
    grown = msgspec.structs.replace(
        old,
        teacher=combined_teacher([old.teacher, new.teacher]),
        corpus=combined_corpus([old.corpus, new.corpus], new.corpus.fingerprint),
    )
    plan = make_plan(
        grown,
        planned,
        files,
        shard_rows=shard_rows_of(store.folder, store.manifest),
        provenance=provenance_of("append", {"generation": str(generation)}, [store]),
    )
    plan = msgspec.structs.replace(plan, compared_rows=compared)
    taught = Taught(
        job,
        out,
        command="append",
        old=tuple(s.file for s in checked),
        teacher=teacher,
        corpora=corpora,
    )
    manifest = make_store(taught, plan, files, report)
    for remark in taught.remarks():
        report.notice(remark)
    return manifest


def _check_growing(store: Store) -> None:
    check_renumbers(store.manifest.identity, where=store.folder)
    made = store.manifest.provenance
    if made is not None and made.operation not in GROWING:
        raise PairingError(
            f"{store.path}: was made by `softlabels {made.operation}`, so its targets are not as its teacher gave "
            f"them; append to the store that it was made from, and repeat `{made.operation}`"
        )


def _job(store: Store, config: AppendConfig) -> BuildConfig:
    """The build that made the store, over the new documents."""
    return config_of(
        store.manifest.identity,
        shard_rows=shard_rows_of(store.folder, store.manifest),
        average="probs",
        dtype="auto",
        dictionary="none",  # the store's own is used, if it has one
        **asdict(config),
    )


def _check_alike(store: Store, new: Identity) -> None:
    """Refuse to go on with a store that this version's build would make otherwise.

    Raises:
        PairingError: names what differs.
    """
    old = store.manifest.identity
    for found in differences(old, new, without=(*APART, "encoding")):
        raise PairingError(
            f"{store.path}: was made with {found.field} = {found.first!r}, a build like it now has {found.second!r}; "
            "append with the version and the teacher that made it"
        )


def _generation(store: Store) -> int:
    made = store.manifest.provenance
    before = 0 if made is None or made.operation != "append" else int(made.parameters["generation"])
    return before + 1


def _numbered_on(
    store: Store, new: list[PlannedShard], generation: int, identity: Identity
) -> list[PlannedShard]:
    """The new shards as they come after the store's own."""
    n, rows = len(store.manifest.shards), len(store)
    documents = document_count(store.manifest.identity)
    suffix = container_of(identity).suffix
    return [
        msgspec.structs.replace(
            shard,
            index=n + i,
            name=f"data/train-g{generation:03d}-{i:05d}-of-{len(new):05d}.{suffix}",
            start_row=rows + shard.start_row,
            documents_from=documents or None,
        )
        for i, shard in enumerate(new)
    ]
