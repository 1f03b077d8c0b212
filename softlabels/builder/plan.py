"""Planning a build: one pass over the corpus, and the identity of what is built."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from softlabels.builder.config import BuildConfig
from softlabels.builder.shard_size import CANNOT_FIT, ROWS, with_shard_rows
from softlabels.codecs import make_codec
from softlabels.core.kept import BUILT_IN
from softlabels.core.positions import PositionRule
from softlabels.core.progress import Reporter
from softlabels.core.registry import without_folder
from softlabels.core.rows import Cursor, InputRow
from softlabels.corpora import Corpus
from softlabels.corpora.survey import SurveyProgress
from softlabels.domains import DOMAINS
from softlabels.domains.maker import CorpusPass, RowMaker
from softlabels.errors import CorpusError, PlanError
from softlabels.format.dictionaries import DICTIONARY
from softlabels.format.encoding import packages_of
from softlabels.format.identity import (
    CorpusRecord,
    EncodingRecord,
    Identity,
    TargetRecord,
    held_profile,
)
from softlabels.format.manifest import Plan
from softlabels.format.shard_records import PlannedShard
from softlabels.format.summaries import summary_record
from softlabels.making.dictionary import first_shards, given_dictionary
from softlabels.making.plan import make_plan, numbered, plan_shards
from softlabels.store.tokenizer_files import for_store
from softlabels.teachers import Teacher


def plan_build(
    config: BuildConfig,
    corpora: Sequence[Corpus],
    teacher: Teacher,
    report: Reporter,
    planned: Plan | None = None,
) -> tuple[Plan, dict[str, bytes]]:
    """The plan of a build, and the files that lie beside its shards.

    Args:
        planned: the plan that is there, if any. What only a pass over the corpus tells is then taken from it.

    Raises:
        CorpusError: the corpus cannot be read, or holds nothing to teach.
        PlanError: a plan cannot hold the shards.
    """
    if planned is not None:
        identity = _as_planned(config, teacher, planned.identity)
        rows = planned.shard_rows if config.shard_rows is None else config.shard_rows
        plan = msgspec.structs.replace(planned, identity=identity, shard_rows=rows, provenance=None)
        return plan, {}
    config = with_shard_rows(config, corpora, teacher, report)
    identity, shards = survey(config, corpora, teacher, report)
    files = files_beside(config, teacher, report)
    assert config.shard_rows is not None
    plan = make_plan(identity, numbered(shards, identity), files, shard_rows=config.shard_rows)
    return plan, files


def files_beside(config: BuildConfig, teacher: Teacher, report: Reporter) -> dict[str, bytes]:
    """The files of a build that lie beside its shards, as they are before the first of these."""
    files = for_store(teacher.tokenizer.files(), report.notice)
    if config.dictionary not in ("auto", "none"):
        files[DICTIONARY] = given_dictionary(config.dictionary, teacher.record.vocab_size)
    return files


def survey(
    config: BuildConfig,
    corpora: Sequence[Corpus],
    teacher: Teacher,
    report: Reporter,
    *,
    before: bytes = b"",
) -> tuple[Identity, list[PlannedShard]]:
    """Pack the whole corpus once, fingerprint it, cut it into shards, whose names are still to be given.

    Args:
        before: input digests of rows that come before these, which the fingerprint then is over, too.

    Raises:
        CorpusError: it cannot be read, or holds nothing to teach.
    """
    maker: RowMaker = DOMAINS.load(config.domain).maker
    over = CorpusPass(config=config, corpora=corpora, teacher=teacher, ahead=True)
    counts = over.counts
    digests = hashlib.sha256(before)
    tokens = 0
    progress = SurveyProgress(
        report, corpora, counts, rows=most_rows(config, corpora), passes=config.views
    )

    def watched() -> Iterator[tuple[Cursor, InputRow]]:
        nonlocal tokens
        for cursor, row in islice(maker.rows(over), config.limit_rows):
            digests.update(row.digest())
            tokens += row.size
            progress.row(row.size)
            yield cursor, row
        progress.end()

    shards = []
    for shard in plan_shards(watched(), config.shard_rows or ROWS):
        shards.append(shard)
        if len(shards) > CANNOT_FIT:
            raise PlanError(
                f"{', '.join(config.corpus)}: more than {CANNOT_FIT:,} shards of {config.shard_rows} rows, which is "
                "more than a build plans; raise --shard-rows"
            )
    if not shards:
        raise CorpusError(f"{', '.join(config.corpus)}: holds no document to make a row of")
    corpus = CorpusRecord(
        specs=[without_folder(spec) for spec in config.corpus],
        fingerprint=digests.hexdigest(),
        seq_len=maker.row_tokens(config),
        documents=counts.documents,
        rows=sum(s.rows for s in shards),
        tokens=tokens,
        positions=sum(s.positions for s in shards),
        skipped_empty=counts.skipped_empty,
        skipped_short=counts.skipped_short,
        limit_rows=config.limit_rows,
        truncated=counts.truncated,
    )
    identity = identity_of(
        config,
        teacher,
        corpus,
        trained_on=first_shards(shards, config.make_estimator().k),
        own=maker.record(config, corpora, teacher, rows=corpus.rows),
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


def _as_planned(config: BuildConfig, teacher: Teacher, planned: Identity) -> Identity:
    """What a build would plan, if its corpus were that of a plan."""
    maker: RowMaker = DOMAINS.load(config.domain).maker
    corpus = msgspec.structs.replace(
        planned.corpus, seq_len=maker.row_tokens(config), limit_rows=config.limit_rows
    )
    identity = identity_of(
        config,
        teacher,
        corpus,
        trained_on=planned.encoding.dictionary_shards,
        own=maker.asked(config, teacher, planned),
    )
    if planned.encoding.asked_profile != config.profile:
        return identity
    encoding = msgspec.structs.replace(identity.encoding, profile=planned.encoding.profile)
    return msgspec.structs.replace(identity, encoding=encoding)


def identity_of(
    config: BuildConfig,
    teacher: Teacher,
    corpus: CorpusRecord,
    *,
    trained_on: int | None = None,
    own: Mapping[str, Any],
) -> Identity:
    """What a build makes of a corpus.

    Args:
        trained_on: of how many shards the dictionary is, if it is to be trained and pays.
        own: the parts of its domain.
    """
    codec, estimator = make_codec(config.stored_values), config.make_estimator()
    vocab_size, dictionary_shards, sha256 = teacher.record.vocab_size, None, None
    if config.profile == "packed" and config.dictionary != "none":
        dictionary_shards = trained_on if config.dictionary == "auto" else 0
    if config.dictionary not in ("auto", "none"):
        sha256 = hashlib.sha256(given_dictionary(config.dictionary, vocab_size)).hexdigest()
    rule = config.positions
    return Identity(
        domain=config.domain,
        label_shift=DOMAINS.load(config.domain).label_shift,
        teacher=teacher.record,
        tokenizer=teacher.tokenizer.record,
        corpus=corpus,
        targets=TargetRecord(
            estimator=config.estimator,
            declared=None if config.estimator in BUILT_IN else estimator.keeps,
            k=estimator.k,
            temperatures=list(estimator.temperatures),
            seed=config.seed,
            top_p=config.top_p,
            min_k=config.min_k,
            mean_k=config.mean_k,
            positions=None if rule is None else str(PositionRule.parse(rule)),
        ),
        encoding=EncodingRecord(
            profile=held_profile(config.profile, config.container),
            container=config.container,
            values=config.stored_values,
            relative_error=codec.relative_error,
            absolute_error=codec.absolute_error(sample=estimator.keeps.sample),
            dictionary_shards=dictionary_shards,
            dictionary_sha256=sha256,
            packages=packages_of(config.container, config.stored_values),
        ),
        licence=config.licence,
        classes=None if teacher.classes is None else list(teacher.classes),
        summary=summary_record(vocab_size) if config.position_summary else None,
        **own,
    )


def most_rows(config: BuildConfig, corpora: Sequence[Corpus]) -> int | None:
    """Rows of the whole job, if they can be told before the corpus was read."""
    known = DOMAINS.load(config.domain).maker.known_rows(config, corpora)
    return min((n for n in (known, config.limit_rows) if n is not None), default=None)
