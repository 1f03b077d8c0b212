"""Streams: what is packed comes back; whatever else is handed in is refused, and never crashes or hangs."""

from __future__ import annotations

import json
import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pcodec import ChunkConfig, standalone

from softlabels.codecs.streams import Stream, join, pack, pack_series, split, unpack
from softlabels.errors import IntegrityError

kinds = pytest.mark.parametrize("dtype", [np.uint32, np.int64])
MAGIC = b"tests 1"


def decode(stream, dtype, entries=None):
    out = np.empty(stream.entries if entries is None else entries, dtype)
    return unpack(stream, out, where="here")


def refused(stream, dtype, entries=None):
    """Why a stream is refused; it must be in our words."""
    with pytest.raises(IntegrityError, match=r"^here: ") as e:
        decode(stream, dtype, entries)
    return str(e.value)


@given(
    values=hnp.arrays(np.uint32, st.integers(0, 300), elements=st.integers(0, 2**32 - 1))
    | hnp.arrays(np.uint32, st.integers(0, 300), elements=st.integers(0, 5))
    | hnp.arrays(np.int64, st.integers(0, 300), elements=st.integers(-(2**63), 2**63 - 1))
    | hnp.arrays(np.int64, st.integers(0, 300), elements=st.integers(-3, 3)),
)
def test_round_trip(values):
    for code in (pack, pack_series):
        stream = code(values)
        assert stream.entries == len(values)
        assert isinstance(stream.data, bytes)
        assert code(values.copy()) == stream
        np.testing.assert_array_equal(decode(stream, values.dtype), values)


@kinds
def test_large_and_skewed(dtype):
    rng = np.random.default_rng(0)
    values = rng.geometric(0.3, 300_000).astype(dtype)
    stream = pack(values)
    np.testing.assert_array_equal(decode(stream, dtype), values)
    _, counts = np.unique(values, return_counts=True)
    p = counts / len(values)
    entropy = -(p * np.log2(p)).sum() * len(values) / 8
    assert entropy < len(stream.data) < 1.1 * entropy


def test_arrays_that_are_not_contiguous():
    values = np.arange(100, dtype=np.uint32)[::3]
    np.testing.assert_array_equal(decode(pack(values), np.uint32), values)


@kinds
def test_nothing(dtype):
    stream = pack(np.zeros(0, dtype))
    assert stream == Stream(entries=0, data=b"")
    assert len(decode(stream, dtype)) == 0
    assert refused(stream, dtype, 1) == "here: holds 0 entries, expected 1"
    assert "cannot be decoded" in refused(Stream(entries=1, data=b""), dtype)


@kinds
@pytest.mark.parametrize("found", [1, 299, 301, 2**20])
def test_another_length(dtype, found):
    """As declared, and as coded."""
    values = np.random.default_rng(0).integers(0, 99, found).astype(dtype)
    stream = pack(values)
    assert refused(stream, dtype, 300) == f"here: holds {found} entries, expected 300"
    refused(Stream(entries=300, data=stream.data), dtype)
    if found < 2**20:
        refused(Stream(entries=0, data=stream.data), dtype)


@pytest.mark.parametrize("wrote", [np.uint32, np.int64, np.int32, np.float32, np.uint64, np.uint16])
@kinds
def test_another_dtype(dtype, wrote):
    if wrote is not dtype:
        refused(pack(np.arange(1000).astype(wrote)), dtype)


@kinds
def test_something_after_the_end_or_torn(dtype):
    stream = pack(np.random.default_rng(0).integers(0, 99, 1000).astype(dtype))
    for end in [*range(0, 60), *range(60, len(stream.data), 37)]:
        refused(Stream(entries=1000, data=stream.data[:end]), dtype)


@kinds
def test_flipped_bits_are_refused_or_give_other_numbers(dtype):
    """Whether bytes were altered is for checksums to say: here they must do no harm."""
    values = np.random.default_rng(0).integers(0, 99, 500).astype(dtype)
    whole = pack(values).data
    begin = time.perf_counter()
    outcomes = set()
    for place in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[place] ^= 1 << bit
            try:
                found = decode(Stream(entries=500, data=bytes(data)), dtype)
                outcomes.add(found.shape)
            except IntegrityError as e:
                assert str(e).startswith("here: ")  # noqa: PT017
                outcomes.add("refused")
    assert outcomes == {(500,), "refused"}
    assert time.perf_counter() - begin < 60


@kinds
def test_garbage(dtype):
    rng = random.Random(0)
    head = pack(np.arange(300).astype(dtype)).data[:12]
    for trial in range(3000):
        data = rng.randbytes(rng.randrange(200))
        data = data if trial % 2 else head[: rng.randrange(12)] + data
        try:
            decode(Stream(entries=300, data=data), dtype)
        except IntegrityError as e:
            assert str(e).startswith("here: ")  # noqa: PT017


@kinds
def test_other_modes_and_orders_of_pco_are_read(dtype):
    """The reader takes whatever the format allows: another writer may code better."""
    values = np.cumsum(np.random.default_rng(0).integers(0, 9, 3000)).astype(dtype)
    for level in (0, 4, 12):
        data = standalone.simple_compress(values, ChunkConfig(compression_level=level))
        found = decode(Stream(entries=3000, data=bytes(data)), dtype)
        np.testing.assert_array_equal(found, values)


def test_several_chunks():
    data = standalone.simple_compress(
        np.arange(2**19, dtype=np.uint32), ChunkConfig(compression_level=1)
    )
    found = decode(Stream(entries=2**19, data=bytes(data)), np.uint32)
    np.testing.assert_array_equal(found, np.arange(2**19))


# -- files ----------------------------------------------------------------------------------------

STREAMS = {
    "a": pack(np.arange(9, dtype=np.uint32)),
    "b": Stream(entries=0, data=b""),
    "ü": Stream(entries=2, data=b"\n\n"),
}


def test_join_and_split():
    data = join(MAGIC, {"x": [1, "\n"]}, STREAMS)
    assert data == join(MAGIC, {"x": [1, "\n"]}, dict(STREAMS))
    facts, found = split(MAGIC, data, where="f")
    assert facts == {"x": [1, "\n"]}
    assert found == STREAMS
    assert list(found) == list(STREAMS)
    assert split(MAGIC, join(MAGIC, {}, {}), where="f") == ({}, {})


@pytest.mark.parametrize("data", [b"", b"x", MAGIC, MAGIC + b"\n", MAGIC + b"x\n{}\n", b"\n{}\n"])
def test_another_magic_or_no_index(data):
    with pytest.raises(IntegrityError, match=r"^f: does not begin like 'tests 1'"):
        split(MAGIC, data, where="f")


def test_an_index_without_end():
    with pytest.raises(IntegrityError, match="does not begin"):
        split(MAGIC, MAGIC + b"\n" + b"[" * (2**20 + 1) + b"\n", where="f")


@pytest.mark.parametrize(
    "index",
    [
        "",
        "7",
        "null",
        "[]",
        "{}",
        '{"streams": 7}',
        '{"streams": null}',
        '{"streams": [7]}',
        '{"streams": [["a", 1]]}',
        '{"streams": [["a", 1, 2, 3]]}',
        '{"streams": [["a", 1, 3]]}',
        '{"streams": [["a", 1, 1]]}',
        '{"streams": [["a", 1, -1]]}',
        '{"streams": [["a", -1, 2]]}',
        '{"streams": [["a", 1.0, 2]]}',
        '{"streams": [["a", true, 2]]}',
        '{"streams": [["a", 1, 1e400]]}',
        '{"streams": [[7, 1, 2]]}',
        '{"streams": [[["a"], 1, 2]]}',
        '{"streams": [["a", 1, 1], ["a", 1, 1]]}',
        '{"streams": [["a", 1, 3], ["b", 1, -1]]}',
        '{"streams": {"abc": 1}}',
        '{"streams": "abc"}',
        '{"streams": [["a", 1, 2]]',
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 10_000,
        '{"streams": [["a", ' + "9" * 10_000 + ", 2]]}",
        "\x00",
    ],
)
def test_an_index_that_does_not_fit(index):
    data = MAGIC + b"\n" + index.encode() + b"\nxy"
    with pytest.raises(IntegrityError, match=r"^f: its index is malformed"):
        split(MAGIC, data, where="f")


def test_an_index_that_is_not_utf_8():
    with pytest.raises(IntegrityError, match=r"^f: its index is malformed"):
        split(MAGIC, MAGIC + b'\n{"streams": [["\xff", 1, 0]]}\n', where="f")


def test_what_split_allows_it_takes_apart():
    head = json.dumps({"streams": [["a", 1, 2]], "more": 1}).encode()
    assert split(MAGIC, MAGIC + b"\n" + head + b"\nxy", where="f") == (
        {"more": 1},
        {"a": Stream(entries=1, data=b"xy")},
    )


def test_every_truncation_of_a_file_is_refused():
    data = join(MAGIC, {}, STREAMS)
    for end in range(len(data)):
        with pytest.raises(IntegrityError, match=r"^f: "):
            split(MAGIC, data[:end], where="f")
    with pytest.raises(IntegrityError, match="1 bytes beyond its streams"):
        split(MAGIC, data + b"x", where="f")
