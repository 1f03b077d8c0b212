"""What a run's student answers on a store, as the metrics of Hugging Face `evaluate` take it.

    found = answers("run", "heldout")
    evaluate.load("f1").compute(**found.ids(), average="macro")

Imports nothing of that library: the same lists serve any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from softlabels.errors import ConfigError, RunError
from softlabels.store.reader import Store
from trainers.evaluation.config import EvalConfig
from trainers.evaluation.evaluate import open_run
from trainers.evaluation.measure import asked, measure
from trainers.loss.head import head_logits
from trainers.students import Student

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """N positions that have a label, in the store's order; C classes."""

    predictions: Int64
    """`[N]`: the class (of an LM: the token) that the student finds most probable."""
    references: Int64
    """`[N]`: what is true."""
    rows: Int64
    """`[N]`: row of the store."""
    classes: tuple[str, ...]
    """`[C]`: what the ids mean; empty of an LM."""
    probabilities: npt.NDArray[np.float32] | None
    """`[N, C]`: the student's, if they were asked for."""
    unlabelled: int
    """Positions that were left out, since they have no label."""

    def ids(self) -> dict[str, list[int]]:
        """For accuracy, f1, precision, recall, matthews_correlation, confusion_matrix and the like."""
        return {"predictions": self.predictions.tolist(), "references": self.references.tolist()}

    def tags(self) -> dict[str, list[list[str]]]:
        """For seqeval and poseval: the classes' names, a list for each row.

        Raises:
            ConfigError: an LM has no classes.
        """
        if not self.classes:
            raise ConfigError("tags: the store's ids are tokens, which have no classes; use ids")
        rows = [list(places) for _, places in groupby(range(len(self.rows)), self.rows.__getitem__)]
        return {
            name: [[self.classes[ids[n]] for n in row] for row in rows]
            for name, ids in self.ids().items()
        }

    def scores(self) -> dict[str, list[Any]]:
        """For roc_auc: of two classes the second's probability, of more `[N, C]` (load its configuration `multiclass`).

        Raises:
            ConfigError: the probabilities were not asked for.
        """
        p = self.probabilities
        if p is None:
            raise ConfigError("scores: ask for the probabilities with answers(..., scores=True)")
        chosen = p[:, 1] if len(self.classes) == 2 else p
        return {"prediction_scores": chosen.tolist(), "references": self.references.tolist()}


def answers(
    run: Path | str,
    store: Path | str,
    *,
    weights: str = "student",
    scores: bool = False,
    device: str = "cpu",
    batch_size: int = 8,
    vocab: str | None = None,
    inputs: str | None = None,
    images: Sequence[str] = (),
) -> Answers:
    """Ask a finished run's student about every row of a store; arguments and errors as of `softtrain eval`.

    Args:
        scores: keep each class's probability, too; takes a second pass.

    Raises:
        ConfigError: scores of an LM.
        RunError: no position has a label.
    """
    asked = EvalConfig(
        store=str(store), vocab=vocab, weights=weights, inputs=inputs, images=tuple(images)
    )
    student, opened = open_run(Path(run), asked)
    classes = tuple(opened.identity.classes or ())
    if scores and not classes:
        raise ConfigError(
            f"scores: {opened.path} is of the domain {opened.identity.domain}, whose {opened.vocab_size} "
            "probabilities at each position are too many to keep; softtrain eval has its loss and calibration"
        )
    found = measure(student, opened, device=device, batch_size=batch_size)
    at = found.labelled
    if not at.any():
        raise RunError(f"{opened.path}: none of its positions has a label to evaluate against")
    return Answers(
        predictions=found.top[at],
        references=found.label[at],
        rows=found.row[at],
        classes=classes,
        probabilities=_probabilities(student, opened, device, batch_size)[at] if scores else None,
        unlabelled=int((~at).sum()),
    )


def _probabilities(
    student: Student, store: Store, device: str, batch_size: int
) -> npt.NDArray[np.float32]:
    """`[N, C]` at T=1, over all positions."""
    return np.concatenate(
        [
            torch.softmax(head_logits(hidden, head), dim=1).detach().cpu().numpy()
            for _, _, hidden, head in asked(student, store, device=device, batch_size=batch_size)
        ]
    )
