"""`counts` gives back whole multiples, and rounds other weights so that their mean is exact."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlabels.codecs.counts import Counts
from softlabels.core.kept import KeptSet
from softlabels.core.targets import SoftTargets, gaps_from_logp
from softlabels.errors import ConfigError, TargetError
from softlabels.estimators import make_estimator
from softlabels.testing import check_codec
from tests.fakes import config_of

SAMPLE = KeptSet(sample=True, tail=False)


def sample(weights, keeps=SAMPLE, odds=-np.inf):
    weights = np.asarray(weights, np.float64)
    with np.errstate(divide="ignore"):
        logp = np.log(weights).astype(np.float32)
    return SoftTargets(
        ids=np.tile(np.arange(weights.shape[1], dtype=np.int32), (len(weights), 1)),
        gaps=gaps_from_logp(logp),
        log_odds=np.full((len(weights), 1), odds, np.float32),
        temperatures=(1.0,),
        vocab_size=1000,
        estimator="made-up",
        declared=keeps,
    )


def back(weights, uniforms):
    """What a reader makes of weights `[n, K]`."""
    t = sample(weights)
    scores = Counts().scores(Counts().to_numbers(t, uniforms).values)
    found = np.exp(scores.astype(np.float64)) * t.kept
    return found / found.sum(axis=1, keepdims=True)


def test_it_keeps_the_contract():
    check_codec("counts")


@given(
    counts=st.lists(st.lists(st.integers(0, 90), min_size=4, max_size=4), min_size=1, max_size=9),
    unit=st.floats(0.01, 10),
)
def test_whole_multiples_come_back_exactly(counts, unit):
    m = np.array([c for c in counts if any(c)] or [[1, 0, 0, 3]], np.float64)
    u = np.random.default_rng(0).random(m.shape)
    np.testing.assert_allclose(back(m * unit, u), m / m.sum(1, keepdims=True), rtol=1e-6)


@given(seed=st.integers(0, 2**31), k=st.integers(1, 12), spread=st.sampled_from([0.1, 1.0, 4.0]))
def test_the_mean_over_all_offsets_is_the_weight(seed, k, spread):
    """Over a fine comb of offsets each count errs by at most one offset; no kept id is lost."""
    r = 500
    w = np.exp(-np.random.default_rng(seed).exponential(spread, k))
    w /= w.sum()
    if w.min() < 1e-3:
        return
    u = np.repeat((np.arange(r)[:, None] + 0.5) / r, k, axis=1)
    found = back(np.tile(w, (r, 1)), u)
    assert (found > 0).all()
    np.testing.assert_allclose(found.mean(axis=0), w, atol=2 / r * w.min() + 1e-4 * w.max())


@pytest.mark.parametrize(("estimator", "k"), [("systematic", 20), ("rs", 20)])
def test_unbiased_through_the_codec(estimator, k):
    """Means over 10^4 seeds of what a reader derives are the teacher's, within four standard errors."""
    v, r = 60, 10_000
    logits = torch.randn(1, v, generator=torch.Generator().manual_seed(1)) * 2.5
    p = torch.softmax(logits[0].double(), 0).numpy()
    rng = np.random.default_rng(7)
    e = make_estimator(estimator, {"k": k, "temperatures": (1.0,)})
    s = e.select(logits.repeat(r, 1), torch.from_numpy(rng.random((r, e.uniforms))))
    t = sample(np.exp(s.logp.double().numpy()))
    scores = Counts().scores(Counts().to_numbers(t, rng.random(t.gaps.shape)).values)
    w = np.exp(scores.astype(np.float64)) * t.kept
    w /= w.sum(axis=1, keepdims=True)
    dense = np.zeros((r, v))
    np.add.at(dense, (np.arange(r)[:, None], s.ids.numpy()), w)
    spread = dense.std(axis=0) / r**0.5
    matters = p > 1e-4
    assert matters.sum() > 40
    assert (np.abs(dense.mean(axis=0) - p) <= 4 * spread + 1e-7)[matters].all()


def test_what_it_cannot_hold_is_refused():
    codec, u = Counts(), np.zeros((1, 2))
    with pytest.raises(TargetError, match="probabilities; build with --values nat16"):
        codec.to_numbers(sample([[0.5, 0.5]], KeptSet()), None)
    with pytest.raises(TargetError, match=r"nats apart .*--values nat8"):
        codec.to_numbers(sample([[1.0, 1e-8]]), u)
    with pytest.raises(TargetError, match="log-odds of a tail, 1"):
        codec.to_numbers(sample([[0.5, 0.5]], odds=1.0), u)
    with pytest.raises(ConfigError, match="--values counts: holds the weights of samples only"):
        config_of("text:x", estimator="topk", profile="packed", values="counts")


def test_numbers_that_stand_for_nothing_are_nan():
    assert np.isnan(Counts().scores(np.array([2**31, 2**32 - 1], np.uint32))).all()
    assert np.isnan(Counts().odds(np.array([5], np.uint32))).all()
