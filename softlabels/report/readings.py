"""What a store knows of one position, each thing said as what it is.

A distribution's largest part is its ids with their probabilities, and the mass of all others. A sample is something
else: of an id that it was sure to keep it has the probability, and the others are there by chance, with a weight that
says what an id stands for and nothing of the id itself. What is known for certain whatever was kept is in the summary;
an older store has none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from softlabels.core.kept import KeptSet
from softlabels.core.rows import UNLABELLED
from softlabels.core.summary import UNKNOWN
from softlabels.core.targets import SoftTargets
from softlabels.store.token_text import TokenText

EQUAL = 1e-3
"""Weights of a sample that differ by less than this share are one weight, rounded."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A kept id."""

    id: int
    words: str
    p: float
    """Its probability; of an id that was drawn, its weight."""


@dataclass(frozen=True, kw_only=True)
class Top:
    """The teacher's likeliest id."""

    id: int
    words: str
    p: float | None
    """None: only `at_most` is known."""
    at_most: float


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Of one position."""

    label: int
    label_words: str | None
    """None: there is no label."""
    label_p: float | None
    """At T=1 if the store holds summaries; None: not known."""
    top: Top | None
    entropy: float | None
    """Nats, at T=1, of the whole distribution; None: not known."""
    soft: bool
    """Whether any id is kept."""
    kept: tuple[Choice, ...]
    """Ids with their probabilities, the likeliest first; of a sample those that were sure to be kept."""
    drawn: tuple[Choice, ...]
    """Of a sample: ids that are there by chance, those of the largest weight first."""
    tail: float | None
    """Mass of all ids that are not kept; None: a sample, which has no tail."""

    def expected(self, most: int) -> list[tuple[str, float | None]]:
        """What the teacher thought likeliest, as far as it is known: no ids that are there by chance."""
        found: list[tuple[str, float | None]] = [(c.words, c.p) for c in self.kept[:most]]
        if self.top is not None and self.top.id not in {c.id for c in self.kept[:most]}:
            found.insert(0, (self.top.words, self.top.p))
        return found[:most]

    @property
    def right(self) -> bool | None:
        """Whether the label is the teacher's likeliest id; None: one of them is not known."""
        if self.label_words is None or self.top is None:
            return None
        return self.top.id == self.label


def read(targets: SoftTargets, n: int, label: int, t: float, text: TokenText) -> Reading:
    """Position `n` of some targets; kept ids at temperature `t`."""
    one = targets[n : n + 1]
    p = one.probs(t)[0]
    slots = [int(s) for s in np.argsort(-p, kind="stable") if one.kept[0, s]]
    choices = [
        Choice(id=int(one.ids[0, s]), words=text.label(int(one.ids[0, s])), p=float(p[s]))
        for s in slots
    ]
    sampled = targets.keeps.sample
    sure = len(choices)
    if sampled:
        weights = np.array([[c.p for c in choices]])
        sure = int(sure_of(weights, np.array([len(choices)]), targets.keeps).sum())
    logp = entropy = math.nan
    top_id = UNKNOWN
    if one.summary is not None:
        logp, entropy = float(one.summary.label_logp[0]), float(one.summary.entropy[0])
        top_id = int(one.summary.top[0])
    elif choices and not sampled:
        top_id = choices[0].id
    certain = {c.id: c.p for c in choices[:sure]}
    label_p = certain.get(label) if math.isnan(logp) else math.exp(logp)
    top = None
    if top_id != UNKNOWN:
        bound = choices[sure].p if sampled and sure < len(choices) else 1.0
        known = label_p if top_id == label and t == 1.0 else certain.get(top_id)
        top = Top(id=top_id, words=text.label(top_id), p=known, at_most=bound)
    return Reading(
        label=label,
        label_words=None if label == UNLABELLED else text.label(label),
        label_p=None if label == UNLABELLED else label_p,
        top=top,
        entropy=None if math.isnan(entropy) else entropy,
        soft=bool(choices),
        kept=tuple(choices[:sure]),
        drawn=tuple(choices[sure:]),
        tail=None if sampled or not choices else float(one.tail(t)[0]),
    )


def sure_of(
    weights: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], keeps: KeptSet
) -> npt.NDArray[np.bool_]:
    """`[N, K]`: which ids of a sample were sure to be kept, each at its own probability.

    Ids that are drawn by threshold sampling share the smallest weight; of draws with replacement none is sure.

    Args:
        weights: `[N, K]`, the largest first.
        counts: `[N]`: how many of them are kept.
        keeps: what the sample is.
    """
    if not keeps.sure or weights.shape[1] == 0:
        return np.zeros(weights.shape, np.bool_)
    least = np.take_along_axis(weights, np.maximum(counts - 1, 0)[:, None], axis=1)
    return np.asarray(weights > least * (1 + EQUAL))


def entropy_of(targets: SoftTargets, t: float) -> npt.NDArray[np.float64]:
    """`[N]`: the teacher's entropy, nats; of kept ids and tail where there is no summary; NaN where it is not known."""
    if targets.summary is not None:
        return targets.summary.entropy.astype(np.float64)
    h = np.full(targets.n, np.nan)
    if targets.keeps.sample:
        return h
    soft = targets.soft
    some = targets[np.flatnonzero(soft)]
    p = some.probs(t).astype(np.float64)
    bins = np.concatenate([p, some.tail(t).astype(np.float64)[:, None]], axis=1)
    logs = np.log(bins, out=np.zeros_like(bins), where=bins > 0)
    h[soft] = -(bins * logs).sum(axis=1)
    return h
