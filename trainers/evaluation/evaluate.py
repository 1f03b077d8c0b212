"""How good a student is on rows that a store holds, against the labels and against the teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from softlabels.errors import RunError
from softlabels.store.reader import Store, open_store
from trainers.data.tasks import Task, check_pixels
from trainers.evaluation.calibration import BINS, reliability
from trainers.evaluation.measure import Measured, measure
from trainers.evaluation.scores import macro_f1, row_sums, scores
from trainers.run.finished import open_finished
from trainers.students import Student, load_student

__all__ = [
    "Evaluation",
    "evaluate",
    "evaluate_run",
    "expected_calibration_error",
    "open_run",
    "summarise",
]


class Evaluation(NamedTuple):
    """Means over the labelled positions of a store, at T=1; what compares with the teacher, over the soft ones.

    That is None for a sampled store, which does not determine it, and where no position has a soft target.
    """

    positions: int
    soft_positions: int
    """Those that have a soft target."""
    nll: float
    """-log p of the token that came, nats."""
    perplexity: float
    accuracy: float
    """Share of positions whose most probable token came."""
    macro_f1: float
    """Mean F1 of the classes (tokens) that came or were the most probable."""
    ece: float
    """Expected calibration error of the most probable token, 15 bins of equal width (Guo et al. 2017)."""
    kl: float | None
    """KL(teacher || student) over kept ids and tail, nats."""
    agreement: float | None
    """Share of soft positions where student and teacher agree on the most probable token."""
    top_k_agreement: float | None
    """Share where the teacher's most probable token is among the student's 5."""
    acceptance_low: float | None
    """Speculative decoding: at least this share of the tokens that the student drafts is accepted, sum of min(p, q):
    exact over the kept ids, nothing for the tail."""
    acceptance_high: float | None
    """And at most this: all that the two tails' masses allow."""
    teacher_nll: float | None
    """The teacher's own, where the store knows it; None in a view, whose conditional distribution is another."""
    teacher_accuracy: float | None
    teacher_ece: float | None
    dropped: dict[str, Any] | None = None
    """What the view dropped of the teacher's mass (`softlabels.core.views.Dropped`); None without one."""


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Of `[N]` confidences in [0, 1] and `[N]` outcomes; bins of equal width, `(low, high]`."""
    return float(reliability(confidence.double().numpy(), correct.bool().numpy(), bins).ece)


def evaluate(
    student: Student,
    store: Store,
    *,
    device: str = "cpu",
    batch_size: int = 8,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Evaluate in float32 on every row of a store.

    Raises:
        PairingError: the student's vocabulary is not the store's.
    """
    measured = measure(student, store, device=device, batch_size=batch_size, advance=advance)
    return summarise(measured, store)


def summarise(m: Measured, store: Store) -> Evaluation:
    """The headline figures of what was measured on a store.

    Raises:
        RunError: no position has a label.
    """
    if not m.labelled.any():
        raise RunError(f"{store.path}: none of its positions has a label to evaluate against")
    sums = {name: s.sum(axis=0) for name, s in row_sums(m, store.vocab_size).items()}
    found = {name: float(value) for name, value in scores(sums).items()}
    v = store.vocab_size
    counts = [
        np.bincount(x, minlength=v).astype(np.float64)
        for x in (m.label[m.labelled], m.top[m.labelled])
    ]
    hits = np.bincount(m.label[m.correct], minlength=v).astype(np.float64)
    statistics = store.manifest.statistics
    of_teacher = ("kl", "agreement", "top_k_agreement", "acceptance_low", "acceptance_high")
    return Evaluation(
        positions=m.n,
        soft_positions=int(m.soft.sum()),
        **{name: found[name] for name in ("nll", "perplexity", "accuracy", "ece")},
        macro_f1=float(macro_f1(hits, *counts)),
        **{name: found.get(name) for name in (*of_teacher, "teacher_accuracy", "teacher_ece")},  # type: ignore[arg-type]
        teacher_nll=None
        if statistics.teacher_nll is None or store.view is not None
        else statistics.teacher_nll / int(m.labelled.sum()),
        dropped=None if store.dropped is None else store.dropped.to_dict(),
    )


def evaluate_run(
    run: Path,
    store: Path | str,
    *,
    device: str = "cpu",
    batch_size: int = 8,
    vocab: str | None = None,
    images: Sequence[str] = (),
    weights: str = "student",
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Evaluate a finished run's student, on a store read in the vocabulary `vocab` (as in `RunConfig`).

    Args:
        run: its folder.
        store: of held-out rows.
        device: where to compute.
        batch_size: rows at a time.
        vocab: view to read the store in.
        images: of a store of images, where they lie.
        weights: a key of `WEIGHTS`: the last, the averaged ones (`--ema`), or the best on the run's held-out store.
        advance: told of rows done.

    Raises:
        RunError: not a run, not finished, or it has no such weights.
        PairingError: the run numbered its ids otherwise.
        TokenizerError: the store was tokenised differently from what the student was trained on.
    """
    student, opened = open_run(run, store, vocab=vocab, weights=weights, images=images)
    return evaluate(student, opened, device=device, batch_size=batch_size, advance=advance)


def open_run(
    run: Path,
    store: Path | str,
    *,
    vocab: str | None,
    weights: str,
    images: Sequence[str] = (),
) -> tuple[Student, Store]:
    """A finished run's student, and the store to evaluate it on; arguments and errors as of `evaluate_run`."""
    opened = open_store(store, view=vocab, images=images)
    opened.need_inputs()
    check_pixels(opened)
    finished = open_finished(run, weights)
    finished.check_fits(opened)
    return load_student(finished.folder, Task.of(opened)), opened
