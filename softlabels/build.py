"""The builder: corpus -> teacher -> selection -> codec -> store.

The flow:
 1. sweep what a dead builder left; read the plan, if there is one;
 2. load the teacher (a plan's dtype and device kind win over `auto`);
 3. without a plan: pack the whole corpus once, cut it into shards, publish the plan;
    with one: refuse a different job;
 4. for each shard that is not committed: pack its rows again from where the plan says they begin,
    compare them with the plan, run the teacher, select on its device, encode, commit;
 5. publish the card and, last, the manifest.

Killing it at any moment loses at most the shard in hand; running it again finishes the job.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

import softlabels
from softlabels.codecs import make_codec
from softlabels.config import BuildConfig
from softlabels.corpora import Corpus, open_corpora
from softlabels.corpora.packing import CorpusCounts, pack
from softlabels.errors import CorpusError, IntegrityError, PlanError
from softlabels.estimators import Estimator, make_estimator
from softlabels.rows import BEGINNING, LABEL_SHIFT, Cursor, Row
from softlabels.store.card import card
from softlabels.store.commit import (
    adopt_shard,
    commit_path,
    commit_shard,
    committed,
    publish,
    sweep,
)
from softlabels.store.manifest import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    Commit,
    CorpusRecord,
    CostRecord,
    EncodingRecord,
    FileRecord,
    Identity,
    Manifest,
    Plan,
    PlannedShard,
    ShardRecord,
    Statistics,
    TargetRecord,
    canonical,
    content_digest,
    load_manifest,
    seal,
)
from softlabels.store.parquet import decode_shard, encode_shard
from softlabels.store.plan import RowDigests, load_plan, plan_shards, publish_plan
from softlabels.store.shard import Shard, inputs_digest
from softlabels.teach import teach
from softlabels.teachers import MIB, Teacher, TeacherOptions, open_teacher

__all__ = ["Reporter", "Silent", "build"]

DOMAIN = "causal-lm"


class Reporter(Protocol):
    """Told how a build goes."""

    def notice(self, message: str) -> None:
        """A line for people."""

    def stage(self, name: str, total: int | None, unit: str) -> None:
        """A new stage begins."""

    def advance(self, amount: int) -> None:
        """Progress in the present stage."""


class Silent:
    """Reports nothing."""

    def notice(self, message: str) -> None:
        """Say nothing."""

    def stage(self, name: str, total: int | None, unit: str) -> None:
        """Say nothing."""

    def advance(self, amount: int) -> None:
        """Say nothing."""


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
    estimator = make_estimator(
        config.estimator, {"k": config.k, "temperatures": tuple(sorted(config.temperature))}
    )
    corpora = open_corpora(config.corpus)
    if store.exists():
        for path in sweep(store):
            report.notice(f"removed {path.name}, left by a builder that died")
    plan = load_plan(store)
    if plan is None and store.is_dir() and any(store.iterdir()):
        _check_foreign(store)
    if teacher is None:
        teacher = open_teacher(config.teacher, _options(config, plan, report))
    estimator.check_vocab(teacher.record.vocab_size)
    if plan is None:
        plan = _make_plan(config, store, estimator, corpora, teacher, report)
    else:
        _check_same_job(plan, config, estimator, teacher, store)
        if (store / MANIFEST).exists():
            report.notice(f"{store} is complete already")
            return load_manifest(store)
    commits = _build_shards(config, store, plan, estimator, corpora, teacher, report)
    return _finish(store, plan, commits)


def _options(config: BuildConfig, plan: Plan | None, report: Reporter) -> TeacherOptions:
    options = TeacherOptions(
        device=config.device,
        dtype=config.dtype,
        head_bytes=None if config.head_mib is None else config.head_mib * MIB,
        notice=report.notice,
    )
    if plan is not None and config.dtype == "auto":
        return replace(options, dtype=plan.identity.teacher.dtype)
    return options


def _check_foreign(store: Path) -> None:
    ours = {"tokenizer", "data", "commits"}  # a builder killed before its plan leaves only these
    foreign = sorted(p.name for p in store.iterdir() if p.name not in ours)
    if foreign:
        raise PlanError(
            f"{store}: is not empty and not a store (it holds {foreign[0]!r}); choose another --out"
        )


# -- planning -------------------------------------------------------------------------------------


def _make_plan(
    config: BuildConfig,
    store: Path,
    estimator: Estimator,
    corpora: Sequence[Corpus],
    teacher: Teacher,
    report: Reporter,
) -> Plan:
    counts = CorpusCounts()
    digests = RowDigests()
    tokens = 0
    report.stage("tokenise", config.limit_rows, "rows")

    def watched() -> Iterator[tuple[Cursor, Row]]:
        nonlocal tokens
        rows = _packed(config, corpora, teacher, counts=counts)
        for cursor, row in islice(rows, config.limit_rows):
            digests.add(row)
            tokens += len(row.input_ids)
            report.advance(1)
            yield cursor, row

    shards = list(plan_shards(watched(), config.shard_rows))
    if not shards:
        raise CorpusError(f"{', '.join(config.corpus)}: holds no document of two tokens or more")
    codec = make_codec(config.values)
    identity = Identity(
        domain=DOMAIN,
        label_shift=LABEL_SHIFT,
        teacher=teacher.record,
        tokenizer=teacher.tokenizer.record,
        corpus=CorpusRecord(
            specs=list(config.corpus),
            fingerprint=digests.hexdigest(),
            seq_len=config.seq_len,
            documents=counts.documents,
            rows=sum(s.rows for s in shards),
            tokens=tokens,
            positions=sum(s.positions for s in shards),
            skipped_empty=counts.skipped_empty,
            skipped_short=counts.skipped_short,
            limit_rows=config.limit_rows,
        ),
        targets=_target_record(config, estimator),
        encoding=EncodingRecord(
            profile=config.profile,
            container=config.container,
            values=config.values,
            relative_error=codec.relative_error,
            absolute_error=codec.absolute_error,
        ),
        licence=config.licence,
    )
    for what, n in (
        ("empty", counts.skipped_empty),
        ("shorter than two tokens", counts.skipped_short),
    ):
        if n:
            report.notice(f"left out {n} documents that are {what}")
    files = {f"tokenizer/{name}": data for name, data in teacher.tokenizer.files().items()}
    return publish_plan(store, identity, shards, files, shard_rows=config.shard_rows)


def _packed(
    config: BuildConfig,
    corpora: Sequence[Corpus],
    teacher: Teacher,
    *,
    start: Cursor = BEGINNING,
    counts: CorpusCounts | None = None,
) -> Iterator[tuple[Cursor, Row]]:
    return pack(
        corpora,
        teacher.tokenizer,
        seq_len=config.seq_len,
        vocab_size=teacher.record.vocab_size,
        start=start,
        skip_empty=config.skip_empty,
        counts=counts,
    )


def _target_record(config: BuildConfig, estimator: Estimator) -> TargetRecord:
    return TargetRecord(
        estimator=config.estimator,
        k=estimator.k,
        temperatures=list(estimator.temperatures),
        seed=config.seed,
    )


def _check_same_job(
    plan: Plan, config: BuildConfig, estimator: Estimator, teacher: Teacher, store: Path
) -> None:
    """Refuse to go on with a plan that was made for another job.

    Where files lie is not part of the job; what they hold is.
    """

    def plain(record: msgspec.Struct, *without: str) -> dict[str, Any]:
        return {k: v for k, v in msgspec.to_builtins(record).items() if k not in without}

    identity = plan.identity
    corpus = identity.corpus
    asked: dict[str, Any] = {
        "teacher": plain(teacher.record, "spec", "name"),
        "tokenizer": plain(teacher.tokenizer.record),
        "targets": plain(_target_record(config, estimator)),
        "corpus": {"seq_len": config.seq_len, "limit_rows": config.limit_rows},
        "store": {
            "values": config.values,
            "profile": config.profile,
            "container": config.container,
            "shard_rows": config.shard_rows,
            "licence": config.licence,
        },
    }
    planned: dict[str, Any] = {
        "teacher": plain(identity.teacher, "spec", "name"),
        "tokenizer": plain(identity.tokenizer),
        "targets": plain(identity.targets),
        "corpus": {"seq_len": corpus.seq_len, "limit_rows": corpus.limit_rows},
        "store": {
            "values": identity.encoding.values,
            "profile": identity.encoding.profile,
            "container": identity.encoding.container,
            "shard_rows": plan.shard_rows,
            "licence": identity.licence,
        },
    }
    for part, fields in asked.items():
        for name, value in fields.items():
            if planned[part].get(name) != value:
                raise PlanError(
                    f"{store}: was planned with {part} {name} = {planned[part].get(name)!r}, this build has "
                    f"{value!r}; run it as planned, or choose another --out"
                )


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
        except IntegrityError as e:
            report.notice(f"building shard {shard.index} again: {e}")
            commit_path(store, shard).unlink(missing_ok=True)
            (store / shard.name).unlink(missing_ok=True)
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
    packed = _packed(config, corpora, teacher, start=Cursor(shard.document, shard.offset))
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


# -- finishing ------------------------------------------------------------------------------------


def _finish(store: Path, plan: Plan, commits: Sequence[Commit]) -> Manifest:
    shards = [
        ShardRecord(
            name=c.name,
            sha256=c.sha256,
            bytes=c.bytes,
            start_row=p.start_row,
            rows=c.rows,
            positions=c.positions,
        )
        for p, c in zip(plan.shards, commits, strict=True)
    ]
    seconds = sum(c.seconds for c in commits)
    nll = [c.statistics.teacher_nll for c in commits]
    manifest = Manifest(
        format=FORMAT,
        version=FORMAT_VERSION,
        created_by=f"softlabels {softlabels.__version__}",
        identity=plan.identity,
        shards=shards,
        files=dict(plan.files),
        statistics=Statistics(
            kept_ids=sum(c.statistics.kept_ids for c in commits),
            kept_mass=[
                float(sum(values))
                for values in zip(*(c.statistics.kept_mass for c in commits), strict=True)
            ],
            teacher_nll=None if None in nll else float(sum(n for n in nll if n is not None)),
        ),
        cost=CostRecord(
            seconds=seconds,
            tokens_per_second=plan.identity.corpus.tokens / seconds if seconds else 0.0,
        ),
        content_digest=content_digest(plan.identity, shards),
        digest="0" * 64,
    )
    readme = card(manifest).encode()
    publish(store / "README.md", readme)
    readme = (store / "README.md").read_bytes()
    files = dict(plan.files) | {
        "README.md": FileRecord(sha256=hashlib.sha256(readme).hexdigest(), bytes=len(readme)),
    }
    publish(store / MANIFEST, canonical(seal(msgspec.structs.replace(manifest, files=files))))
    return load_manifest(store)
