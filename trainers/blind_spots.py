"""What the student does where teacher and truth disagree.

Where the teacher is wrong it can be right all the same, or wrong: with the teacher's own answer (an inherited error),
or with another. Where the teacher is right, and the student is not, something was lost.

Right means that the most probable id came. Shapes: N positions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainers.calibration import bin_of
from trainers.evaluations import Cells
from trainers.measure import Measured

__all__ = ["CONFIDENCE_BINS", "confidence_bins", "count_cells", "inherited", "lost"]

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


def inherited(m: Measured, listed: int) -> Int64:
    """Up to `listed` positions where both are wrong with one answer; where the student is surest first."""
    return _surest(m, m.judged & ~m.teacher_correct & ~m.correct & m.agree, listed)


def lost(m: Measured, listed: int) -> Int64:
    """Up to `listed` positions where the teacher is right and the student is not; where it is surest first."""
    return _surest(m, m.judged & m.teacher_correct & ~m.correct, listed)


def _surest(m: Measured, where: Bool, listed: int) -> Int64:
    places = np.flatnonzero(where)
    order: Int64 = places[np.argsort(-m.confidence[places], kind="stable")[:listed]]
    return order
