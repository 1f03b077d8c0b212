"""Comparing several candidates with one reference, one after the other: a single model is in memory at a time."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import softlabels
from softlabels.core.progress import Reporter, Silent
from softlabels.errors import ConfigError, PairingError, StoreError
from softlabels.format.figures import figures_of
from softlabels.kld.candidates import Model, load, models_of, vocabulary
from softlabels.kld.compare import Compared, Wide, check_reference, compare
from softlabels.kld.config import KldConfig
from softlabels.kld.findings import candidate_of, pair_of
from softlabels.kld.record import Candidate, CandidateFacts, Comparison, ReferenceFacts
from softlabels.kld.token_classes import classes_of
from softlabels.kld.work import Work
from softlabels.store.demand import Demand
from softlabels.store.reader import Store, open_store
from softlabels.store.token_text import NAME as TOKENIZER
from softlabels.teachers import Teacher

WIDE = "-wide"
"""What the folder of the wide rows is called, after the reference's."""


def kld(
    models: Sequence[str],
    config: KldConfig,
    *,
    reporter: Reporter | None = None,
    demand: Demand | None = None,
) -> Comparison:
    """Say how far models are from a reference.

    Args:
        models: as `candidates.py` reads them.
        config: with what, and how.
        reporter: receives the progress.
        demand: what the reference must be, signed for instance.

    Raises:
        TokenizerError: a candidate's ids mean other tokens than the reference's.
        PairingError: the store is no reference.
        TeacherError, ConfigError, StoreError: what, where and the way out.
    """
    report = reporter or Silent()
    if not models:
        raise ConfigError("MODEL: give at least one")
    chosen = models_of(tuple(models))
    store = open_store(config.store, inputs=config.inputs, **asdict(demand or Demand()))
    check_reference(store)
    wide = _wide(store, config, report)
    table = vocabulary(store.file(TOKENIZER)) if TOKENIZER in store.manifest.files else None
    passed: list[tuple[str, Compared]] = []
    candidates: list[Candidate] = []
    for model in chosen:
        found, facts = _one(model, store, wide, config, report)
        classes = None if table is None else classes_of(found.said.label, table)
        candidates.append(
            candidate_of(
                found, facts, classes=classes, replicates=config.bootstrap, seed=config.seed
            )
        )
        passed.append((model.name, found))
    said = passed[0][1].said
    return Comparison(
        softlabels=softlabels.__version__,
        reference=_facts(store, wide, said.tail.mean()),
        rows=len(set(said.row.tolist())),
        positions=said.n,
        labelled=int((said.label_logp == said.label_logp).sum()),
        replicates=config.bootstrap,
        seed=config.seed,
        candidates=candidates,
        pairs=[
            pair_of(a, b, replicates=config.bootstrap, seed=config.seed)
            for a, b in combinations(passed, 2)
        ],
    )


def _one(
    model: Model, store: Store, wide: Wide | None, config: KldConfig, report: Reporter
) -> tuple[Compared, CandidateFacts]:
    teacher = load(model, config, store, report.notice)
    rows = min(len(store), config.limit_rows or len(store))
    report.stage(model.name, rows, "rows")
    with _work(teacher, store, wide, config) as work:
        earlier = 0 if work is None else work.end
        if work is not None and earlier:
            report.notice(f"{model.name}: {earlier:,} rows are finished already ({work.folder})")
        begun = time.monotonic()
        found = compare(
            store,
            teacher,
            wide=wide,
            limit_rows=config.limit_rows,
            batch_tokens=config.batch_tokens,
            list_k=config.list_k,
            work=work,
            advance=report.advance,
        )
        seconds = time.monotonic() - begun
    tokens = store.manifest.identity.corpus.tokens * (rows - earlier) // len(store)
    for remark in teacher.remarks():
        report.notice(remark)
    if found.beyond:
        report.notice(
            f"{model.name}: its head has {teacher.record.vocab_size:,} ids, the reference's "
            f"{store.vocab_size:,}; {found.beyond:,} kept ids that it lacks count as tail"
        )
    facts = _model_facts(model, teacher, seconds, tokens)
    del teacher
    gc.collect()  # before the next is loaded
    return found, facts


@contextmanager
def _work(
    teacher: Teacher, store: Store, wide: Wide | None, config: KldConfig
) -> Iterator[Work | None]:
    """Where what is finished of a candidate is kept: by all that its numbers depend on."""
    if config.work is None:
        yield None
        return
    record = teacher.record
    facts = {
        "softlabels": softlabels.__version__,
        "reference": store.digest,
        "wide": None if wide is None else wide.store.digest,
        "spec": record.spec,
        "weights_sha256": record.weights_sha256,
        "dtype": record.dtype,
        "device": record.device,
        "engine": record.engine,
        "vocab_size": record.vocab_size,
        "limit_rows": config.limit_rows,
        "batch_tokens": config.batch_tokens,
        "head_mib": config.head_mib,
        "list_k": config.list_k,
    }
    with Work(Path(config.work), facts).opened() as work:
        yield work


def _model_facts(model: Model, teacher: Teacher, seconds: float, tokens: int) -> CandidateFacts:
    record = teacher.record
    return CandidateFacts(
        name=model.name,
        spec=record.spec,
        weights_sha256=record.weights_sha256,
        dtype=record.dtype,
        device=record.device,
        engine=record.engine,
        parameters=record.parameters,
        bytes=model.bytes,
        vocab_size=record.vocab_size,
        seconds=seconds,
        tokens_per_second=tokens / max(seconds, 1e-9),
    )


def _wide(store: Store, config: KldConfig, report: Reporter) -> Wide | None:
    """The store of wide rows: the one that is given, or that lies beside."""
    place: Path | str
    if config.wide is not None:
        place = config.wide
    elif isinstance(store.path, Path) and (beside := Path(f"{store.path}{WIDE}")).is_dir():
        place = beside
    else:
        return None
    try:
        found = open_store(place)
        _check_wide(store, found)
    except (StoreError, PairingError) as e:
        if config.wide is not None:
            raise
        report.notice(f"{place}: is not taken for the wide rows of {store.path}: {e}")
        return None
    return Wide(found)


def _check_wide(store: Store, wide: Store) -> None:
    """Refuse a store that says nothing of a reference's tails.

    Raises:
        PairingError: names what differs.
    """
    ours, theirs = store.manifest.identity, wide.manifest.identity
    if theirs.teacher.weights_sha256 != ours.teacher.weights_sha256:
        raise PairingError(f"{wide.path}: is of another model than {store.path}")
    if not theirs.targets.keeps.largest or theirs.targets.k <= ours.targets.k:
        raise PairingError(
            f"{wide.path}: keeps `{theirs.targets.estimator}` k={theirs.targets.k}; expected the likeliest, and more "
            f"than the {ours.targets.k} of {store.path}"
        )


def _facts(store: Store, wide: Wide | None, tail: float) -> ReferenceFacts:
    identity, figures = store.manifest.identity, figures_of(store.manifest)
    return ReferenceFacts(
        path=str(store.path),
        digest=store.digest,
        model=identity.teacher.name,
        weights_sha256=identity.teacher.weights_sha256,
        dtype=identity.teacher.dtype,
        engine=identity.teacher.engine,
        vocab_size=identity.teacher.vocab_size,
        estimator=identity.targets.estimator,
        k=identity.targets.k,
        corpus=list(identity.corpus.specs),
        bytes_per_position=figures.bytes_per_position,
        dense_bytes_per_position=figures.dense_fp16_bytes_per_position,
        wide=None if wide is None else str(wide.store.path),
        tail=float(tail),
        perplexity=figures.perplexity,
        absolute_error=identity.encoding.absolute_error,
        relative_error=identity.encoding.relative_error,
    )
