"""What a build would take, from the corpus' beginning and a small sample of the teacher.

The flow:
 1. refuse what the build would refuse: another job's folder, an impossible estimator;
 2. pack the first 4 MB of the corpus, of each its share: if that is all, rows, tokens and positions are counted, else
    what was counted is multiplied by how much larger all files are;
 3. teach and encode the first row, which warms the teacher up and gives the fixed size of a shard;
 4. teach and encode up to 64 rows from the beginning of what was packed and as many from its middle;
 5. scale to the whole corpus.

Costs the tokenisation of 4 MB (2,048 views of images) and at most 129 rows of the teacher, however large the corpus is;
writes nothing. Only a corpus of a kind that does not count its bytes is packed whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from softlabels.builder.build import load_teacher, site_of
from softlabels.builder.config import BuildConfig
from softlabels.builder.draws import with_found_k
from softlabels.builder.plan import most_rows, plan_build, survey
from softlabels.builder.shard_size import ROWS, with_shard_rows
from softlabels.builder.teach import teach
from softlabels.codecs.codebook import Codebook
from softlabels.core.progress import Reporter, Silent
from softlabels.core.rows import Cursor, InputRow
from softlabels.corpora import Corpus
from softlabels.corpora.beginning import beginnings, share_taken
from softlabels.domains import DOMAINS
from softlabels.domains.maker import CorpusPass
from softlabels.format.encoding import encode_shard
from softlabels.format.identity import Identity
from softlabels.format.manifest import Plan
from softlabels.format.shard import Shard
from softlabels.format.shard_records import PlannedShard
from softlabels.making.dictionary import given_dictionary
from softlabels.making.plan import check_folder, load_plan
from softlabels.making.same_job import check_same_job
from softlabels.start.sizing import hours_of
from softlabels.teachers import Teacher

BEGINNING_BYTES = 4_000_000
"""Of the corpus that is tokenised."""
KNOWN = 2048
"""Rows that are looked at where all are known to be there, as views of images are."""
SAMPLE_ROWS = 64
"""Rows of a part of the sample, at most; a shard's, if that is fewer."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a build would take."""

    documents: int
    rows: int
    tokens: int
    positions: int
    shards: int
    share: float
    """Of the corpus, by bytes of its files, over which all five were counted; 1: they are exact."""
    data_bytes: int
    """Of all shards; estimated."""
    bytes_per_position: float
    sample_rows: int
    """Rows that the teacher was run over, the first one's second time included."""
    tokens_per_second: float
    """Of teacher, selection and encoding, on this machine."""
    device: str
    hours: float
    """Of the whole build on this machine: the teacher once, the tokenizer twice."""


def dry_run(
    config: BuildConfig,
    out: Path | str,
    *,
    reporter: Reporter | None = None,
    teacher: Teacher | None = None,
) -> Estimate:
    """Estimate a build without writing anything.

    Args:
        out: the store's folder, which may be absent; only looked at.
        teacher: used instead of loading `config.teacher`.

    Raises:
        PlanError: `out` holds a different job.
        CorpusError, TeacherError, StoreError, ConfigError: what the build would say.
    """
    report = reporter or Silent()
    corpora = DOMAINS.load(config.domain).maker.open(config)
    plan = _planned(out)
    identity = None if plan is None else plan.identity
    teacher = load_teacher(config, identity, report, teacher)
    config = with_found_k(config, corpora, teacher, identity, report)
    if plan is not None:
        asked, _ = plan_build(config, corpora, teacher, report, plan)
        check_same_job(out, plan, asked, command="build")
    config = with_shard_rows(config, corpora, teacher, report)
    start = time.perf_counter()
    few, corpora, share_of = _beginning(config, corpora)
    identity, shards = survey(few, corpora, teacher, report)
    corpus = identity.corpus
    share = share_of(corpus.rows)
    tokenise_seconds = (time.perf_counter() - start) / share

    parts = _sample(config, shards, corpora, teacher, corpus.rows)
    first = parts[0][1][:1]
    sampled = [(0, first), *parts]
    report.stage("sample", sum(r.n for _, rows in sampled for r in rows), "positions")
    dictionary = _dictionary(config, identity)
    sizes, positions, tokens, seconds = [], [], 0, 0.0
    for i, (start_row, rows) in enumerate(sampled):
        start = time.perf_counter()
        targets, statistics = teach(
            rows,
            identity,
            config.make_estimator(),
            teacher,
            start_row=start_row,
            batch_tokens=config.batch_tokens,
            advance=report.advance,
        )
        content = Shard(start_row=start_row, rows=rows, targets=targets)
        sizes.append(len(encode_shard(content, identity, statistics, dictionary=dictionary)))
        positions.append(targets.n)
        if i > 0:  # the first row pays for what happens once
            seconds += time.perf_counter() - start
            tokens += sum(r.size for r in rows)
    fixed, each = _line(sizes, positions)
    all_rows, all_tokens = round(corpus.rows / share), round(corpus.tokens / share)
    all_positions = round(corpus.positions / share)
    all_shards = -(-all_rows // (config.shard_rows or ROWS))
    data_bytes = round(fixed * all_shards + each * all_positions)
    speed = tokens / seconds
    return Estimate(
        documents=round(corpus.documents / share),
        rows=all_rows,
        tokens=all_tokens,
        positions=all_positions,
        shards=all_shards,
        share=share,
        data_bytes=data_bytes,
        bytes_per_position=data_bytes / all_positions,
        sample_rows=sum(len(rows) for _, rows in sampled),
        tokens_per_second=speed,
        device=teacher.record.device,
        hours=hours_of(all_tokens, speed, tokenise_seconds=tokenise_seconds),
    )


def _planned(out: Path | str) -> Plan | None:
    """The plan that is there; None: none yet, and nothing of anybody else's."""
    if "://" in str(out):
        with site_of(out, only_read=True) as site:
            return site.begun(Silent())
    plan = load_plan(Path(out))
    if plan is None and Path(out).is_dir():
        check_folder(Path(out))
    return plan


def _beginning(
    config: BuildConfig, corpora: Sequence[Corpus]
) -> tuple[BuildConfig, Sequence[Corpus], Callable[[int], float]]:
    """What to pack in the place of the whole, and, given the rows that it made, the share that they are."""
    if DOMAINS.load(config.domain).maker.known_rows(config, corpora) is not None:
        known = most_rows(config, corpora)
        assert known is not None
        return replace(config, limit_rows=min(known, KNOWN)), corpora, lambda rows: rows / known
    parts = beginnings(corpora, BEGINNING_BYTES)
    if parts is None:
        return config, corpora, lambda _: 1.0

    def share(rows: int) -> float:
        if rows == config.limit_rows:
            return 1.0
        taken = share_taken(parts)
        return taken if config.limit_rows is None else max(taken, rows / config.limit_rows)

    return config, parts, share


def _dictionary(config: BuildConfig, identity: Identity) -> Codebook | None:
    """One that was given. One that is still to be trained is left out of account: the build will be smaller."""
    if identity.encoding.dictionary_sha256 is None:
        return None
    v = identity.teacher.vocab_size
    data = given_dictionary(config.dictionary, v)
    return Codebook.from_bytes(data, vocab_size=v, where=config.dictionary)


def _sample(
    config: BuildConfig,
    shards: Sequence[PlannedShard],
    corpora: Sequence[Corpus],
    teacher: Teacher,
    total: int,
) -> list[tuple[int, list[InputRow]]]:
    """Rows from the beginning and from the middle, each with the number of its first; no row twice."""
    shard_rows = config.shard_rows or ROWS
    n = min(shard_rows, SAMPLE_ROWS, total)
    parts = []
    for begin in (0, max(n, total // 2)):
        count = min(n, total - begin)
        if count == 0:
            continue
        shard = shards[begin // shard_rows]
        start = Cursor(shard.document, shard.offset)
        over = CorpusPass(config=config, corpora=corpora, teacher=teacher, start=start)
        packed = DOMAINS.load(config.domain).maker.rows(over)
        skip = begin - shard.start_row
        parts.append((begin, [row for _, row in islice(packed, skip, skip + count)]))
    return parts


def _line(sizes: Sequence[int], positions: Sequence[int]) -> tuple[float, float]:
    """Bytes of a shard without positions, and of each position: one row against the parts' mean."""
    parts = len(sizes) - 1
    n, size = sum(positions[1:]) / parts, sum(sizes[1:]) / parts
    if n < 1.5 * positions[0]:  # parts of hardly more than the first row: so are the shards
        return 0.0, size / n
    each = (size - sizes[0]) / (n - positions[0])
    return size - each * n, each
