"""The float codecs hold what they are given within the bound that they declare."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from softlabels.codecs import CODECS, make_codec
from softlabels.errors import ConfigError, TargetError

ids = pytest.mark.parametrize("codec_id", ["float16", "float32"])
values32 = st.floats(-65504, 65504, width=32) | st.floats(-20, 0, width=32) | st.just(-np.inf)


@ids
@settings(deadline=None, max_examples=200)
@given(values=hnp.arrays(np.float32, st.integers(0, 40), elements=values32))
def test_error_is_within_the_declared_bound(codec_id, values):
    codec = make_codec(codec_id)
    decoded = codec.decode(codec.encode(values))
    assert decoded.dtype == np.float32
    assert decoded.shape == values.shape
    finite = np.isfinite(values)
    assert (decoded[~finite] == -np.inf).all()
    v, d = values[finite].astype(np.float64), decoded[finite].astype(np.float64)
    assert (np.abs(d - v) <= codec.relative_error * np.abs(v) + codec.absolute_error("topk")).all()


@ids
def test_the_declared_bound_on_every_scale(codec_id):
    """Down to the smallest numbers, where half precision has no relative precision left."""
    codec = make_codec(codec_id)
    rng = np.random.default_rng(0)
    v = (2.0 ** rng.uniform(-40, 15.99, 20000) * rng.choice([-1, 1], 20000)).astype(np.float32)
    error = np.abs(codec.decode(codec.encode(v)).astype(np.float64) - v)
    assert (
        error <= codec.relative_error * np.abs(v.astype(np.float64)) + codec.absolute_error("topk")
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
