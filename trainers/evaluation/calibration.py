"""Whether confidence can be believed: outcomes by bins of confidence, and the expected calibration error.

Bins are of equal width, `(low, high]` (Guo et al. 2017). Shapes: N predictions, B bins.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
BINS = 15


class Bins(NamedTuple):
    """Sums over the predictions of each bin; a last axis of B, any axes before it."""

    n: Float64
    """`[…, B]`."""
    confidence: Float64
    """`[…, B]`: sum of confidences."""
    right: Float64
    """`[…, B]`: how many were right."""

    @property
    def ece(self) -> Float64:
        """`[…]`: mean over predictions of |mean confidence - share right| of their bin; NaN without predictions."""
        with np.errstate(invalid="ignore"):
            error: Float64 = np.abs(self.confidence - self.right).sum(-1) / self.n.sum(-1)
        return error


def bin_of(confidence: npt.NDArray[np.floating], bins: int = BINS) -> npt.NDArray[np.int64]:
    """`[N]`: the bin of each confidence in [0, 1]; 0 is in the first."""
    place = np.ceil(confidence.astype(np.float64) * bins).astype(np.int64) - 1
    return np.clip(place, 0, bins - 1)


def reliability(
    confidence: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_], bins: int = BINS
) -> Bins:
    """Of `[N]` confidences and outcomes."""
    which = bin_of(confidence, bins)
    return Bins(
        *(
            np.bincount(which, weights=w, minlength=bins).astype(np.float64)
            for w in (None, confidence.astype(np.float64), correct.astype(np.float64))
        )
    )
