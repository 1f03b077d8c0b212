"""What a reference says at its positions, as far as its ids, its tails and its summaries tell.

Shapes: n positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from softlabels.codecs import make_codec
from softlabels.codecs.summary import entropy_bound
from softlabels.core.rows import InputRow, Row
from softlabels.core.summary import UNKNOWN
from softlabels.core.targets import SoftTargets
from softlabels.format.identity import EncodingRecord
from softlabels.kld.positions import Float64, Int64

COMPUTED = 2.0**-18
"""Nats: what single precision makes of logits up to some 60, on either side, is within it."""
ROUNDED_AS_READ = 3 * 2.0**-24
"""Of a log-probability's size: a gap is rounded to single precision as it is made, stored and read."""
LEAST_MASS = 1e-300


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


def rounding(targets: SoftTargets, encoding: EncodingRecord) -> Float64:
    """`[n, K]`: within what the gaps of kept ids to the likeliest were rounded, nats."""
    held = make_codec(encoding.values).rounding(targets.gaps.astype(np.float64))
    return slack(targets, encoding)[:, :-1] if held is None else held.gaps


def slack(targets: SoftTargets, encoding: EncodingRecord) -> Float64:
    """`[n, K+1]`: within what the stored log-probabilities of kept ids and tail are the true ones, nats.

    A codec's bound is of the true value v; of a stored one, |v| <= (|v'| + absolute) / (1 - relative). The tail's
    log-odds are held within the same bound, and log P changes by no more than they do. Where errors are relative, a
    reader's normalising shifts all kept ids by one more, at most log sum p~ exp(error), and by the tail's; so it does
    where the codec says how far off each gap is. Then the bound counts for what was rounded before, by another codec.
    """
    log_p = targets.log_bins(1.0)
    log_p[:, -1] = np.abs(targets.log_odds[:, targets.grid_index(1.0)])
    known = np.isfinite(log_p)
    relative, absolute = encoding.relative_error, encoding.absolute_error
    size = np.abs(np.where(known, log_p, 0.0))
    codec = make_codec(encoding.values)
    held = codec.rounding(targets.gaps.astype(np.float64))
    if held is not None:
        absolute = max(absolute - codec.absolute_error(sample=False), 0.0)
    error = relative * (size + absolute) / (1 - relative) + absolute
    if held is not None:
        error[:, :-1] += held.gaps
        error[:, -1] += held.odds
    if relative > 0 or held is not None:
        p = np.exp(targets.log_bins(1.0)[:, :-1])
        inside = np.maximum(p.sum(1), LEAST_MASS)
        shift = np.log(np.maximum((p * np.exp(error[:, :-1])).sum(1) / inside, 1.0)) + error[:, -1]
        error[:, :-1] += shift[:, None]
    return np.where(known, error + COMPUTED + ROUNDED_AS_READ * size, 0.0)


def tail_entropy(log_p: Float64, slack: Float64, targets: SoftTargets) -> Float64:
    """`[n]`: least entropy, nats, of the distribution within the tail, whatever was rounded.

    Args:
        log_p, slack: `[n, K+1]`, kept ids and tail.
        targets: of the same positions.
    """
    known = log_p > -np.inf
    lowest, highest = log_p - slack, np.minimum(log_p + slack, 0.0)
    p_most = np.exp(highest[:, -1])
    least = np.zeros(len(log_p))
    with np.errstate(divide="ignore", invalid="ignore"):
        if targets.keeps.largest:  # no id of the tail is likelier than a kept one
            smallest = np.where(known[:, :-1], highest[:, :-1], np.inf).min(1)
            all_known = known[:, :-1].sum(1) == targets.kept.sum(1)  # else some are in the tail
            least = np.where(all_known, np.fmax(least, lowest[:, -1] - smallest), least)
        if targets.summary is not None:
            whole = targets.summary.entropy.astype(np.float64)
            # What kept ids and the tail's mass take of it, p log p, which has its only minimum at 1/e.
            at = np.clip(-1.0, lowest, highest)
            taken = np.where(known, np.exp(at) * at, 0.0).sum(1)
            left = whole - entropy_bound(whole) + taken
            least = np.fmax(least, np.maximum(left, 0.0) / p_most)
    return np.where(known[:, -1], least, 0.0)


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
