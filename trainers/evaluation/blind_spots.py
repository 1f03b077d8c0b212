"""What the student does where teacher and truth disagree.

Where the teacher is wrong it can be right all the same, or wrong: with the teacher's own answer (an inherited error),
or with another. Where the teacher is right, and the student is not, something was lost.

Right means that the most probable id came. Shapes: N positions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainers.evaluation.calibration import bin_of
from trainers.evaluation.evaluations import Cells
from trainers.evaluation.measure import Measured

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]
CONFIDENCE_BINS = 5


def count_cells(m: Measured, where: Bool) -> Cells:
    """Over the positions `where [N]`, at all of which teacher and truth must be known."""
    assert not (where & ~m.judged).any()
    teacher, student, same = m.teacher_correct[where], m.correct[where], m.agree[where]
    return Cells(
        both_right=int((teacher & student).sum()),
        student_only=int((~teacher & student).sum()),
        teacher_only=int((teacher & ~student).sum()),
        copied=int((~teacher & ~student & same).sum()),
        both_wrong=int((~teacher & ~student & ~same).sum()),
    )


def confidence_bins(m: Measured) -> list[tuple[str, Bool]]:
    """Bins of equal width of the teacher's confidence, `(low, high]`: a name, and `[N]` which positions."""
    which = bin_of(m.teacher_confidence, CONFIDENCE_BINS)
    width = 100 // CONFIDENCE_BINS
    return [
        (f"{b * width}-{(b + 1) * width} %", m.judged & (which == b))
        for b in range(CONFIDENCE_BINS)
    ]


def inherited(m: Measured, listed: int) -> list[tuple[int, int]]:
    """Where both are wrong with one answer; where the student is surest first.

    Returns:
        Up to `listed` positions, one for each label and answers, and how many positions have these.
    """
    return _surest(m, m.judged & ~m.teacher_correct & ~m.correct & m.agree, listed)


def lost(m: Measured, listed: int) -> list[tuple[int, int]]:
    """Where the teacher is right and the student is not; otherwise as `inherited`."""
    return _surest(m, m.judged & m.teacher_correct & ~m.correct, listed)


def _surest(m: Measured, where: Bool, listed: int) -> list[tuple[int, int]]:
    places = np.flatnonzero(where)
    places = places[np.argsort(-m.confidence[places], kind="stable")]
    words = np.stack([m.label[places], m.teacher_top[places], m.top[places]], axis=1)
    if not len(places):
        return []
    _, first, times = np.unique(words, axis=0, return_index=True, return_counts=True)
    order = np.argsort(first)[:listed]
    return [(int(places[first[i]]), int(times[i])) for i in order]
