"""Everything about one student on one store: scores with intervals, groups, reliability, blind spots."""

from __future__ import annotations

import shlex
from itertools import chain
from pathlib import Path

import numpy as np

import softlabels
from softlabels.core.progress import Reporter
from softlabels.core.resampling import bootstrap
from softlabels.core.rows import Row
from softlabels.core.settings import flags_of
from softlabels.store.document_names import document_name
from softlabels.store.reader import Store
from softlabels.store.token_text import TokenText
from trainers.evaluation import blind_spots, groups
from trainers.evaluation.calibration import BINS, Bins, reliability
from trainers.evaluation.config import EvalConfig
from trainers.evaluation.evaluate import open_run, open_teacher_states, summarise
from trainers.evaluation.evaluations import (
    FORMAT,
    RATIOS,
    VERSION,
    Assessment,
    Bin,
    BlindSpots,
    Evaluation,
    Interval,
    Place,
    StoreFacts,
    save_assessment,
    tensor_files,
    weights_digest,
)
from trainers.evaluation.measure import Measured, measure
from trainers.evaluation.scores import FEW_CLASSES, row_sums, scores
from trainers.run.record import WEIGHTS

LEVEL = 0.95
LISTED = 12
"""Places, and rows, that are listed."""
CONTEXT = 24
"""Tokens of a causal LM shown before a place."""
MOST = 96
"""Tokens shown of a text that is one row."""


def assess_run(run: Path, config: EvalConfig, report: Reporter) -> Assessment:
    """Evaluate a finished run's student in full.

    Raises:
        RunError, PairingError, TokenizerError: as `open_run`.
    """
    student, opened = open_run(run, config)
    m = measure(
        student,
        opened,
        device=config.device,
        batch_size=config.batch_size,
        teacher=open_teacher_states(config, opened),
        advance=report.advance,
    )
    means = summarise(m, opened)
    sums = row_sums(m, opened.vocab_size)
    intervals = bootstrap(sums, scores, replicates=config.bootstrap, seed=config.seed, level=LEVEL)
    folder = run / WEIGHTS[config.weights][0]
    text = TokenText(opened)
    documents, count = groups.by_document(
        m, lambda d: document_name(opened, d, int(m.row[m.document == d].min()), text)
    )
    few = opened.vocab_size <= FEW_CLASSES
    assessment = Assessment(
        format=FORMAT,
        version=VERSION,
        softlabels=softlabels.__version__,
        command=shlex.join(["softtrain", "eval", str(run), *flags_of(EvalConfig, vars(config))]),
        weights=config.weights,
        weights_sha256=weights_digest(folder),
        parameters=student.parameter_count,
        student_bytes=sum(p.stat().st_size for p in tensor_files(folder)),
        store=_store_facts(opened, config.vocab),
        scores=means,
        intervals={
            name: Interval(value=getattr(means, name), low=low, high=high)
            for name, (low, high) in intervals.items()
        },
        level=LEVEL,
        replicates=config.bootstrap,
        seed=config.seed,
        reliability=_bins(reliability(m.confidence[m.labelled], m.correct[m.labelled])),
        teacher_reliability=_bins(
            reliability(m.teacher_confidence[m.judged], m.teacher_correct[m.judged])
        )
        if m.judged.any()
        else [],
        by_context=groups.by_context(m),
        by_document=documents,
        documents=count,
        by_class=groups.by_class(m, opened.vocab_size, text.label) if few else [],
        blind_spots=_blind_spots(m, opened, text) if m.judged.any() else None,
        row_positions=[int(n) for n in sums["n"]],
        row_nll=[float(x) for x in sums["nll"]],
        row_sums={
            name: sums[name].tolist()
            for name in dict.fromkeys(chain(*RATIOS.values()))
            if name in sums and name not in ("n", "nll")
        },
    )
    if text.trouble is not None:
        report.notice(text.trouble)
    return assessment


def evaluate_and_keep(run: Path, config: EvalConfig, report: Reporter) -> Evaluation:
    """`assess_run`, kept in the run if that can be written to."""
    report.stage(f"evaluate {run}", None, "rows")
    assessment = assess_run(run, config, report)
    return Evaluation(assessment, save_assessment(run, assessment, report.notice))


def _bins(bins: Bins) -> list[Bin]:
    return [
        Bin(
            low=b / BINS,
            high=(b + 1) / BINS,
            count=int(n),
            confidence=float(bins.confidence[b] / n) if n else None,
            accuracy=float(bins.right[b] / n) if n else None,
        )
        for b, n in enumerate(bins.n)
    ]


def _blind_spots(m: Measured, store: Store, text: TokenText) -> BlindSpots:
    return BlindSpots(
        cells=blind_spots.count_cells(m, m.judged),
        by_confidence=[
            groups.group(m, where, name)
            for name, where in blind_spots.confidence_bins(m)
            if where.any()
        ],
        inherited=[_place(m, *p, store, text) for p in blind_spots.inherited(m, LISTED)],
        lost=[_place(m, *p, store, text) for p in blind_spots.lost(m, LISTED)],
        worst_rows=groups.by_row(m, LISTED),
    )


def _place(m: Measured, n: int, times: int, store: Store, text: TokenText) -> Place:
    row, token = int(m.row[n]), int(m.token[n])
    inputs = store.row(row).row
    tokens = inputs.inputs.get("input_ids", np.zeros(0, np.int32))
    if isinstance(inputs, Row):
        tokens = tokens[token + 1 - min(int(m.context[n]), CONTEXT) : token + 1]
    return Place(
        row=row,
        position=token,
        context=text.many(tokens[-MOST:].tolist()),
        label=text.label(int(m.label[n])),
        teacher=text.label(int(m.teacher_top[n])),
        teacher_confidence=float(m.teacher_confidence[n]),
        student=text.label(int(m.top[n])),
        confidence=float(m.confidence[n]),
        times=times,
    )


def _store_facts(store: Store, vocab: str | None) -> StoreFacts:
    identity = store.identity
    return StoreFacts(
        path=str(store.path),
        digest=store.digest,
        rows=len(store),
        positions=identity.corpus.positions,
        estimator=identity.targets.estimator,
        k=identity.targets.k,
        teacher=identity.teacher.name,
        teacher_parameters=identity.teacher.parameters,
        domain=identity.domain,
        corpus=list(identity.corpus.specs),
        vocab=vocab,
    )
