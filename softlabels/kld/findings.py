"""The figures of a comparison: sums over rows, so that one function gives a figure and each replicate of its bootstrap.

The true KL is estimated from what is known of the tails. Where wide rows are stored, the part of each position's gap
that they show is measured; what they found over what the kept ids let expect (`bins.proxy`) is the scale for all other
positions, and for what is beyond the wide rows' own ids. Without wide rows the scale is 1.

Shapes: N positions, R rows, B replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from softlabels.core.resampling import bootstrap, row_weights
from softlabels.kld.compare import Compared
from softlabels.kld.positions import Answered, Bool, Float64, Int64, Said
from softlabels.kld.record import Candidate, CandidateFacts, Figure, Group, Pair
from softlabels.kld.significance import mcnemar, sign_flips

KL_SHARES = {"kl_median": 0.5, "kl_90": 0.9, "kl_99": 0.99, "kl_99_9": 0.999}
DP_SHARES = {
    **{"dp_0_1": 0.001, "dp_1": 0.01, "dp_5": 0.05, "dp_25": 0.25, "dp_median": 0.5},
    **{"dp_75": 0.75, "dp_95": 0.95, "dp_99": 0.99, "dp_99_9": 0.999},
}
CURVE = (*np.linspace(0, 0.95, 39), *(1 - np.geomspace(0.045, 0.0005, 20)), 1.0)
LISTED = 20
"""Documents."""
MOST_SORTED = 2**31
"""Positions times replicates: more get no interval of a quantile, which takes a pass over all of them for each."""


def candidate_of(
    found: Compared,
    model: CandidateFacts,
    *,
    classes: Sequence[str] | None,
    replicates: int,
    seed: int,
) -> Candidate:
    """All figures of one candidate.

    Args:
        found: of the pass.
        model: what it is.
        classes: `[N]`, the kind of token that came; None: not known.
        replicates, seed: of the bootstrap.
    """
    said, answered = found.said, found.answered
    scale, true = true_kl(answered)
    dp = _dp(said, answered)
    sums = _row_sums(said, answered, true, dp)
    values = {name: float(v) for name, v in _ratios({n: s.sum(0) for n, s in sums.items()}).items()}
    intervals = bootstrap(sums, _ratios, replicates=replicates, seed=seed)
    figures = {name: _figure(v, intervals.get(name)) for name, v in values.items()}
    known = np.isfinite(dp)
    for shares, of, where in (
        (KL_SHARES, answered.kl, np.ones(said.n, np.bool_)),
        (DP_SHARES, dp, known),
    ):
        if where.any():
            figures |= _quantiles(of[where], said.row[where], shares, replicates, seed)
    figures["kl_max"] = _figure(float(answered.kl.max()), None)
    most = answered.kl + answered.most
    judged = said.label >= 0
    documents, count = _by_document(said, answered)
    wide = ~np.isnan(answered.wide)
    return Candidate(
        model=model,
        figures=figures,
        kl_true_most=_finite(float(most.mean())),
        true_from="wide rows" if scale is not None else "kept ids",
        wide_positions=int(wide.sum()),
        wide_scale=scale,
        flips=mcnemar(
            int((said.right & ~answered.right & judged).sum()),
            int((answered.right & ~said.right & judged).sum()),
        ),
        beyond=found.beyond,
        by_class=[] if classes is None else _by_class(said, answered, np.array(classes)),
        by_context=_by_context(said, answered),
        by_document=documents,
        documents=count,
        curve=[
            (float(s), float(v))
            for s, v in zip(CURVE, np.quantile(answered.kl, CURVE), strict=True)
        ],
    )


def true_kl(answered: Answered) -> tuple[float | None, Float64]:
    """The scale that wide rows give, and the true KL of each position `[N]`, estimated."""
    wide = ~np.isnan(answered.wide)
    expected = answered.proxy[wide] - answered.wide_proxy[wide]
    scale = None
    if wide.any() and expected.sum() > 0:
        shown = np.maximum(answered.wide[wide] - answered.kl[wide], 0.0)
        scale = float(shown.sum() / expected.sum())
    factor = 1.0 if scale is None else scale
    true = answered.kl + factor * answered.proxy
    true[wide] = answered.wide[wide] + factor * answered.wide_proxy[wide]
    return scale, true


def pair_of(
    first: tuple[str, Compared], second: tuple[str, Compared], *, replicates: int, seed: int
) -> Pair:
    """Whether the first is nearer to the reference than the second, on the same positions."""
    (a_name, a), (b_name, b) = first, second
    said = a.said
    difference = a.answered.kl - b.answered.kl
    rows, place = np.unique(said.row, return_inverse=True)
    sums = {
        "n": np.bincount(place, minlength=len(rows)).astype(np.float64),
        "d": np.bincount(place, weights=difference, minlength=len(rows)).astype(np.float64),
    }

    def mean(s: Mapping[str, Float64]) -> dict[str, Float64]:
        return {"d": s["d"] / s["n"]}

    interval = bootstrap(sums, mean, replicates=replicates, seed=seed).get("d")
    right, other, judged = a.answered.right, b.answered.right, said.label >= 0
    return Pair(
        first=a_name,
        second=b_name,
        kl_difference=_figure(float(difference.mean()), interval),
        p=sign_flips(sums["d"], seed),
        right=mcnemar(int((right & ~other & judged).sum()), int((other & ~right & judged).sum())),
    )


def _dp(said: Said, answered: Answered) -> Float64:
    """`[N]`: the candidate's probability of the label less the reference's; NaN: not known."""
    return np.asarray(np.exp(answered.label_logp) - np.exp(said.label_logp))


def _row_sums(said: Said, answered: Answered, true: Float64, dp: Float64) -> dict[str, Float64]:
    rows, place = np.unique(said.row, return_inverse=True)

    def total(values: npt.NDArray[np.generic]) -> Float64:
        weights = values.astype(np.float64)
        return np.bincount(place, weights=weights, minlength=len(rows)).astype(np.float64)

    known = np.isfinite(dp)
    change = np.where(known, said.label_logp - answered.label_logp, 0.0)
    return {
        "n": total(np.ones(said.n)),
        "kl": total(answered.kl),
        "kl_true": total(true),
        "same_top": total(answered.same_top),
        "accept_low": total(answered.accept_low),
        "accept_high": total(answered.accept_high),
        "known": total(known),
        "change": total(change),
        "dp": total(np.where(known, dp, 0.0)),
        "dp2": total(np.where(known, dp * dp, 0.0)),
    }


def _ratios(sums: Mapping[str, Float64]) -> dict[str, Float64]:
    """Figures `[…]` from sums with any axes before; NaN where nothing was drawn that one needs."""
    n, known = sums["n"], sums["known"]
    names = ("kl", "kl_true", "same_top", "accept_low", "accept_high")
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return {name: sums[name] / n for name in names} | {
            "perplexity_ratio": np.exp(sums["change"] / known),
            "dp_mean": sums["dp"] / known,
            "dp_rms": np.sqrt(sums["dp2"] / known),
        }


def _quantiles(
    values: Float64, row: Int64, shares: Mapping[str, float], replicates: int, seed: int
) -> dict[str, Figure]:
    """Quantiles with their intervals: of each replicate the values are weighed as their rows are drawn."""
    found = dict(zip(shares, np.quantile(values, list(shares.values())), strict=True))
    rows, place = np.unique(row, return_inverse=True)
    if len(rows) < 2 or not replicates or replicates * len(values) > MOST_SORTED:
        return {name: _figure(float(v), None) for name, v in found.items()}
    order = np.argsort(values)
    ordered, of_row = values[order], place[order]
    drawn = []
    for block in row_weights(len(rows), replicates, seed):
        for weights in block:
            reached = np.cumsum(weights[of_row])
            at = np.searchsorted(reached, np.array(list(shares.values())) * reached[-1])
            drawn.append(ordered[np.minimum(at, len(ordered) - 1)])
    low, high = np.quantile(np.array(drawn), (0.025, 0.975), axis=0)
    return {
        name: _figure(float(v), (float(low[i]), float(high[i])))
        for i, (name, v) in enumerate(found.items())
    }


def _figure(value: float, interval: tuple[float, float] | None) -> Figure:
    low, high = (None, None) if interval is None else (_finite(interval[0]), _finite(interval[1]))
    return Figure(value=_finite(value), low=low, high=high)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


# -- groups ----------------------------------------------------------------------------------------


def _group(said: Said, answered: Answered, where: Bool, name: str) -> Group:
    change = (said.label_logp - answered.label_logp)[where]
    change = change[np.isfinite(change)]
    return Group(
        name=name,
        positions=int(where.sum()),
        kl=float(answered.kl[where].mean()),
        same_top=float(answered.same_top[where].mean()),
        perplexity_ratio=_finite(float(np.exp(change.mean()))) if len(change) else None,
    )


def _by_class(said: Said, answered: Answered, classes: npt.NDArray[np.str_]) -> list[Group]:
    names, counts = np.unique(classes, return_counts=True)
    return [_group(said, answered, classes == n, str(n)) for n in names[np.argsort(-counts)]]


def _by_context(said: Said, answered: Answered) -> list[Group]:
    """By how many tokens were read, in doubling bins."""
    power = np.floor(np.log2(np.maximum(said.context, 1))).astype(np.int64)
    return [
        _group(said, answered, power == p, f"{2**p}-{2 ** (p + 1) - 1}" if p else "1")
        for p in np.unique(power)
    ]


def _by_document(said: Said, answered: Answered) -> tuple[list[Group], int]:
    """The `LISTED` of the largest KL, and how many there are."""
    keys, place = np.unique(said.document, return_inverse=True)
    mean = np.bincount(place, weights=answered.kl) / np.bincount(place)
    worst = np.argsort(-mean, kind="stable")[:LISTED]
    found = [_group(said, answered, place == w, f"document {keys[w]}") for w in worst]
    return found, len(keys)
