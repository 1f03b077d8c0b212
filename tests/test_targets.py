"""SoftTargets: sums to one by construction, equals a dense softmax, refuses what a file could break."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from softlabels.core.targets import SoftTargets, gaps_from_logp
from softlabels.errors import PairingError, TargetError

GRID = (0.5, 1.0, 2.0, 10.0)


def logsumexp(x, axis):
    top = x.max(axis=axis, keepdims=True)
    with np.errstate(divide="ignore"):
        return (top + np.log(np.exp(x - top).sum(axis=axis, keepdims=True))).squeeze(axis)


def from_dense(z, kept_ids, temperatures=GRID):
    """Targets that keep `kept_ids [K]` of float64 logits `z [N, V]`, measured in float64."""
    kept = z[:, kept_ids]
    others = np.delete(z, kept_ids, axis=1)
    odds = [
        logsumexp(others / t, 1) - logsumexp(kept / t, 1)
        if others.shape[1]
        else np.full(len(z), -np.inf)
        for t in temperatures
    ]
    return SoftTargets(
        ids=np.tile(np.array(kept_ids, np.int32), (len(z), 1)),
        gaps=(kept.max(axis=1, keepdims=True) - kept).astype(np.float32),
        log_odds=np.stack(odds, axis=1).astype(np.float32),
        temperatures=tuple(temperatures),
        vocab_size=z.shape[1],
        estimator="topk",
    )


@st.composite
def dense_cases(draw):
    n, v = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    z = draw(hnp.arrays(np.float64, (n, v), elements=st.floats(-500, 500, width=32)))
    kept = draw(st.lists(st.integers(0, v - 1), min_size=1, max_size=v, unique=True))
    return z, kept


@given(dense_cases())
def test_equals_the_dense_softmax_at_every_temperature_of_the_grid(case):
    z, kept = case
    t = from_dense(z, kept)
    t.validate()
    for temperature in GRID:
        logp = z / temperature - logsumexp(z / temperature, 1)[:, None]
        # float32 holds a number of nats to about 6e-8 of itself, three of them are added
        slack = 1e-6 * (3 + np.abs(logp[:, kept]) + np.ptp(z, axis=1, keepdims=True) / temperature)
        assert (np.abs(t.log_probs(temperature) - logp[:, kept]) <= slack).all()
        tail = np.delete(np.exp(logp), kept, axis=1).sum(axis=1)
        np.testing.assert_allclose(t.tail(temperature), tail, rtol=1e-3, atol=1e-37)
        total = t.probs(temperature).sum(axis=1) + t.tail(temperature)
        np.testing.assert_allclose(total, 1, atol=1e-5)
        assert t.probs(temperature).dtype == t.tail(temperature).dtype == np.float32


floats32 = st.floats(0, 1000, width=32)


@given(st.data())
def test_sums_to_one_whatever_gaps_and_log_odds_are(data):
    """A codec's error in the gaps cannot leak into the tail: any numbers sum to one."""
    n, k = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    gaps = data.draw(hnp.arrays(np.float32, (n, k), elements=floats32 | st.just(np.inf)))
    gaps[:, 0] = 0
    odds = st.floats(-1000, 1000, width=32) | st.just(-np.inf)
    t = SoftTargets(
        ids=np.tile(np.arange(k, dtype=np.int32), (n, 1)),
        gaps=gaps,
        log_odds=data.draw(hnp.arrays(np.float32, (n, len(GRID)), elements=odds)),
        temperatures=GRID,
        vocab_size=100,
        estimator="topk",
    )
    t.validate()
    for temperature in GRID:
        probs, tail = t.probs(temperature), t.tail(temperature)
        assert (probs >= 0).all()
        assert (tail >= 0).all()
        assert (probs[~t.kept] == 0).all()
        np.testing.assert_allclose(probs.sum(axis=1) + tail, 1, atol=1e-5)
        np.testing.assert_allclose(t.dense(temperature).sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("mass", [1e-9, 1e-6, 1e-3, 0.5])
def test_a_tiny_tail_and_a_tiny_head_keep_their_digits(mass):
    odds = np.log(mass) - np.log1p(-mass)
    t = SoftTargets(
        ids=np.array([[3, 5], [3, 5]], np.int32),
        gaps=np.array([[0, 1], [0, 1]], np.float32),
        log_odds=np.array([[odds], [-odds]], np.float32),
        temperatures=(1.0,),
        vocab_size=10,
        estimator="topk",
    )
    assert t.tail(1.0)[0] == pytest.approx(mass, rel=5e-6)
    assert t.probs(1.0)[1].sum() == pytest.approx(mass, rel=5e-6)
    shares = np.array([1, np.exp(-1)]) / (1 + np.exp(-1))
    np.testing.assert_allclose(t.probs(1.0)[1] / t.probs(1.0)[1].sum(), shares, rtol=1e-5)


def test_gaps_of_a_thousand_neither_overflow_nor_vanish_at_a_high_temperature():
    z = np.array([[0.0, -1000.0, 1000.0, -1000.0]])
    t = from_dense(z, [2, 0, 1], temperatures=(1.0, 500.0))
    assert t.gaps.tolist() == [[0, 1000, 2000]]
    assert t.probs(1.0).tolist() == [[1, 0, 0]]
    hot = np.exp(z / 500) / np.exp(z / 500).sum()
    np.testing.assert_allclose(t.probs(500.0), hot[:, [2, 0, 1]], rtol=1e-5)
    np.testing.assert_allclose(t.tail(500.0), hot[:, 3], rtol=1e-5)


def test_a_temperature_outside_the_grid_is_refused_everywhere():
    t = from_dense(np.arange(6.0).reshape(2, 3), [2, 1])
    for ask in (t.probs, t.log_probs, t.tail, t.dense):
        with pytest.raises(PairingError, match=r"temperature 3 .*grid \(0\.5, 1, 2, 10\)") as e:
            ask(3.0)
        assert "--temperature 3" in str(e.value)
    with pytest.raises(PairingError):
        from_dense(np.arange(6.0).reshape(2, 3), [2], temperatures=(2.0,)).logp  # noqa: B018


def test_logp_is_at_temperature_one():
    t = from_dense(np.array([[1.0, 2.0, 3.0]]), [2, 1])
    np.testing.assert_array_equal(t.logp, t.log_probs(1.0))


def test_dense_spreads_the_tail_over_the_ids_not_kept():
    t = from_dense(np.log([[0.5, 0.3, 0.1, 0.1]]), [0, 1], temperatures=(1.0,))
    np.testing.assert_allclose(t.dense(1.0), [[0.5, 0.3, 0.1, 0.1]], rtol=1e-5)
    everything = from_dense(np.log([[0.5, 0.3, 0.2]]), [2, 0, 1], temperatures=(1.0,))
    assert everything.tail(1.0).tolist() == [0]
    np.testing.assert_allclose(everything.dense(1.0), [[0.5, 0.3, 0.2]], rtol=1e-5)


def test_dense_ignores_padded_slots():
    t = replace(
        from_dense(np.log([[0.5, 0.3, 0.2]]), [0, 1], temperatures=(1.0,)),
        ids=np.array([[1, 1]], np.int32),
        gaps=np.array([[0, np.inf]], np.float32),
        log_odds=np.log(np.array([[0.7 / 0.3]], np.float32)),
    )
    np.testing.assert_allclose(t.dense(1.0), [[0.35, 0.3, 0.35]], rtol=1e-5)


def test_a_sample_is_already_at_its_temperature():
    weights = np.array([[0.6, 0.2, 0.2]])
    t = SoftTargets(
        ids=np.array([[7, 1, 4]], np.int32),
        gaps=gaps_from_logp(np.log(weights).astype(np.float32)),
        log_odds=np.full((1, 1), -np.inf, np.float32),
        temperatures=(4.0,),
        vocab_size=9,
        estimator="sampled",
    )
    np.testing.assert_allclose(t.probs(4.0), weights, rtol=1e-6)
    assert t.tail(4.0).tolist() == [0]
    # the same numbers of a topk store are logits, and T=4 flattens them
    assert replace(t, estimator="topk").probs(4.0)[0, 0] < 0.45


def test_gaps_from_logp():
    logp = np.array([[-1.0, -3.0, -np.inf], [-2.0, -0.5, -0.5]], np.float32)
    assert gaps_from_logp(logp).tolist() == [[0, 2, np.inf], [1.5, 0, 0]]
    assert gaps_from_logp(logp).dtype == np.float32
    assert gaps_from_logp(np.zeros((0, 3), np.float32)).shape == (0, 3)
    assert np.isnan(gaps_from_logp(np.full((1, 2), -np.inf, np.float32))).all()
    assert gaps_from_logp(logp[:1]).tolist() == [[0, 2, np.inf]]
    assert gaps_from_logp(logp[1:]).tolist() == [[1.5, 0, 0]]
    assert gaps_from_logp(np.array([[-np.inf, -1.0]], np.float32)).tolist() == [[np.inf, 0]]
    assert np.isnan(gaps_from_logp(np.array([[-1.0, np.nan]], np.float32))).any()


# -- validate -------------------------------------------------------------------------------------


def good(**changes):
    values = {
        "ids": np.array([[4, 1, 9], [0, 9, 5], [2, 3, 2], [7, 6, 8]], np.int32),
        "gaps": np.array([[0, 1, 2], [3, 0, 0], [0, 2, np.inf], [0, 1, 1]], np.float32),
        "log_odds": np.array([[-1, 2], [-np.inf, -np.inf], [9, 9], [0, 0]], np.float32),
        "temperatures": (1.0, 2.0),
        "vocab_size": 10,
        "estimator": "topk",
    }
    return SoftTargets(**(values | changes))


def test_what_is_whole_passes():
    good().validate()
    assert (good().n, good().k, len(good())) == (4, 3, 4)
    assert good().kept.sum() == 11
    good()[:0].validate()


@pytest.mark.parametrize(
    ("name", "place", "value", "says"),
    [
        ("ids", (3, 1), 10, r"an id outside 0\.\.9 \(found 10\)"),
        ("ids", (3, 1), -1, r"an id outside 0\.\.9 \(found -1\)"),
        ("ids", (3, 1), 2**31 - 1, r"an id outside 0\.\.9 \(found 2147483647\)"),
        ("ids", (3, 1), 7, r"an id kept twice \(found 7\)"),
        ("ids", (3, 2), 6, r"an id kept twice \(found 6\)"),
        ("gaps", (3, 1), np.nan, r"a gap that is negative or NaN"),
        ("gaps", (3, 1), -0.25, r"a gap that is negative or NaN.*\(found -0\.25\)"),
        ("gaps", (3, 1), -np.inf, r"a gap that is negative or NaN.*\(found -inf\)"),
        ("gaps", (3, 0), 0.5, r"smallest gap is not 0 \(found 0\.5\)"),
        ("gaps", (3, slice(None)), np.inf, r"smallest gap is not 0 \(found inf\)"),
        ("log_odds", (3, 1), np.nan, r"NaN for the tail's log-odds"),
        ("log_odds", (3, 1), np.inf, r"a kept set without any mass"),
    ],
)
def test_each_broken_invariant_is_refused_with_its_position(name, place, value, says):
    broken = getattr(good(), name).copy()
    broken[place] = value
    with pytest.raises(TargetError, match=f"^here: position 3 has .*{says}"):
        good(**{name: broken}).validate(where="here")


def test_the_first_broken_position_is_named():
    ids = good().ids.copy()
    ids[1:, 1] = 99
    with pytest.raises(TargetError, match="position 1 "):
        good(ids=ids).validate()


def test_unique_is_the_only_check_that_can_be_left_out():
    ids = good().ids.copy()
    ids[3, 1] = 7
    good(ids=ids).validate(unique=False)
    ids[3, 1] = 10
    with pytest.raises(TargetError):
        good(ids=ids).validate(unique=False)


def test_no_kept_ids_at_all():
    nothing = {"ids": np.zeros((4, 0), np.int32), "gaps": np.zeros((4, 0), np.float32)}
    with pytest.raises(TargetError, match="empty at every position"):
        good(**nothing).validate()


@pytest.mark.parametrize(
    "changes",
    [
        {"gaps": np.zeros((4, 2), np.float32)},
        {"ids": np.zeros(4, np.int32), "gaps": np.zeros(4, np.float32)},
        {"log_odds": np.zeros(4, np.float32)},
        {"log_odds": np.zeros((3, 2), np.float32)},
        {"log_odds": np.zeros((4, 1), np.float32)},
        {"temperatures": (1.0,)},
    ],
)
def test_shapes_that_do_not_fit_are_refused_at_once(changes):
    with pytest.raises(TargetError, match="targets: "):
        good(**changes)


# -- joining --------------------------------------------------------------------------------------


def test_slices_and_index_arrays():
    assert good()[1:3].ids.tolist() == [[0, 9, 5], [2, 3, 2]]
    picked = good()[np.array([3, 0])]
    assert picked.ids.tolist() == [[7, 6, 8], [4, 1, 9]]
    assert picked.log_odds.tolist() == [[0, 0], [-1, 2]]
    assert (picked.temperatures, picked.vocab_size, picked.estimator) == ((1.0, 2.0), 10, "topk")


def narrow():
    return good(
        ids=np.array([[5], [6]], np.int32),
        gaps=np.zeros((2, 1), np.float32),
        log_odds=np.ones((2, 2), np.float32),
    )


def test_concatenate_pads_the_shorter_kept_set():
    both = SoftTargets.concatenate([narrow(), good()])
    assert both.ids[:2].tolist() == [[5, 5, 5], [6, 6, 6]]
    assert both.gaps[:2].tolist() == [[0, np.inf, np.inf]] * 2
    assert both.ids[2:].tolist() == good().ids.tolist()
    assert both.gaps[2:].tolist() == good().gaps.tolist()
    assert both.log_odds.tolist() == [[1, 1], [1, 1], *good().log_odds.tolist()]
    assert (both.ids.dtype, both.gaps.dtype) == (np.int32, np.float32)
    both.validate()
    for t in both.temperatures:
        np.testing.assert_allclose(both.tail(t)[:2], narrow().tail(t))
        np.testing.assert_allclose(both.probs(t)[:2, :1], narrow().probs(t))


@pytest.mark.parametrize("k", [0, 1, 3, 4])
def test_concatenate_with_a_part_without_positions(k):
    """A shard in which nothing is to be learnt has no kept set to be as wide as."""
    empty = good(
        ids=np.zeros((0, k), np.int32),
        gaps=np.zeros((0, k), np.float32),
        log_odds=np.zeros((0, 2), np.float32),
    )
    for parts in ([empty, good()], [good(), empty], [empty, empty, good(), empty]):
        joined = SoftTargets.concatenate(parts)
        joined.validate()
        np.testing.assert_array_equal(joined.probs(1.0)[:, :3], good().probs(1.0))
        assert joined.n == 4
    assert SoftTargets.concatenate([empty, empty]).n == 0


@pytest.mark.parametrize(
    "other", [{"temperatures": (1.0, 4.0)}, {"vocab_size": 11}, {"estimator": "sampled"}]
)
def test_concatenate_refuses_mixtures(other):
    with pytest.raises(TargetError, match="cannot be stacked"):
        SoftTargets.concatenate([good(), good(**other)])
