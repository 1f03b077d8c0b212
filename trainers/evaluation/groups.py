"""Scores of parts of the positions: by class, by length of context, by document, by row.

Shapes: N positions.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

from trainers.evaluation.blind_spots import count_cells
from trainers.evaluation.evaluations import Group
from trainers.evaluation.measure import Measured

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]
LISTED = 50
"""Documents that are listed, the worst."""


def group(m: Measured, where: Bool, name: str) -> Group:
    """Scores over the positions `where [N]`, of which there must be one."""
    labelled, known, judged = where & m.labelled, where & m.known, where & m.judged

    def mean(values: npt.NDArray[np.generic], of: Bool) -> float | None:
        return float(values[of].astype(np.float64).mean()) if of.any() else None

    return Group(
        name=name,
        positions=int(where.sum()),
        nll=mean(m.nll, labelled),
        accuracy=mean(m.correct, labelled),
        kl=mean(m.divergence, known),
        agreement=mean(m.agree, known),
        acceptance_low=mean(m.accept_low, known),
        acceptance_high=mean(m.accept_high, known),
        teacher_accuracy=mean(m.teacher_correct, judged),
        cells=count_cells(m, judged) if judged.any() else None,
    )


def by_class(m: Measured, vocab_size: int, name: Callable[[int], str]) -> list[Group]:
    """By label, with its F1, in order of id; classes that did not come are left out."""
    found = []
    for c in range(vocab_size):
        came, said = m.label == c, m.labelled & (m.top == c)
        if not came.any():
            continue
        f1 = 2 * float((came & said).sum()) / float(came.sum() + said.sum())
        found.append(msgspec.structs.replace(group(m, came, name(c)), f1=f1))
    return found


def by_context(m: Measured) -> list[Group]:
    """By how many tokens the model saw, in doubling bins: 1, 2-3, 4-7 and so on."""
    power = np.floor(np.log2(m.context)).astype(np.int64)
    found = []
    for p in np.unique(power):
        low, high = 2**p, 2 ** (p + 1) - 1
        found.append(group(m, power == p, f"{low}" if low == high else f"{low}-{high}"))
    return found


def by_document(m: Measured, name: Callable[[int], str]) -> tuple[list[Group], int]:
    """The `LISTED` documents with the highest nll, highest first; and how many there are."""
    return _worst(m, m.document, m.nll, name), len(np.unique(m.document))


def by_row(m: Measured, listed: int) -> list[Group]:
    """The rows that are furthest from the teacher by KL, furthest first; by nll where it is not known."""
    return _worst(m, m.row, m.divergence if m.known.any() else m.nll, "row {}".format, listed)


def _worst(
    m: Measured,
    key: Int64,
    score: npt.NDArray[np.float64],
    name: Callable[[int], str],
    listed: int = LISTED,
) -> list[Group]:
    keys, place = np.unique(key, return_inverse=True)
    mean = np.bincount(place, weights=score) / np.bincount(place)
    worst = np.argsort(-mean, kind="stable")[:listed]
    return [group(m, place == w, name(int(keys[w]))) for w in worst]
