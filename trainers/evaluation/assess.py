"""Everything about one student on one store: scores with intervals, groups, reliability, blind spots."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import softlabels
from softlabels.core.rows import Row
from softlabels.store.reader import Store
from softlabels.store.token_text import TokenText
from trainers.evaluation import blind_spots, groups
from trainers.evaluation.calibration import BINS, Bins, reliability
from trainers.evaluation.evaluate import Evaluation, open_run, summarise
from trainers.evaluation.evaluations import (
    FORMAT,
    VERSION,
    Assessment,
    Bin,
    BlindSpots,
    Interval,
    Place,
    Scores,
    StoreFacts,
    tensor_files,
    weights_digest,
)
from trainers.evaluation.measure import Measured, measure
from trainers.evaluation.resampling import bootstrap
from trainers.evaluation.scores import FEW_CLASSES, row_sums, scores
from trainers.run.finished import WEIGHTS

__all__ = ["assess_run"]

LEVEL = 0.95
LISTED = 12
"""Places, and rows, that are listed."""
CONTEXT = 24
"""Tokens of a causal LM shown before a place."""
MOST = 96
"""Tokens shown of a text that is one row."""


def assess_run(
    run: Path,
    store: Path | str,
    *,
    device: str = "cpu",
    batch_size: int = 8,
    vocab: str | None = None,
    weights: str = "student",
    images: Sequence[str] = (),
    replicates: int = 1000,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
) -> tuple[Evaluation, Assessment]:
    """Evaluate a finished run's student in full.

    Args:
        run, store, device, batch_size, vocab, weights, images, advance: as of `evaluate_run`.
        notice: told what whoever reads the result should know.
        replicates: of the bootstrap over rows; 0 leaves intervals out.
        seed: of its draws.

    Raises:
        RunError, PairingError, TokenizerError: as `evaluate_run`.
    """
    student, opened = open_run(run, store, vocab=vocab, weights=weights, images=images)
    m = measure(student, opened, device=device, batch_size=batch_size, advance=advance)
    found = summarise(m, opened)
    sums = row_sums(m, opened.vocab_size)
    intervals = bootstrap(sums, scores, replicates=replicates, seed=seed, level=LEVEL)
    folder = run / WEIGHTS[weights][0]
    text = TokenText(opened)
    documents, count = groups.by_document(m)
    values = found._asdict()
    few = opened.vocab_size <= FEW_CLASSES
    assessment = Assessment(
        format=FORMAT,
        version=VERSION,
        softlabels=softlabels.__version__,
        command=_command(run, store, vocab, weights, replicates, seed),
        weights=weights,
        weights_sha256=weights_digest(folder),
        parameters=student.parameter_count,
        student_bytes=sum(p.stat().st_size for p in tensor_files(folder)),
        store=_store_facts(opened, vocab),
        scores=Scores(**values),
        intervals={
            name: Interval(value=values[name], low=low, high=high)
            for name, (low, high) in intervals.items()
        },
        level=LEVEL,
        replicates=replicates,
        seed=seed,
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
    )
    if text.trouble is not None:
        notice(text.trouble)
    return found, assessment


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
    identity = store.manifest.identity
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


def _command(
    run: Path, store: Path | str, vocab: str | None, weights: str, replicates: int, seed: int
) -> str:
    words: list[Any] = ["softtrain", "eval", run, "--store", store]
    words += [] if vocab is None else ["--vocab", vocab]
    words += [] if weights == "student" else ["--weights", weights]
    words += [] if replicates == 1000 else ["--bootstrap", replicates]
    words += [] if seed == 0 else ["--seed", seed]
    return shlex.join(map(str, words))
