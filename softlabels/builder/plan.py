"""Planning a build: one pass over the corpus, and what makes two builds the same job."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from softlabels.builder.config import BuildConfig
from softlabels.builder.dictionary import first_shards, given_dictionary
from softlabels.builder.rows import images_of, masking_of, packed_rows
from softlabels.codecs import make_codec
from softlabels.codecs.hidden import HIDDEN_CODECS
from softlabels.core.positions import PositionRule
from softlabels.core.progress import Reporter
from softlabels.core.registry import without_folder
from softlabels.core.rows import Cursor, InputRow
from softlabels.corpora import Corpus
from softlabels.corpora.packing import CorpusCounts
from softlabels.corpora.pictures import image_record, image_settings
from softlabels.corpora.survey import SurveyProgress
from softlabels.domains import domain_module
from softlabels.errors import CorpusError, PlanError, TeacherError
from softlabels.estimators import Estimator
from softlabels.format.dictionaries import DICTIONARY
from softlabels.format.identity import (
    CorpusRecord,
    EncodingRecord,
    HiddenRecord,
    Identity,
    SummaryRecord,
    TargetRecord,
    held_profile,
)
from softlabels.format.manifest import Plan, PlannedShard
from softlabels.format.summaries import summary_record
from softlabels.making.plan import RowDigests, plan_shards, publish_plan
from softlabels.store.tokenizer_files import for_store
from softlabels.teachers import Teacher

__all__ = ["check_same_job", "make_plan", "most_rows", "survey"]


def make_plan(
    config: BuildConfig,
    store: Path,
    estimator: Estimator,
    corpora: Sequence[Corpus],
    teacher: Teacher,
    report: Reporter,
) -> Plan:
    """Survey the corpus and publish the plan.

    Of many builders that do this at once, one publishes; all go on with its plan.

    Raises:
        CorpusError: it cannot be read, or holds nothing to teach.
        PlanError: the folder holds files of another job, or another builder planned another job.
    """
    identity, shards = survey(config, estimator, corpora, teacher, report)
    files = for_store(teacher.tokenizer.files(), report.notice)
    if identity.encoding.dictionary_sha256 is not None:
        files[DICTIONARY] = given_dictionary(config.dictionary, teacher.record.vocab_size)
    plan = publish_plan(store, identity, shards, files, shard_rows=config.shard_rows)
    check_same_job(plan, config, estimator, teacher, store)  # another builder may have been first
    if plan.identity.corpus.fingerprint != identity.corpus.fingerprint:
        raise PlanError(
            f"{store}: another builder planned it meanwhile, from another corpus; give all builders the same "
            "--corpus, or choose another --out"
        )
    return plan


def survey(
    config: BuildConfig,
    estimator: Estimator,
    corpora: Sequence[Corpus],
    teacher: Teacher,
    report: Reporter,
    *,
    digests: RowDigests | None = None,
) -> tuple[Identity, list[PlannedShard]]:
    """Pack the whole corpus once, fingerprint it, cut it into shards, whose names are still to be given.

    Args:
        digests: of rows that come before these, which the fingerprint then is over, too.

    Raises:
        CorpusError: it cannot be read, or holds nothing to teach.
    """
    counts = CorpusCounts()
    digests = digests or RowDigests()
    tokens = 0
    progress = SurveyProgress(
        report, corpora, counts, rows=most_rows(config, corpora), passes=config.views
    )

    def watched() -> Iterator[tuple[Cursor, InputRow]]:
        nonlocal tokens
        rows = packed_rows(config, corpora, teacher, counts=counts)
        for cursor, row in islice(rows, config.limit_rows):
            digests.add(row)
            tokens += row.size
            progress.row(row.size)
            yield cursor, row
        progress.end()

    shards = list(plan_shards(watched(), config.shard_rows))
    if not shards:
        raise CorpusError(f"{', '.join(config.corpus)}: holds no document to make a row of")
    codec = make_codec(config.stored_values)
    identity = Identity(
        domain=config.domain,
        label_shift=domain_module(config.domain).LABEL_SHIFT,
        teacher=teacher.record,
        tokenizer=teacher.tokenizer.record,
        corpus=CorpusRecord(
            specs=[without_folder(spec) for spec in config.corpus],
            fingerprint=digests.hexdigest(),
            seq_len=config.row_tokens,
            documents=counts.documents,
            rows=sum(s.rows for s in shards),
            tokens=tokens,
            positions=sum(s.positions for s in shards),
            skipped_empty=counts.skipped_empty,
            skipped_short=counts.skipped_short,
            limit_rows=config.limit_rows,
            truncated=counts.truncated,
        ),
        targets=_target_record(config, estimator),
        encoding=EncodingRecord(
            profile=held_profile(config.profile, config.container),
            container=config.container,
            values=config.stored_values,
            relative_error=codec.relative_error,
            absolute_error=codec.absolute_error(config.estimator),
            dictionary_shards=_dictionary_shards(config, estimator.k, shards),
            dictionary_sha256=_given_sha256(config, teacher.record.vocab_size),
        ),
        licence=config.licence,
        classes=None if teacher.classes is None else list(teacher.classes),
        masking=masking_of(config),
        hidden=_hidden(config, teacher),
        images=None
        if not config.of_images
        else image_record(
            config, images_of(corpora), teacher.need_images(), sum(s.rows for s in shards)
        ),
        summary=_summary(config, teacher),
    )
    for what, n in (
        ("empty", counts.skipped_empty),
        ("shorter than two tokens", counts.skipped_short),
    ):
        if n:
            report.notice(f"left out {n} documents that are {what}")
    if counts.truncated:
        report.notice(f"cut {counts.truncated} texts to --seq-len {config.seq_len} tokens")
    return identity, shards


def most_rows(config: BuildConfig, corpora: Sequence[Corpus]) -> int | None:
    """Rows of the whole job, if they can be told before the corpus was read."""
    if config.of_images:
        views = len(images_of(corpora)) * config.views
        return min(views, config.limit_rows or views)
    return config.limit_rows


def _hidden(config: BuildConfig, teacher: Teacher) -> HiddenRecord | None:
    if config.hidden is None:
        return None
    if teacher.hidden_size is None:
        raise TeacherError(
            f"{teacher.record.spec}: gives no hidden states; leave --hidden out, or use hf:PATH"
        )
    codec = HIDDEN_CODECS[config.hidden]
    return HiddenRecord(values=config.hidden, width=teacher.hidden_size, error=codec.error)


def _summary(config: BuildConfig, teacher: Teacher) -> SummaryRecord | None:
    return summary_record(teacher.record.vocab_size) if config.position_summary else None


def _target_record(config: BuildConfig, estimator: Estimator) -> TargetRecord:
    return TargetRecord(
        estimator=config.estimator,
        k=estimator.k,
        temperatures=list(estimator.temperatures),
        seed=config.seed,
        top_p=config.top_p,
        min_k=config.min_k,
        positions=None if config.positions is None else str(PositionRule.parse(config.positions)),
    )


def _dictionary_shards(config: BuildConfig, k: int, shards: Sequence[PlannedShard]) -> int | None:
    if config.profile != "packed" or config.dictionary == "none":
        return None
    return first_shards(shards, k) if config.dictionary == "auto" else 0


def _given_sha256(config: BuildConfig, vocab_size: int) -> str | None:
    if config.dictionary in ("auto", "none"):
        return None
    return hashlib.sha256(given_dictionary(config.dictionary, vocab_size)).hexdigest()


def check_same_job(
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
        "masking": {} if (masking := masking_of(config)) is None else plain(masking),
        "corpus": {"seq_len": config.row_tokens, "limit_rows": config.limit_rows},
        "images": {} if not config.of_images else image_settings(config, teacher.need_images()),
        "store": {
            "values": config.stored_values,
            "profile": config.profile,
            "container": config.container,
            "dictionary_sha256": _given_sha256(config, teacher.record.vocab_size),
            "shard_rows": config.shard_rows,
            "licence": config.licence,
            "domain": config.domain,
            "classes": None if teacher.classes is None else list(teacher.classes),
            "hidden": _hidden(config, teacher),
        },
    }
    planned: dict[str, Any] = {
        "teacher": plain(identity.teacher, "spec", "name"),
        "tokenizer": plain(identity.tokenizer),
        "targets": plain(identity.targets),
        "masking": {} if identity.masking is None else plain(identity.masking),
        "corpus": {"seq_len": corpus.seq_len, "limit_rows": corpus.limit_rows},
        "images": {}
        if identity.images is None
        else plain(identity.images, "images", "software", "replay"),
        "store": {
            "values": identity.encoding.values,
            "profile": identity.encoding.asked_profile,
            "container": identity.encoding.container,
            "dictionary_sha256": identity.encoding.dictionary_sha256,
            "shard_rows": plan.shard_rows,
            "licence": identity.licence,
            "domain": identity.domain,
            "classes": identity.classes,
            "hidden": identity.hidden,
        },
    }
    if config.dictionary == "none" and identity.encoding.dictionary_shards is not None:
        raise PlanError(
            f"{store}: was planned with a dictionary, this build has --dictionary none; run it as planned, or choose "
            "another --out"
        )
    if config.position_summary == (identity.summary is None):
        planned_with = "without" if identity.summary is None else "with"
        flag = f"--{'no-' if identity.summary is None else ''}position-summary"
        raise PlanError(
            f"{store}: was planned {planned_with} summaries of positions; run it with {flag}, as planned, or choose "
            "another --out"
        )
    for part, fields in asked.items():
        for name in [*fields, *(planned[part].keys() - fields)]:  # either may leave defaults out
            value = fields.get(name)
            if planned[part].get(name) != value:
                later = f", and state it afterwards (`softlabels card {store} --licence …`)"
                raise PlanError(
                    f"{store}: was planned with {part} {name} = {planned[part].get(name)!r}, this build has "
                    f"{value!r}; run it as planned{later if name == 'licence' else ''}, or choose another --out"
                )
