"""Fewer ids, or fewer temperatures, of targets whose tail is known: nothing is lost but detail.

Ids that are dropped go to the tail with all their mass. With d_T the dropped share of the kept mass at T,
which needs the gaps alone,

    tail' = tail + kept d_T,    kept' = kept (1 - d_T)
    lambda'_T = log(tail' / kept') = log(e^lambda_T + d_T) - log(1 - d_T)

in float64, at every T of the grid. The probabilities of the ids that stay do not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from softlabels.core.targets import SoftTargets
from softlabels.format.shard import Shard


def fewer_ids(shard: Shard, k: int) -> Shard:
    """Only the k likeliest ids of each position; of equal ones those that come first."""
    t = shard.targets
    if t.k <= k:
        return shard
    order = np.argsort(t.gaps, axis=1, kind="stable")
    stay, go = order[:, :k], order[:, k:]
    gaps = np.take_along_axis(t.gaps, stay, axis=1)
    ids = np.take_along_axis(t.ids, stay, axis=1)
    targets = replace(
        t,
        ids=np.where(np.isfinite(gaps), ids, ids[:, :1]).astype(np.int32),
        gaps=gaps,
        log_odds=_log_odds(t, gaps, np.take_along_axis(t.gaps, go, axis=1)),
    )
    logp = None if shard.logp is None else np.take_along_axis(shard.logp, stay, axis=1)
    return replace(shard, targets=targets, logp=logp)


def _log_odds(
    t: SoftTargets, stay: npt.NDArray[np.float32], go: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    odds = t.log_odds.astype(np.float64)
    soft = t.soft
    for i, temperature in enumerate(t.temperatures):
        kept = np.exp(-stay[soft].astype(np.float64) / temperature).sum(axis=1)
        dropped = np.exp(-go[soft].astype(np.float64) / temperature).sum(axis=1)
        with np.errstate(divide="ignore"):
            share = np.log(dropped) - np.log(kept + dropped)  # -inf where nothing is dropped
        odds[soft, i] = np.logaddexp(odds[soft, i], share) + np.log1p(dropped / kept)
    return odds.astype(np.float32)


def fewer_temperatures(shard: Shard, temperatures: Sequence[float]) -> Shard:
    """Only these of the grid."""
    t = shard.targets
    columns = [t.grid_index(x) for x in temperatures]
    return replace(
        shard,
        targets=replace(t, log_odds=t.log_odds[:, columns], temperatures=tuple(temperatures)),
    )


def without_targets(shard: Shard) -> Shard:
    """The rows alone: every position is hard-label only, and nothing is known of the teacher."""
    nothing = np.ones(shard.targets.n, np.bool_)
    targets = replace(shard.targets.hard_label_only(nothing), summary=None)
    return replace(shard, targets=targets, logp=None)


def without_labels(shard: Shard) -> Shard:
    """The same, where a log-probability would say which of the kept ids the label is."""
    t = shard.targets
    summary = None if t.summary is None else t.summary.without_labels()
    return replace(shard, targets=replace(t, summary=summary))
