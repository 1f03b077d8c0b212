"""The float codecs hold what they are given within the bound that they declare."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from softlabels.codecs import CODECS, make_codec
from softlabels.core.targets import SoftTargets
from softlabels.errors import ConfigError, TargetError

ids = pytest.mark.parametrize("codec_id", ["float16", "float32"])
values32 = st.floats(-65504, 65504, width=32) | st.floats(-20, 0, width=32) | st.just(-np.inf)


@ids
@given(values=hnp.arrays(np.float32, st.integers(0, 40), elements=values32))
def test_error_is_within_the_declared_bound(codec_id, values):
    codec = make_codec(codec_id)
    decoded = codec.decode(codec.encode(values))
    assert decoded.dtype == np.float32
    assert decoded.shape == values.shape
    finite = np.isfinite(values)
    assert (decoded[~finite] == -np.inf).all()
    v, d = values[finite].astype(np.float64), decoded[finite].astype(np.float64)
    assert (
        np.abs(d - v) <= codec.relative_error * np.abs(v) + codec.absolute_error(sample=False)
    ).all()


@ids
def test_the_declared_bound_on_every_scale(codec_id):
    """Down to the smallest numbers, where half precision has no relative precision left."""
    codec = make_codec(codec_id)
    rng = np.random.default_rng(0)
    v = (2.0 ** rng.uniform(-40, 15.99, 20000) * rng.choice([-1, 1], 20000)).astype(np.float32)
    error = np.abs(codec.decode(codec.encode(v)).astype(np.float64) - v)
    assert (
        error
        <= codec.relative_error * np.abs(v.astype(np.float64)) + codec.absolute_error(sample=False)
    ).all()


def test_float32_is_exact_and_float16_is_not():
    v = np.array([-1.2345678, -1e-8, -1e30], np.float32)
    assert make_codec("float32").decode(make_codec("float32").encode(v)).tolist() == v.tolist()
    assert make_codec("float16").decode(make_codec("float16").encode(v[:1]))[0] != v[0]


@pytest.mark.parametrize("value", [65520.0, -65520.0, -1e9, 3e38])
def test_float16_refuses_what_would_become_infinite(value):
    v = np.array([-1, value, -np.inf], np.float32)
    with pytest.raises(TargetError, match=r"float16 cannot hold .*--values float32") as e:
        make_codec("float16").encode(v)
    assert f"{np.float32(value):g}" in str(e.value)


def test_float16_takes_the_largest_that_it_can_hold():
    v = np.array([65504, -65504, 65519], np.float32)
    assert make_codec("float16").decode(make_codec("float16").encode(v)).tolist() == [
        65504,
        -65504,
        65504,
    ]


@ids
def test_encoded_width_and_id(codec_id):
    codec = make_codec(codec_id)
    assert codec.id == codec_id
    assert codec.encode(np.zeros(3, np.float32)).dtype == np.dtype(codec_id)
    assert codec_id in CODECS.names()


def test_an_unknown_codec_is_refused_by_name():
    with pytest.raises(ConfigError, match="float17"):
        make_codec("float17")


# -- as whole numbers -----------------------------------------------------------------------------


def of_values(values, odds, estimator="topk"):
    """Targets whose log-probabilities are not looked at: see `stored`."""
    return SoftTargets(
        ids=np.zeros(values.shape, np.int32),
        gaps=np.zeros(values.shape, np.float32),
        log_odds=odds,
        temperatures=(1.0,),
        vocab_size=10,
        estimator=estimator,
    )


@pytest.fixture
def stored(monkeypatch):
    """Have `to_numbers` take these for the log-probabilities."""

    def put(values):
        monkeypatch.setattr("softlabels.codecs.floating.stored_logp", lambda _: values)

    return put


def all_of_float16():
    """Every bit pattern but NaN and +inf, as float32."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    return every[np.isfinite(every) | np.isneginf(every)]


def some_of_float32(seed):
    bits = np.random.default_rng(seed).integers(0, 2**32, 200_000, dtype=np.uint32)
    special = np.array([0.0, -0.0, -np.inf, 1e-45, -1e-45, 3.4e38, -3.4e38, 1, -1], np.float32)
    values = np.concatenate([bits.view(np.float32), special])
    return values[np.isfinite(values) | np.isneginf(values)]


@pytest.mark.parametrize(
    ("codec_id", "values"),
    [("float16", all_of_float16()), ("float32", some_of_float32(0))],
    ids=["float16", "float32"],
)
def test_numbers_are_inverse_to_the_bit_and_ascend_as_values_fall(codec_id, values, stored):
    codec = make_codec(codec_id)
    stored(values[:, None])
    numbers = codec.to_numbers(of_values(values[:, None], values[:, None]), None)
    assert numbers.values.dtype == numbers.odds.dtype == np.uint32
    np.testing.assert_array_equal(numbers.values, numbers.odds)
    for back in (codec.scores(numbers.values), codec.odds(numbers.odds)):
        assert back.dtype == np.float32
        assert back.shape == values[:, None].shape
        np.testing.assert_array_equal(
            back[:, 0].view(np.uint32), values.view(np.uint32)
        )  # -0.0 stays -0.0
    order = np.argsort(numbers.values[:, 0])
    assert (np.diff(values[order]) <= 0).all()
    ascending = np.diff(numbers.values[order, 0].astype(np.int64))
    different = np.diff(values[order].view(np.uint32).astype(np.int64)) != 0
    assert (ascending[different] > 0).all()


@ids
def test_numbers_are_those_of_what_the_profile_open_writes(codec_id):
    codec = make_codec(codec_id)
    rng = np.random.default_rng(0)
    gaps = rng.exponential(4, (500, 9)).astype(np.float32)
    gaps[:, 0] = 0
    gaps[rng.random(gaps.shape) < 0.2] = np.inf
    gaps[:, 0] = 0
    targets = SoftTargets(
        ids=np.tile(np.arange(9, dtype=np.int32), (500, 1)),
        gaps=gaps,
        log_odds=rng.normal(0, 9, (500, 2)).astype(np.float32),
        temperatures=(1.0, 2.0),
        vocab_size=10,
        estimator="topk",
    )
    numbers = codec.to_numbers(targets, None)
    kept = targets.kept
    expected = codec.decode(codec.encode(targets.log_probs(1.0)[kept]))
    np.testing.assert_array_equal(codec.scores(numbers.values[kept]), expected)
    expected = codec.decode(codec.encode(targets.log_odds))
    np.testing.assert_array_equal(codec.odds(numbers.odds), expected)


def test_a_sample_is_numbered_at_its_own_temperature():
    codec = make_codec("float32")
    targets = SoftTargets(
        ids=np.array([[1, 2]], np.int32),
        gaps=np.array([[0, 1]], np.float32),
        log_odds=np.array([[-np.inf]], np.float32),
        temperatures=(2.0,),
        vocab_size=10,
        estimator="sampled",
    )
    scores = codec.scores(codec.to_numbers(targets, np.zeros((1, 2))).values)
    np.testing.assert_array_equal(scores, targets.log_probs(2.0))


def test_float16_refuses_numbers_too():
    targets = of_values(np.zeros((1, 1)), np.array([[-70000.0]], np.float32))
    with pytest.raises(TargetError, match=r"float16 cannot hold -70000"):
        make_codec("float16").to_numbers(targets, None)
