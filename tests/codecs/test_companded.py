"""companded: steps that grow with the gap, within half a step each, and what that leaves of a divergence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from softlabels.codecs import CODECS, make_codec
from softlabels.codecs.companded import GROWTH, Companded
from softlabels.errors import ConfigError, TargetError
from softlabels.testing import check_codec
from tests.codecs.test_steps import back, exact, families, targets_of

SPECS = ["companded", "companded?finest=32&coarsest=1", "companded?finest=4096&coarsest=64"]
SLACK = 1e-5
gap = st.floats(0, 1e4, width=32) | st.floats(0, 1, width=32) | st.sampled_from([0.0, 1e-4, 0.5])


def check(codec, targets):
    """Every promise about targets that are no sample."""
    numbers = codec.to_numbers(targets, None)
    again = back(codec, targets, numbers)
    again.validate()
    kept = targets.kept
    held = codec.rounding(again.gaps.astype(np.float64))
    size = 2.0**-22 * (1 + targets.gaps[kept])
    off = np.abs(targets.gaps[kept].astype(np.float64) - again.gaps[kept])
    assert (off <= held.gaps[kept] + size).all()
    assert (held.gaps[kept] <= codec.step / 2).all()
    truth, found = exact(targets)[kept], exact(again)[kept]
    bound = codec.absolute_error(sample=False)
    assert (np.abs(found - truth) <= bound + SLACK + 2.0**-21 * (1 + np.abs(truth))).all()
    finite = np.isfinite(targets.log_odds)
    a, b = targets.log_odds[finite].astype(np.float64), again.log_odds[finite]
    assert (np.abs(a - b) <= held.odds + 2.0**-24 * (1 + np.abs(a))).all()
    order = np.argsort(np.where(kept, targets.gaps, np.inf), axis=1, kind="stable")
    sorted_ = np.take_along_axis(again.gaps, order, 1)[:, : kept.sum(1).min()]
    assert (np.diff(sorted_, axis=1) >= 0).all()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("k", [1, 3, 50, 300])
def test_gaps_and_log_probabilities_keep_their_bounds(spec, k):
    codec, rng = make_codec(spec), np.random.default_rng(k)
    for gaps in families(rng, codec.step, 200, k).values():
        check(codec, targets_of(np.abs(gaps), rng.choice([-20.0, -1.0, 0.3, 5.0, -np.inf], 200)))


@given(
    spec=st.sampled_from(SPECS),
    gaps=hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 30)), elements=gap),
    odds=st.floats(-80, 80, width=32) | st.just(-np.inf),
)
def test_any_gaps_keep_the_bounds(spec, gaps, odds):
    check(make_codec(spec), targets_of(gaps, np.full(len(gaps), odds)))


@pytest.mark.parametrize("spec", SPECS)
def test_the_contract(spec):
    check_codec(spec)


@pytest.mark.parametrize("spec", SPECS)
def test_numbers_stand_for_the_gaps_that_the_format_says(spec):
    """docs/format.md, section 8."""
    codec = make_codec(spec)
    last = int(np.floor((codec.finest - 32 * codec.coarsest / 31) / GROWTH))
    u = np.arange(last + 1)
    expected = -np.log(1 - 0.7 * u / codec.finest) / 0.7
    np.testing.assert_allclose(-codec.scores(u.astype(np.uint32)), expected, rtol=1e-6)
    far = np.array([last + 1, last + 1000, 2**31], np.uint32)
    beyond = expected[-1] + (far.astype(np.float64) - last) * 31 / (32 * codec.coarsest)
    np.testing.assert_allclose(-codec.scores(far), beyond, rtol=1e-6)
    steps = np.diff(np.append(expected, beyond[0]))
    assert steps[0] == pytest.approx(1 / codec.finest, rel=0.05)
    assert (np.diff(steps) > -1e-9).all()
    assert steps.max() <= codec.step + 1e-9


def test_likely_ids_are_held_more_precisely_than_by_nat64_and_rare_ones_less():
    g = np.random.default_rng(0)
    targets = targets_of(g.exponential(2, (2000, 64)), np.full(2000, -2.0))
    error = {}
    for spec in ("companded", "nat64"):
        codec = make_codec(spec)
        again = back(codec, targets, codec.to_numbers(targets, None))
        error[spec] = np.abs(exact(again) - exact(targets))
    p = np.exp(exact(targets))
    likely = p > 0.05
    assert error["companded"][likely].mean() < 0.7 * error["nat64"][likely].mean()
    assert error["companded"][~likely].mean() > error["nat64"][~likely].mean()


@pytest.mark.parametrize("spec", SPECS[:2])
@pytest.mark.parametrize("estimator", ["sampled", "rs"])
def test_a_samples_weights_are_rounded_without_bias_and_equal_ones_alike(spec, estimator):
    codec, draws = make_codec(spec), 10_000
    gaps = np.array([[0, 0.01, 0.05, 0.3, 1.234, 2.7, 2.7, 2.7, 4, 9]], np.float32)
    targets = targets_of(np.repeat(gaps, draws, 0), np.full(draws, -np.inf), estimator=estimator)
    u = np.random.default_rng(5).random((draws, gaps.shape[1]))
    again = back(codec, targets, codec.to_numbers(targets, u))
    w, truth = np.exp(again.log_probs(1.0).astype(np.float64)), np.exp(exact(targets)[0])
    slack = 4 * w.std(axis=0) / np.sqrt(draws) + truth * codec.step**3 / 8 + 1e-6
    assert (np.abs(w.mean(axis=0) - truth) <= slack).all()
    assert (again.gaps[:, 5] == again.gaps[:, 6]).all()
    assert w.std(axis=0)[5] > 0


def test_impossible_parameters_and_gaps_are_refused():
    for parameters in (
        "finest=4",
        "coarsest=0",
        "coarsest=65",
        "finest=65537",
        "finest=4&coarsest=4",
    ):
        with pytest.raises(ConfigError, match="expected steps of 1/finest"):
            make_codec(f"companded?{parameters}")
    codec = Companded()
    with pytest.raises(TargetError, match="companded cannot hold a gap"):
        codec.to_numbers(targets_of([[0, 2.0**31]], [0.0]), None)
    fits = targets_of([[0, 2.0**28]], [0.0])
    again = back(codec, fits, codec.to_numbers(fits, None))
    np.testing.assert_allclose(again.gaps, fits.gaps, rtol=1e-6)


def test_the_spelled_name_has_both_parameters():
    assert CODECS.spelled("companded") == "companded?finest=320&coarsest=4"
    assert make_codec("companded").id == "companded"


def test_positions_without_any_kept_id():
    targets = targets_of([[0, 1], [0, 2]], [0.0, 0.0])
    hard = targets.hard_label_only(np.array([True, False]))
    numbers = make_codec("companded").to_numbers(hard, None)
    again = replace(hard, log_odds=make_codec("companded").odds(numbers.odds))
    assert np.isposinf(again.log_odds[0]).all()
