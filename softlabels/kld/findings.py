"""The figures of a comparison: sums over rows, so that one function gives a figure and each replicate of its bootstrap.

The KL of a position is the estimated one over all ids (`tails.py`): means, quantiles, groups and pairs are of it.
Beside it stand the KL over the bins, and bounds that hold whatever the tails and the rounding are.

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
from softlabels.kld.tails import Estimate, estimate

KL_SHARES = {"kl_median": 0.5, "kl_90": 0.9, "kl_99": 0.99, "kl_99_9": 0.999}
DP_SHARES = {
    **{"dp_0_1": 0.001, "dp_1": 0.01, "dp_5": 0.05, "dp_25": 0.25, "dp_median": 0.5},
    **{"dp_75": 0.75, "dp_95": 0.95, "dp_99": 0.99, "dp_99_9": 0.999},
}
CURVE = (*np.linspace(0, 0.95, 39), *(1 - np.geomspace(0.045, 0.0005, 20)), 1.0)
ENDLESS = 1e12
"""Nats: no KL of numbers in double precision comes near."""
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
    known_kl = true_kl(found)
    true = known_kl.kl
    held = np.clip(true, 0.0, 2 * ENDLESS)  # quantiles between a number and infinity are no numbers
    dp = _dp(said, answered)
    sums = _row_sums(said, answered, true, dp)
    values = {name: float(v) for name, v in _ratios({n: s.sum(0) for n, s in sums.items()}).items()}
    finite = {n: s for n, s in sums.items() if np.isfinite(s).all()}
    intervals = bootstrap(finite, _ratios, replicates=replicates, seed=seed)
    figures = {name: _figure(v, intervals.get(name)) for name, v in values.items()}
    figures |= {name: _at_least_0(figures[name]) for name in ("kl", "kl_bins")}
    known = np.isfinite(dp)
    for shares, of, where in (
        (KL_SHARES, held, np.ones(said.n, np.bool_)),
        (DP_SHARES, dp, known),
    ):
        if where.any():
            figures |= _quantiles(of[where], said.row[where], shares, replicates, seed)
    figures["kl_max"] = _figure(float(held.max()), None)
    judged = said.label >= 0
    documents, count = _by_document(said, answered, true)
    return Candidate(
        model=model,
        figures=figures,
        kl_least=_finite(float(answered.least.mean())),
        kl_most=_finite(float(answered.most.mean())),
        kl_from="wide rows" if known_kl.fitted else "kept ids",
        kl_error=known_kl.error,
        wide_positions=int(np.isfinite(answered.within).sum()),
        infinite=int(np.isinf(answered.bins).sum()),
        impossible=int(answered.impossible.sum()),
        flips=mcnemar(
            int((said.right & ~answered.right & judged).sum()),
            int((answered.right & ~said.right & judged).sum()),
        ),
        beyond=found.beyond,
        by_class=[] if classes is None else _by_class(said, answered, true, np.array(classes)),
        by_context=_by_context(said, answered, true),
        by_document=documents,
        documents=count,
        curve=[
            (float(s), float(v))
            for s, v in zip(CURVE, np.quantile(held, CURVE), strict=True)
            if v < ENDLESS
        ],
    )


def true_kl(found: Compared) -> Estimate:
    """The true KL of each position `[N]`, estimated."""
    answered = found.answered
    return estimate(answered.bins, found.said.tail, answered.seen, answered.within)


def pair_of(
    first: tuple[str, Compared], second: tuple[str, Compared], *, replicates: int, seed: int
) -> Pair:
    """Whether the first is nearer to the reference than the second, on the positions where both KLs are finite."""
    (a_name, a), (b_name, b) = first, second
    said, of_a, of_b = a.said, true_kl(a).kl, true_kl(b).kl
    finite = np.isfinite(of_a) & np.isfinite(of_b)
    difference = of_a[finite] - of_b[finite]
    rows, place = np.unique(said.row[finite], return_inverse=True)
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
        kl_difference=_figure(float(difference.mean()) if len(rows) else np.nan, interval),
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
        "kl": total(true),
        "kl_bins": total(answered.bins),
        "same_top": total(answered.same_top),
        "accept_low": total(answered.accept_low),
        "accept_high": total(answered.accept_high),
        "known": total(known),
        "change": total(change),
        "dp": total(np.where(known, dp, 0.0)),
        "dp2": total(np.where(known, dp * dp, 0.0)),
    }


def _ratios(sums: Mapping[str, Float64]) -> dict[str, Float64]:
    """Figures `[…]` of the sums that are given, with any axes before; NaN where nothing was drawn that one needs."""
    n, known = sums["n"], sums["known"]
    names = ("kl", "kl_bins", "same_top", "accept_low", "accept_high")
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratio = {"perplexity_ratio": np.exp(sums["change"] / known)} if "change" in sums else {}
        return (
            {name: sums[name] / n for name in names if name in sums}
            | ratio
            | {
                "dp_mean": sums["dp"] / known,
                "dp_rms": np.sqrt(sums["dp2"] / known),
            }
        )


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


def _at_least_0(figure: Figure) -> Figure:
    """An estimate below 0 is of numbers that differ by less than they are rounded."""
    parts = (figure.value, figure.low, figure.high)
    value, low, high = (None if x is None else max(x, 0.0) for x in parts)
    return Figure(value=value, low=low, high=high)


def _finite(value: float) -> float | None:
    return value if abs(value) < ENDLESS else None


# -- groups ----------------------------------------------------------------------------------------


def _group(said: Said, answered: Answered, true: Float64, where: Bool, name: str) -> Group:
    change = (said.label_logp - answered.label_logp)[where]
    change = change[np.isfinite(change)]
    return Group(
        name=name,
        positions=int(where.sum()),
        kl=_finite(float(true[where].mean())),
        same_top=float(answered.same_top[where].mean()),
        perplexity_ratio=_finite(float(np.exp(change.mean()))) if len(change) else None,
    )


def _by_class(
    said: Said, answered: Answered, true: Float64, classes: npt.NDArray[np.str_]
) -> list[Group]:
    names, counts = np.unique(classes, return_counts=True)
    return [_group(said, answered, true, classes == n, str(n)) for n in names[np.argsort(-counts)]]


def _by_context(said: Said, answered: Answered, true: Float64) -> list[Group]:
    """By how many tokens were read, in doubling bins."""
    power = np.floor(np.log2(np.maximum(said.context, 1))).astype(np.int64)
    return [
        _group(said, answered, true, power == p, f"{2**p}-{2 ** (p + 1) - 1}" if p else "1")
        for p in np.unique(power)
    ]


def _by_document(said: Said, answered: Answered, true: Float64) -> tuple[list[Group], int]:
    """The `LISTED` of the largest KL, and how many there are."""
    keys, place = np.unique(said.document, return_inverse=True)
    mean = np.bincount(place, weights=true) / np.bincount(place)
    worst = np.argsort(-mean, kind="stable")[:LISTED]
    found = [_group(said, answered, true, place == w, f"document {keys[w]}") for w in worst]
    return found, len(keys)
