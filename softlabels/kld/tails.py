"""What the tails hide: an estimate of each position's KL over all ids, from the kept ones and from wide rows.

The true KL is that of the K + 1 bins, and P times the KL of the two distributions within the tail. Those differ there
as they do among the kept ids: by log-ratios log(p/q) that scatter about a mean, and to the second order the KL within
is half their variance. That of the kept ids is the tail's but for its sampling error and a factor, which wide rows
show. So the estimate is

    log(KL within)  =  b0 + b1 log(variance, likelier half) + b2 log(variance, other half) + b3 log(shift) + b4 log P

by least squares over the positions of wide rows, scaled so that the sum over these is right. The shift is by how much
the tail's own log-ratio is not what the kept ids let expect, squared, in variances. Without wide rows KL within is
taken for half the variance of the less likely half.

Shapes: n positions of a chunk, N of all; K kept ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softlabels.kld.bins import divergence, expected_excess
from softlabels.kld.positions import Float64

LEAST = 1e-12
"""A variance of log-ratios that stands for none."""
SMALL_SHIFT = 0.02
"""In variances: less says nothing."""
FEWEST = 64
"""Positions of wide rows from which five coefficients are told."""
RIDGE = 1.0


def features(log_p: Tensor, log_q: Tensor) -> Tensor:
    """What the estimate goes by, `[n, 3]`: two log-variances and the log shift, from bins `[n, K+1]`."""
    kept_p = log_p[:, :-1]
    kept = kept_p > -torch.inf
    ratio = (kept_p - log_q[:, :-1]).masked_fill(~kept, 0.0)
    rank = (-kept_p).argsort(1).argsort(1)
    half = (kept.sum(1, keepdim=True) + 1) // 2
    _, likely = _moments(ratio, kept & (rank < half))
    mean, other = _moments(ratio, kept & (rank >= half))
    # To the second order the tail's log-ratio is the mean of its ids', less half their variance.
    expected = mean - other / 2
    shift = (expected - (log_p[:, -1] - log_q[:, -1])) ** 2 / (other + LEAST)
    columns = torch.stack(
        [(likely + LEAST).log(), (other + LEAST).log(), (shift + SMALL_SHIFT).log()], 1
    )
    return columns.nan_to_num(0.0, 0.0, 0.0)


def _moments(values: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance `[n]` of some of `[n, K]`; 0 of none."""
    count = where.sum(1).clamp_min(1)
    mean = (values * where).sum(1) / count
    off = (values - mean[:, None]).masked_fill(~where, 0.0)
    return mean, (off * off).sum(1) / count


def within(log_p: Tensor, log_q: Tensor, rounding: Tensor, k: int) -> Tensor:
    """KL within what lies beyond the k likeliest ids, nats `[n]`, from the bins `[n, W+1]` of wide rows.

    What is beyond these, too, is taken to be as far as their ids beyond k are, of which there are many.
    """
    kept_p = log_p[:, :-1]
    beyond = ((-kept_p).argsort(1).argsort(1) >= k) & (kept_p > -torch.inf)
    outside = torch.cat([beyond, torch.ones_like(beyond[:, :1])], 1)
    a, b = (x.masked_fill(~outside, -torch.inf) for x in (log_p, log_q))
    a, b = a - a.logsumexp(1, keepdim=True), b - b.logsumexp(1, keepdim=True)
    ratio = (kept_p - log_q[:, :-1]).masked_fill(~beyond, 0.0)
    _, variance = _moments(ratio, beyond)
    known = divergence(a, b) - expected_excess(a, rounding)
    return known + a[:, -1].exp() * variance / 2


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The true KL of each position, estimated."""

    kl: Float64
    """`[N]`, nats; at a position that differs as little as the stored numbers are rounded it may be below 0."""
    fitted: bool
    """Whether wide rows gave the coefficients."""
    error: float | None
    """Median relative error, as seen on wide rows whose own half gave no coefficient; of what the stored numbers'
    rounding does to `bins` it knows nothing. None: not known."""


def estimate(bins: Float64, tail: Float64, seen: Float64, measured: Float64) -> Estimate:
    """Estimate the true KL.

    Args:
        bins: `[N]`, KL over the bins.
        tail: `[N]`, the reference's mass P.
        seen: `[N, 3]`, of `features`.
        measured: `[N]`, of `within`; NaN: not in a wide row.
    """
    columns = np.column_stack([seen, np.log(np.maximum(tail, LEAST))])
    known = np.isfinite(measured) & (tail > 0) & np.isfinite(bins)
    if known.sum() < FEWEST:
        guess = np.exp(seen[:, 1]) / 2
        return Estimate(kl=_true(bins, tail, guess, measured), fitted=False, error=None)
    guess = _predict(columns, columns[known], measured[known], tail[known])
    return Estimate(
        kl=_true(bins, tail, guess, measured),
        fitted=True,
        error=_error(bins[known], tail[known], columns[known], measured[known]),
    )


def _true(bins: Float64, tail: Float64, guess: Float64, measured: Float64) -> Float64:
    return np.asarray(bins + tail * np.where(np.isnan(measured), guess, measured))


def _predict(columns: Float64, of: Float64, measured: Float64, tail: Float64) -> Float64:
    """KL within for `columns [N, C]`, as those `of [M, C]` and what was `measured [M]` of them say."""
    middle, spread = of.mean(0), of.std(0) + 1e-6
    x, y = (of - middle) / spread, np.log(np.maximum(measured, LEAST))
    b = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (y - y.mean()))

    def plain(z: Float64) -> Float64:
        return np.asarray(np.exp(y.mean() + ((z - middle) / spread) @ b))

    total = float((tail * plain(of)).sum())
    scale = max(float((tail * measured).sum()), 0.0) / total if total > 0 else 1.0
    return scale * plain(columns)


def _error(bins: Float64, tail: Float64, columns: Float64, measured: Float64) -> float | None:
    """Median relative error on positions of which the other half of the wide ones knows nothing."""
    true = bins + tail * measured
    first = np.arange(len(true)) < len(true) // 2
    found = np.empty(len(true))
    for test in (first, ~first):
        guess = _predict(columns[test], columns[~test], measured[~test], tail[~test])
        found[test] = bins[test] + tail[test] * guess
    some = true > 0
    return float(np.median(np.abs(found - true)[some] / true[some])) if some.any() else None
