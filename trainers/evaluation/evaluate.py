"""How good a student is on rows that a store holds, against the labels and against the teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from softlabels.errors import RunError
from softlabels.format.figures import figures_of
from softlabels.store.reader import Store
from trainers.data.full_teacher import FullTeacher
from trainers.data.tasks import Task
from trainers.evaluation.config import EvalConfig
from trainers.evaluation.evaluations import Scores
from trainers.evaluation.heldout import check_labelled
from trainers.evaluation.measure import Measured, measure
from trainers.evaluation.scores import macro_f1, row_sums, scores
from trainers.run.finished import open_finished
from trainers.students import Student, load_student


def evaluate(
    student: Student,
    store: Store,
    *,
    device: str = "cpu",
    batch_size: int = 8,
    teacher: FullTeacher | None = None,
) -> Scores:
    """Evaluate in float32 on every row of a store; against all of the teacher's distribution, if it is given.

    Raises:
        PairingError: the student's vocabulary is not the store's.
    """
    measured = measure(student, store, device=device, batch_size=batch_size, teacher=teacher)
    return summarise(measured, store)


def summarise(m: Measured, store: Store) -> Scores:
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
    of_teacher = (
        "kl",
        "kl_dense",
        "agreement",
        "top_k_agreement",
        "acceptance_low",
        "acceptance_high",
    )
    return Scores(
        positions=m.n,
        soft_positions=int(m.soft.sum()),
        **{name: found[name] for name in ("nll", "perplexity", "accuracy", "ece")},
        macro_f1=float(macro_f1(hits, *counts)),
        **{name: found.get(name) for name in (*of_teacher, "teacher_accuracy", "teacher_ece")},  # type: ignore[arg-type]
        teacher_nll=None if store.view is not None else figures_of(store.manifest).teacher_nll,
        dropped=None if store.dropped is None else store.dropped.to_dict(),
    )


def open_teacher_states(config: EvalConfig, store: Store) -> FullTeacher | None:
    """All of the teacher's distribution, if it is asked for.

    Raises:
        StoreError, PairingError, TokenizerError: as `FullTeacher.open`.
    """
    return None if config.teacher_states is None else FullTeacher.open(config.teacher_states, store)


def open_run(run: Path, config: EvalConfig) -> tuple[Student, Store]:
    """A finished run's student, and the store to evaluate it on.

    Raises:
        RunError: not a run, not finished, or it has no such weights; none of the store's rows has a label.
        PairingError: the store is of another domain or vocabulary, the run numbered its ids or fed its images
            otherwise, or the store's inputs are elsewhere.
        TokenizerError: the store was tokenised differently from what the student was trained on.
    """
    finished = open_finished(run, config.weights)
    opened = finished.open_store(
        config.store, vocab=config.vocab, inputs=config.inputs, images=config.images
    )
    check_labelled(opened, where=str(opened.path))
    return load_student(finished.folder, Task.of(opened)), opened
