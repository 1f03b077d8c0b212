"""nat8 to nat64 hold every log-probability within 1/(2n) nat, and a sample's weights without bias."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from softlabels.codecs import CODECS, Numbers, make_codec
from softlabels.codecs.steps import Steps
from softlabels.core.targets import SoftTargets
from softlabels.errors import TargetError

NAMES = ["nat8", "nat16", "nat32", "nat64"]
codecs = pytest.mark.parametrize("codec_id", NAMES)
SLACK = 1e-5
ODDS = [-80.0, -20.0, -5.0, -1.0, -0.1, 0.0, 0.3, 1.0, 5.0, 20.0, 80.0, -np.inf]


def targets_of(gaps, odds, *, temperatures=(1.0,), estimator="topk"):
    """Gaps `[N, K]`, of which the smallest of each row becomes 0, and log-odds `[N]` or `[N, G]`."""
    gaps = np.asarray(gaps, np.float32)
    gaps = gaps - gaps.min(axis=1, keepdims=True)
    n, k = gaps.shape
    odds = np.broadcast_to(np.asarray(odds, np.float32).reshape(n, -1), (n, len(temperatures)))
    return SoftTargets(
        ids=np.tile(np.arange(k, dtype=np.int32), (n, 1)),
        gaps=gaps,
        log_odds=odds,
        temperatures=temperatures,
        vocab_size=10**6,
        estimator=estimator,
    )


def back(codec, targets, numbers: Numbers):
    """What a reader makes of the numbers; slots that were not kept stay so."""
    gaps = np.where(targets.kept, -codec.scores(numbers.values), np.float32(np.inf))
    return replace(targets, gaps=gaps, log_odds=codec.odds(numbers.odds))


def exact(targets, t=1.0):
    """Log-probabilities in double precision."""
    g = targets.gaps.astype(np.float64) / t
    odds = targets.log_odds[:, targets.grid_index(t)].astype(np.float64)
    return -g - np.log(np.exp(-g).sum(1))[:, None] - np.logaddexp(0, odds)[:, None]


def check(codec, targets):
    """Every promise of a codec about targets that are no sample."""
    numbers = codec.to_numbers(targets, None)
    assert numbers.values.dtype == numbers.odds.dtype == np.uint32
    again = back(codec, targets, numbers)
    again.validate()
    kept = targets.kept
    assert (again.gaps.min(axis=1) == 0).all()
    assert (again.gaps[targets.gaps == 0] == 0).all()
    truth, found = exact(targets)[kept], exact(again)[kept]
    computed = again.log_probs(1.0)[kept].astype(np.float64)
    size = 1 + np.abs(truth)  # of what single precision can round: gaps are held in it
    bound = codec.absolute_error(sample=False)
    assert bound == 1 / (2 * codec.n)
    assert (np.abs(found - truth) <= bound + SLACK / 10 + 2.0**-23 * size).all()
    assert (np.abs(computed - truth) <= bound + SLACK + 2.0**-21 * size).all()
    finite = np.isfinite(targets.log_odds)
    np.testing.assert_array_equal(finite, np.isfinite(again.log_odds))
    a, b = targets.log_odds[finite].astype(np.float64), again.log_odds[finite].astype(np.float64)
    assert (np.abs(a - b) <= codec.odds_step / 2 + 2.0**-24 * (1 + np.abs(a))).all()
    for t in targets.temperatures:
        error = np.abs(exact(again, t)[kept] - exact(targets, t)[kept])
        size = 1 + np.abs(exact(targets, t)[kept])
        assert (error <= 2 * bound / t + codec.odds_step + SLACK + 2.0**-22 * size).all()
    # the more likely never becomes the less likely
    order = np.argsort(np.where(kept, targets.gaps, np.inf), axis=1, kind="stable")
    sorted_ = np.take_along_axis(again.gaps, order, 1)
    assert (sorted_[:, 1:] >= sorted_[:, :-1]).all()
    return numbers


def families(rng, h, n, k):
    """Gaps `[n, k]` of kinds that are met, and of kinds that make rounding hard."""
    halves = np.round(rng.exponential(3, (n, k)) / h * 2) / 2 * h
    even = np.arange(k) + rng.random((n, 1))
    stretch = rng.choice([1 / k, 1, 1 + 1 / k, 1 - 1 / k, 0.5, 2 + 1 / k], (n, 1))
    creep = np.where(np.arange(k) < 0.06 * k, h * 0.5001, h * np.linspace(0.5, 1.3, k))
    creep = creep[None] + rng.integers(0, 3, (n, k)) * h
    creep[:, 0] = 0
    return {
        "peaked": rng.exponential(5, (n, k)) + 8 * (np.arange(k) > 0),
        "common": np.sort(rng.exponential(1, (n, k)) * rng.uniform(0.05, 3, (n, 1)), 1),
        "flat": rng.random((n, k)) * h * rng.choice([0.01, 0.5, 1, 3], (n, 1)),
        "equal": np.where(rng.random((n, k)) < 0.1, 0, rng.exponential(2, (n, 1))),
        "halves": halves,
        "nearly halves": halves + h * rng.choice([-1e-5, 0, 1e-5], (n, k)) + (halves == 0) * 0.0,
        "even": even * h * stretch,  # no phase is favoured: the shift has nowhere to come to rest
        "creep": creep,  # each guess of the shift leads to one little further on
        "all scales": 10 ** rng.uniform(-4, 4, (n, k)),
        "one other": np.concatenate(
            [np.zeros((n, 1)), rng.exponential(2, (n, 1)) + np.zeros((n, k - 1))], 1
        ),
    }


@codecs
@pytest.mark.parametrize("k", [1, 2, 3, 5, 12, 50, 128, 400])
def test_every_log_probability_keeps_the_bound(codec_id, k):
    codec = make_codec(codec_id)
    rng = np.random.default_rng(k)
    n = 2000 if k < 50 else 150
    for gaps in families(rng, codec.step, n, k).values():
        check(codec, targets_of(np.abs(gaps), rng.choice(ODDS, n)))


@codecs
def test_kept_sets_of_several_sizes(codec_id):
    codec = make_codec(codec_id)
    rng = np.random.default_rng(1)
    for gaps in families(rng, codec.step, 500, 20).values():
        gaps = np.abs(gaps)
        gaps -= gaps.min(1, keepdims=True)
        gaps[np.arange(20) >= rng.integers(1, 21, (500, 1))] = np.inf
        gaps[np.arange(500), np.where(np.isfinite(gaps), gaps, 9e9).argmin(1)] = 0
        gaps -= np.where(np.isfinite(gaps), gaps, 9e9).min(1, keepdims=True)
        check(codec, targets_of(gaps, rng.choice(ODDS, 500)))


gap = st.floats(0, 1e4, width=32) | st.floats(0, 1, width=32) | st.sampled_from([0.0, 1e-4, 0.5])


@given(
    n=st.sampled_from([8, 16, 32, 64]),
    gaps=hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 30)), elements=gap),
    halves=st.booleans(),
    data=st.data(),
)
def test_any_gaps_keep_the_bound(n, gaps, halves, data):
    codec = Steps(n)
    odds = data.draw(
        hnp.arrays(
            np.float32,
            (len(gaps), 3),
            elements=st.floats(-80, 80, width=32) | st.just(-np.inf),
        )
    )
    if halves:
        gaps = np.round(gaps / codec.step * 2) / 2 * codec.step
    check(codec, targets_of(gaps, odds, temperatures=(0.5, 1.0, 4.0)))


@codecs
def test_other_temperatures(codec_id):
    codec = make_codec(codec_id)
    rng = np.random.default_rng(2)
    for gaps in families(rng, codec.step, 300, 12).values():
        odds = rng.choice(ODDS, (300, 5))
        check(codec, targets_of(np.abs(gaps), odds, temperatures=(0.1, 0.5, 1.0, 2.0, 10.0)))


def test_a_wide_kept_set_needs_no_search(monkeypatch):
    """The search's memory is K^2, so whatever the gaps, the shift must be found without it."""
    reached = []
    search = Steps._search

    def counted(self, gaps, exact, tail):
        reached.append(len(gaps))
        return search(self, gaps, exact, tail)

    monkeypatch.setattr(Steps, "_search", counted)
    rng = np.random.default_rng(0)
    for codec_id in NAMES:
        codec = make_codec(codec_id)
        for gaps in families(rng, codec.step, 200, 300).values():
            codec.to_numbers(targets_of(np.abs(gaps), rng.choice(ODDS, 200)), None)
        few = rng.exponential(0.6, (200, 300))
        many = np.hstack([few, 14 + rng.exponential(2, (200, 3000))])
        codec.to_numbers(targets_of(many, np.full(200, -np.inf), estimator="dense"), None)
    assert len(reached) <= 2, reached


def test_the_search_finds_a_rounding_too(monkeypatch):
    """It is what is left if single precision keeps the shift from being found."""
    monkeypatch.setattr("softlabels.codecs.steps.ITERATIONS", 0)
    rng = np.random.default_rng(3)
    for codec_id in NAMES:
        codec = make_codec(codec_id)
        for gaps in families(rng, codec.step, 60, 30).values():
            check(codec, targets_of(np.abs(gaps), rng.choice(ODDS, 60)))


def test_no_positions():
    empty = targets_of(np.zeros((1, 1)), [0.0])[:0]
    numbers = make_codec("nat16").to_numbers(empty, None)
    assert numbers.values.shape == (0, 1)
    assert numbers.odds.shape == (0, 1)


# -- samples --------------------------------------------------------------------------------------

GAPS_OF_SAMPLES = {
    "threshold": [0, 0.3, 1.234, 1.9, 2.7, 2.7, 2.7, 2.7, 2.7, 2.7, 2.7, 2.7],
    "draws": np.log(12) - np.log([12, 5, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1]),
    "one twice": np.log(2) * (np.arange(40) > 0),
    "common": [0, 0.01, 0.05, 0.06, 0.0605, 0.11, 0.3, 1, 3, 9, 27],
    "alone": [0],
}


@codecs
@pytest.mark.parametrize("estimator", ["sampled", "rs"])
@pytest.mark.parametrize("kind", list(GAPS_OF_SAMPLES))
def test_rounding_at_random_has_no_bias(codec_id, estimator, kind):
    """Of the weights that a reader derives, to the third order in the step.

    Without what is taken from the gaps beforehand the bias of a group that has the share W would be up to
    W (1 - W) v, with v <= (h/2)^2 the variance of its rounding: ten times what is allowed here.
    """
    codec = make_codec(codec_id)
    gaps = np.array([GAPS_OF_SAMPLES[kind]], np.float32)
    draws, k = 10_000, gaps.shape[1]
    targets = targets_of(
        np.repeat(gaps, draws, axis=0), np.full(draws, -np.inf), estimator=estimator
    )
    uniforms = np.random.default_rng(5).random((draws, k))
    again = back(codec, targets, codec.to_numbers(targets, uniforms))
    again.validate()
    w = np.exp(again.log_probs(1.0).astype(np.float64))
    truth = np.exp(exact(targets)[:1])
    error = w.mean(axis=0) - truth[0]
    standard = w.std(axis=0) / np.sqrt(draws)
    third_order = truth[0] * codec.step**3 / 8 + 1e-6
    assert (np.abs(error) <= 4 * standard + third_order).all()
    # and each single weight keeps the declared bound
    error = np.abs(again.log_probs(1.0).astype(np.float64) - exact(targets))
    assert (error <= codec.absolute_error(sample=True) + SLACK).all()
    assert codec.absolute_error(sample=True) == 2 * codec.step
    # equal weights stay equal
    for g in np.unique(gaps):
        same = again.gaps[:, gaps[0] == g]
        assert (same == same[:, :1]).all()


@given(
    n=st.sampled_from([8, 16, 32, 64]),
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=20),
    seed=st.integers(0, 2**32),
)
def test_equal_weights_stay_equal_wherever_they_are(n, counts, seed):
    """`rs` has its ids in ascending order, not its weights."""
    codec = Steps(n)
    gaps = np.log(max(counts)) - np.log([counts])
    targets = targets_of(gaps, [-np.inf], estimator="rs")
    uniforms = np.random.default_rng(seed).random((1, len(counts)))
    values = codec.to_numbers(targets, uniforms).values[0]
    for c in set(counts):
        assert len({int(v) for v, of in zip(values, counts, strict=True) if of == c}) == 1


@codecs
def test_rounding_at_random_is_a_function_of_the_uniforms(codec_id):
    codec = make_codec(codec_id)
    rng = np.random.default_rng(0)
    targets = targets_of(rng.exponential(2, (50, 9)), np.full(50, -np.inf), estimator="sampled")
    u = rng.random((50, 9))
    one, two = (codec.to_numbers(targets, u.copy()) for _ in range(2))
    np.testing.assert_array_equal(one.values, two.values)
    other = codec.to_numbers(targets, rng.random((50, 9)))
    assert (one.values != other.values).any()
    # always down, always up: every gap lies between
    down = codec.to_numbers(targets, np.full((50, 9), np.nextafter(1.0, 0))).values
    up = codec.to_numbers(targets, np.zeros((50, 9))).values
    assert (down * codec.step <= targets.gaps + 1e-5).all()
    assert (targets.gaps <= up * codec.step + 1e-5).all()
    assert (up.astype(np.int64) - down <= 1).all()


@codecs
@pytest.mark.parametrize("estimator", ["sampled", "rs"])
def test_weights_of_any_size_keep_their_bound(codec_id, estimator):
    codec = make_codec(codec_id)
    rng = np.random.default_rng(7)
    for gaps in families(rng, codec.step, 300, 12).values():
        gaps = np.abs(gaps)
        gaps -= gaps.min(1, keepdims=True)
        gaps[np.arange(12) >= rng.integers(1, 13, (300, 1))] = np.inf
        gaps[:, 0] = 0
        targets = targets_of(gaps, np.full(300, -np.inf), estimator=estimator)
        again = back(codec, targets, codec.to_numbers(targets, rng.random((300, 12))))
        again.validate()
        kept = targets.kept
        truth = exact(targets)[kept]
        error = np.abs(again.log_probs(1.0)[kept].astype(np.float64) - truth)
        assert (
            error <= codec.absolute_error(sample=True) + SLACK + 2.0**-21 * (1 + np.abs(truth))
        ).all()


# -- limits ---------------------------------------------------------------------------------------


@codecs
def test_steps_beyond_2_to_the_31_are_refused(codec_id):
    codec = make_codec(codec_id)
    for estimator in ("topk", "sampled"):
        fits = targets_of([[0, (2**31 - 200) * codec.step]], [-np.inf], estimator=estimator)
        numbers = codec.to_numbers(fits, np.full((1, 2), 0.5))
        assert 2**31 - 1000 < numbers.values[0, 1] < 2**31
        beyond = targets_of([[0, (2**31 + 200) * codec.step]], [-np.inf], estimator=estimator)
        with pytest.raises(TargetError, match=rf"{codec_id} cannot hold .*--values float32"):
            codec.to_numbers(beyond, np.full((1, 2), 0.5))
    limit = (2**31 - 200) * codec.odds_step
    for sign in (-1, 1):
        edge = targets_of([[0, 1]], [sign * limit])
        again = back(codec, edge, codec.to_numbers(edge, None))
        np.testing.assert_allclose(again.log_odds, sign * limit, rtol=1e-6)
        with pytest.raises(TargetError, match=rf"{codec_id} cannot hold .*log-odds"):
            codec.to_numbers(targets_of([[0, 1]], [sign * 1.001 * limit]), None)


@codecs
def test_names_and_steps(codec_id):
    codec = make_codec(codec_id)
    assert codec.id == codec_id
    assert codec_id in CODECS.names()
    assert not codec.plain
    assert codec.relative_error == 0
    assert codec.n == int(codec_id[3:])
    assert codec.step / 2 < codec.absolute_error(sample=False)  # the room in which a shift is found
    np.testing.assert_array_equal(
        codec.scores(np.array([0, 1, 2**31], np.uint32)),
        np.array([0, -codec.step, -codec.step * 2**31], np.float32),
    )
    ends = codec.odds(np.array([0, 1, 2**31, 2**32 - 2, 2**32 - 1], np.uint32))
    assert np.isneginf(ends[0])
    assert np.isposinf(ends[-1])
    assert ends[2] == 0
    assert np.isfinite(ends[1:-1]).all()
