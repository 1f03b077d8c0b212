"""What a reference says at its positions, as far as its ids, its tails and its summaries tell.

Shapes: n positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from softlabels.core.rows import InputRow, Row
from softlabels.core.summary import UNKNOWN
from softlabels.core.targets import SoftTargets
from softlabels.format.identity import EncodingRecord
from softlabels.kld.positions import Float64, Int64

ROUNDED = 2.0**-13
"""Of a summary's entropy H: it is held within sqrt(H)/64 + H/2048 + this (docs/format.md, section 15)."""


def tops(targets: SoftTargets) -> Int64:
    """`[n]`: the reference's likeliest ids."""
    kept: Int64 = targets.ids[np.arange(targets.n), targets.gaps.argmin(1)].astype(np.int64)
    if targets.summary is None:
        return kept
    top = targets.summary.top.astype(np.int64)
    return np.asarray(np.where(top == UNKNOWN, kept, top))


def label_logp(targets: SoftTargets, labels: Int64) -> Float64:
    """`[n]`: the reference's log-probability of the label; NaN: not known."""
    at = targets.kept & (targets.ids == labels[:, None])
    kept = np.where(at.any(1), targets.logp[np.arange(targets.n), at.argmax(1)], np.nan)
    if targets.summary is None:
        return kept.astype(np.float64)
    exact = targets.summary.label_logp.astype(np.float64)
    return np.where(np.isnan(exact), kept, exact)


def tail_entropy(targets: SoftTargets, encoding: EncodingRecord) -> Float64:
    """`[n]`: least entropy, nats, of the distribution within the tail, whatever a store has rounded."""
    log_p = targets.log_bins(1.0)
    p, known = np.exp(log_p), np.isfinite(log_p)
    terms = np.where(known, p * np.where(known, log_p, 0.0), 0.0)
    tail = p[:, -1]
    least = np.zeros(targets.n)
    with np.errstate(divide="ignore", invalid="ignore"):
        if targets.keeps.largest:  # no id of the tail is likelier than a kept one
            smallest = np.where(known[:, :-1], log_p[:, :-1], np.inf).min(1)
            least = np.fmax(least, log_p[:, -1] - smallest)
        if targets.summary is not None:
            whole = targets.summary.entropy.astype(np.float64)
            off = np.sqrt(whole) / 64 + whole / 2048 + ROUNDED
            bound = (
                encoding.relative_error * np.abs(np.where(known, log_p, 0))
                + encoding.absolute_error
            )
            off = off + np.where(known, p * bound * np.abs(1 + np.where(known, log_p, 0)), 0).sum(1)
            least = np.fmax(least, (whole - off + terms.sum(1)) / tail)
    return np.where(tail > 0, least, 0.0)


def places(rows: Sequence[InputRow]) -> tuple[Int64, Int64]:
    """Document and context of the N positions of some rows."""
    document, context = [], []
    for row in rows:
        if isinstance(row, Row):
            document.append(np.repeat(row.documents, row.segment_lengths)[row.positions])
            context.append(row.position_ids[row.positions].astype(np.int64) + 1)
        else:
            document.append(np.full(row.n, row.documents[0]))
            context.append(np.full(row.n, row.size))
    return np.concatenate(document).astype(np.int64), np.concatenate(context).astype(np.int64)
