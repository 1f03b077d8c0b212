"""Scores from sums over rows, so that one function gives the score and each replicate of its bootstrap.

Everything here is a ratio of sums over positions, or a function of such ratios. The sums are first taken within each
row, `[R, …]`, as `softlabels.core.resampling` needs them. Shapes: R rows, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from trainers.evaluation.calibration import BINS, Bins, bin_of
from trainers.evaluation.evaluations import RATIOS
from trainers.evaluation.measure import Measured

Float64 = npt.NDArray[np.float64]
FEW_CLASSES = 64
"""Vocabularies up to this are taken for a classifier's, and looked at class by class."""
TOP_K = 5


def row_sums(m: Measured, vocab_size: int) -> dict[str, Float64]:
    """Sums over each row's positions: `[R]` of numbers, `[R, bins]` and `[R, C]` of counts."""
    rows, place = np.unique(m.row, return_inverse=True)
    r = len(rows)

    def total(
        values: npt.NDArray[np.generic] | None = None, where: Float64 | None = None
    ) -> Float64:
        weights = np.ones(m.n) if values is None else values.astype(np.float64)
        if where is not None:
            weights = np.where(where > 0, weights, 0.0)
        return np.bincount(place, weights=weights, minlength=r).astype(np.float64)

    def spread(which: npt.NDArray[np.int64], width: int, weights: Float64) -> Float64:
        flat = np.bincount(place * width + which, weights=weights, minlength=r * width)
        return flat.reshape(r, width).astype(np.float64)

    def binned(
        prefix: str, confidence: Float64, right: npt.NDArray[np.bool_], where: Float64
    ) -> dict[str, Float64]:
        which = bin_of(confidence)
        return {
            f"{prefix}_count": spread(which, BINS, where),
            f"{prefix}_confidence": spread(which, BINS, where * confidence),
            f"{prefix}_right": spread(which, BINS, where * right),
        }

    labelled, known, judged = (x.astype(np.float64) for x in (m.labelled, m.known, m.judged))
    sums = {
        "n": total(m.labelled),
        "nll": total(m.nll),
        "correct": total(m.correct),
        **binned("bins", m.confidence, m.correct, labelled),
    }
    for name, values, where in (("kl", m.kl, m.binned), ("kl_dense", m.kl_dense, m.whole)):
        if where.any():
            sums |= {name: total(values, where.astype(np.float64)), f"{name}_count": total(where)}
    if m.known.any():
        sums |= {
            "known": total(m.known),
            "agree": total(m.agree, known),
            "top_k": total(m.rank < TOP_K, known),
            "accept_low": total(m.accept_low, known),
            "accept_high": total(m.accept_high, known),
            "judged": total(m.judged),
            "teacher_correct": total(m.teacher_correct, judged),
            **binned("teacher_bins", m.teacher_confidence, m.teacher_correct, judged),
        }
    if vocab_size <= FEW_CLASSES:
        sums |= {
            "of_class": spread(np.maximum(m.label, 0), vocab_size, labelled),
            "said": spread(m.top, vocab_size, labelled),
            "hits": spread(m.top, vocab_size, m.correct.astype(np.float64)),
        }
    return sums


def macro_f1(hits: Float64, of_class: Float64, said: Float64) -> Float64:
    """`[…]`: mean over the classes that came or were said of 2 hits / (came + said), from `[…, C]` counts."""
    both = of_class + said
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.where(both > 0, 2 * hits / both, 0.0)
        mean: Float64 = each.sum(-1) / (both > 0).sum(-1)
    return mean


def scores(sums: Mapping[str, Float64]) -> dict[str, Float64]:
    """Scores `[…]` from sums with any axes before; NaN where nothing was drawn that a score needs."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        found = {
            name: sums[above] / sums[below]
            for name, (above, below) in RATIOS.items()
            if above in sums
        }
        found |= {"perplexity": np.exp(found["nll"]), "ece": _bins(sums, "bins").ece}
        if "known" in sums:
            found |= {
                "teacher_accuracy": sums["teacher_correct"] / sums["judged"],
                "teacher_ece": _bins(sums, "teacher_bins").ece,
            }
        if "hits" in sums:
            found["macro_f1"] = macro_f1(sums["hits"], sums["of_class"], sums["said"])
    return found


def _bins(sums: Mapping[str, Float64], prefix: str) -> Bins:
    return Bins(*(sums[f"{prefix}_{part}"] for part in ("count", "confidence", "right")))
