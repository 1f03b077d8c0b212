"""Making a store of another tool's log-probabilities.

The flow:
 1. the teacher is loaded for what it is (weights, tokenizer, V), not run;
 2. a first pass over the rows counts and fingerprints them;
 3. begin, commit, finish (`softlabels/making/job.py`), with a second pass for the shards that are to be made.

What the file does not say cannot be checked here: that it is of this teacher, and that its positions are where the
kind says. `softlabels measure` does check it: the teacher then runs on some rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from softlabels.builder.config import BuildConfig, ImportConfig
from softlabels.builder.plan import identity_of
from softlabels.codecs.summary import held_label_logp
from softlabels.core.progress import Reporter, Silent
from softlabels.core.registry import name_of
from softlabels.core.rows import BEGINNING, Cursor, Row
from softlabels.core.summary import Summary
from softlabels.core.targets import SoftTargets, gaps_from_logp
from softlabels.errors import ConfigError, CorpusError
from softlabels.format.identity import CorpusRecord, Identity
from softlabels.format.manifest import Manifest, Plan
from softlabels.format.shard import Shard
from softlabels.format.statistics import statistics_of
from softlabels.interchange import IMPORTS, ForeignRow, rows_of_kind
from softlabels.making.job import make_store
from softlabels.making.one_shard import Made
from softlabels.making.plan import (
    IMPORTED,
    Passes,
    begun,
    check_rows,
    make_plan,
    numbered,
    plan_shards,
)
from softlabels.making.same_job import check_command
from softlabels.store.tokenizer_files import for_store
from softlabels.teachers import Teacher, TeacherOptions, open_teacher

NO_TAIL = 1e-6
"""A position that leaves less of 1 has no tail that could be told from rounding."""
ABOVE_ONE = 0.02
"""Rounded log-probabilities may sum to this much more than 1; more is no distribution."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A finished import."""

    manifest: Manifest
    without_tail: int
    """Positions whose ids sum to 1: they are stored with an empty tail."""


def import_store(
    kind: str,
    path: Path,
    out: Path,
    config: ImportConfig,
    *,
    reporter: Reporter | None = None,
    teacher: Teacher | None = None,
) -> Imported:
    """Make a store, or finish one that was begun.

    Args:
        kind: a name in `IMPORTS`, perhaps with parameters.
        path: the other tool's file or folder.
        teacher: used instead of loading `config.teacher`.

    Raises:
        ConfigError: an unknown kind, or an impossible configuration.
        CorpusError: the files are not what the kind says; names file and row.
        PlanError: `out` holds a different job.
    """
    if name_of(kind)[0] not in IMPORTS:
        raise ConfigError(f"{kind!r}: expected one of {', '.join(IMPORTS.names())}")
    report = reporter or Silent()
    build = BuildConfig(
        corpus=(f"{kind}:{path}",),
        estimator="topk",
        dictionary="none",
        position_summary=False,
        **asdict(config),
    )  # the bounds of a build hold here, too
    planned = begun(out, report.notice)
    if planned is not None:
        check_command(out, planned, "import")
    if teacher is None:
        options = TeacherOptions(device="cpu", notice=report.notice)
        teacher = open_teacher(config.teacher, options)
    job = _Imported(kind, path, out)
    report.stage("read", None, "rows")
    survey = _Survey(teacher.record.vocab_size, report)
    shards = list(plan_shards(survey.watch(job.read()), config.shard_rows))
    identity = _identity(kind, path, build, teacher, survey)
    if survey.without_tail:
        report.notice(
            f"{survey.without_tail:,} of {survey.positions:,} positions have no tail: their ids sum to 1 within "
            f"{NO_TAIL:g}"
        )
    files = for_store(teacher.tokenizer.files(), report.notice)
    plan = make_plan(identity, numbered(shards, identity), files, shard_rows=config.shard_rows)
    manifest = make_store(job, plan, files, report)
    return Imported(manifest=manifest, without_tail=survey.without_tail)


@dataclass
class _Imported:
    """The shards of an import, as a `softlabels.making.job.Job`."""

    kind: str
    path: Path
    store: Path
    command: str = field(default="import", init=False)
    stage: str = field(default="write", init=False)
    _passes: Passes[ForeignRow] | None = field(default=None, init=False)

    def __reduce__(self) -> tuple[type[_Imported], tuple[str, Path, Path]]:
        return _Imported, (self.kind, self.path, self.store)  # what is open stays here

    def read(self) -> Iterator[ForeignRow]:
        """All rows."""
        return rows_of_kind(self.kind, self.path)

    def shard(self, plan: Plan, index: int, advance: Callable[[int], None]) -> Made:
        """A planned shard.

        Raises:
            CorpusError: its rows are not the ones that were planned.
        """
        planned = plan.shards[index]
        if self._passes is None:
            self._passes = Passes(lambda shard: islice(self.read(), shard.start_row, None))
        foreign = self._passes.take(planned)
        rows = [_row(f, planned.start_row + i) for i, f in enumerate(foreign)]
        check_rows(planned, rows, where=str(self.path))
        targets = SoftTargets.concatenate([_targets(f, plan.identity) for f in foreign])
        targets.validate(where=f"shard {index} of {self.store}")
        # the teacher's loss: of labels that were not kept it is not known, if the files do not say
        statistics = statistics_of(targets, rows, plan.identity, nll=None)
        content = Shard(start_row=planned.start_row, rows=rows, targets=targets)
        return Made(content=content, statistics=statistics)


class _Survey:
    """The first pass: counts, the fingerprint, and whether the numbers can be what they should be."""

    def __init__(self, vocab_size: int, report: Reporter) -> None:
        self.vocab_size, self._report = vocab_size, report
        self.digests = hashlib.sha256()
        self.rows = self.tokens = self.positions = self.longest = self.without_tail = 0
        self.k: int | None = None
        self.labels = False
        """Whether the log-probability of each label is known."""

    def watch(self, rows: Iterator[ForeignRow]) -> Iterator[tuple[Cursor, Row]]:
        """Rows for the plan."""
        for number, foreign in enumerate(rows):
            row, mass = _row(foreign, number), _mass(foreign, self.vocab_size)
            if mass is not None:
                k = foreign.ids.shape[1]
                if self.k not in (None, k):
                    raise CorpusError(
                        f"{foreign.where}: keeps {k} ids at a position, earlier rows {self.k}; a store of `topk` has "
                        "one number: import them as separate stores"
                    )
                self.k = k
                self.labels = foreign.label_logp is not None
                self.without_tail += int((1 - mass < NO_TAIL).sum()) if k < self.vocab_size else 0
            self.digests.update(row.digest())
            self.rows += 1
            self.tokens += row.size
            self.positions += row.n
            self.longest = max(self.longest, row.size)
            self._report.advance(1)
            yield BEGINNING._replace(document=number), row
        if self.k is None:
            raise CorpusError("the files hold no position with a target; nothing can be imported")
        if self.without_tail > self.positions / 2:
            raise CorpusError(
                f"{self.without_tail} of {self.positions} positions sum to 1 over {self.k} ids of "
                f"{self.vocab_size}: they were renormalised, and the mass of all other ids is lost. Import the "
                "log-probabilities as the teacher gave them"
            )


def _row(foreign: ForeignRow, number: int) -> Row:
    if not len(foreign.input_ids):
        raise CorpusError(f"{foreign.where}: has no token; remove it")
    return Row(
        input_ids=foreign.input_ids,
        segment_lengths=np.array([len(foreign.input_ids)], np.int32),
        documents=np.array([number], np.int64),
        label_mask=foreign.label_mask,
    )


def _mass(
    foreign: ForeignRow, vocab_size: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
    """`[N]`: what the kept ids of each position sum to; None if there is no position.

    Raises:
        CorpusError: not log-probabilities at T = 1 of ids of this vocabulary.
    """
    ids, logp, where = foreign.ids, foreign.logp, foreign.where
    for name, values in (("input_ids", foreign.input_ids), ("a target", ids)):
        if values.size and (values.min() < 0 or values.max() >= vocab_size):
            raise CorpusError(
                f"{where}: {name} holds id {values.max() if values.min() >= 0 else values.min()}, the teacher's "
                f"vocabulary is 0..{vocab_size - 1}: another teacher or tokenizer?"
            )
    if not len(ids):
        return None
    if not np.isfinite(logp).all():
        at, slot = np.argwhere(~np.isfinite(logp))[0]
        raise CorpusError(
            f"{where}: position {at} has a log-probability of {logp[at, slot]} for id {ids[at, slot]}; expected a "
            "finite one for each kept id"
        )
    ordered = np.sort(ids, axis=1)
    if (twice := (ordered[:, 1:] == ordered[:, :-1]).any(1)).any():
        raise CorpusError(f"{where}: position {int(twice.argmax())} keeps an id twice")
    mass = np.exp(logp.astype(np.float64)).sum(1)
    if (mass > 1 + ABOVE_ONE).any():
        at = int(mass.argmax())
        raise CorpusError(
            f"{where}: the probabilities of position {at} sum to {mass[at]:.4g}; expected natural log-probabilities at "
            "T = 1, not logits, and not of another temperature"
        )
    return np.asarray(mass)


def _identity(
    kind: str, path: Path, build: BuildConfig, teacher: Teacher, survey: _Survey
) -> Identity:
    corpus = CorpusRecord(
        specs=[f"{kind}:{path.name}"],
        fingerprint=survey.digests.hexdigest(),
        seq_len=survey.longest,
        documents=survey.rows,
        rows=survey.rows,
        tokens=survey.tokens,
        positions=survey.positions,
        skipped_empty=0,
        skipped_short=0,
        limit_rows=None,
    )
    assert survey.k is not None, "checked at the end of the first pass"
    asked = replace(build, k=survey.k, position_summary=survey.labels)
    made = identity_of(asked, teacher, corpus, own={})
    engine = msgspec.structs.replace(teacher.record, engine=kind + IMPORTED)
    return msgspec.structs.replace(made, teacher=engine)


def _targets(foreign: ForeignRow, identity: Identity) -> SoftTargets:
    """The tail is what true log-probabilities leave of 1."""
    vocab_size, n = identity.teacher.vocab_size, len(foreign.ids)
    mass = _mass(foreign, vocab_size)
    odds = np.full((n, 1), -np.inf)
    if mass is not None and foreign.ids.shape[1] < vocab_size:
        outside = 1 - mass
        some = outside >= NO_TAIL
        odds[some, 0] = np.log(outside[some]) - np.log(mass[some])
    k, summary = identity.targets.k, None
    if identity.summary is not None:
        assert foreign.label_logp is not None, "all rows of a kind say, or none"
        summary = Summary(
            label_logp=held_label_logp(np.minimum(foreign.label_logp, 0)).astype(np.float32),
            entropy=np.full(n, np.nan, np.float32),
            top=foreign.ids[:, 0].astype(np.int32),
        )
    return SoftTargets(
        ids=foreign.ids.astype(np.int32).reshape(n, k),
        gaps=gaps_from_logp(foreign.logp.astype(np.float32).reshape(n, k)),
        log_odds=odds.astype(np.float32),
        temperatures=(1.0,),
        vocab_size=vocab_size,
        estimator="topk",
        summary=summary,
    )
