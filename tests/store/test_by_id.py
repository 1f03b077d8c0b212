"""Kept sets in order of id: what comes back, what it saves, and streams that hold anything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabels.codecs.streams import pack, unpack
from softlabels.errors import IntegrityError
from softlabels.format.by_id import class_of, read_by_id, streams_by_id


def by_value(rng, n, k, most, *, ragged=True, spread=40):
    """Numbers and codes `[K, N]` by number and code, as `packed.py` sorts them, and what each position keeps."""
    codes = (
        np.stack([rng.choice(most, k, replace=False) for _ in range(n)]) if n else np.zeros((0, k))
    )
    values = rng.integers(0, spread, (n, k))
    counts = rng.integers(0, k + 1, n) if ragged else np.full(n, k)
    key = values.astype(np.uint64) << np.uint64(32) | codes.astype(np.uint64)
    key[np.arange(k) >= counts[:, None]] = np.iinfo(np.uint64).max
    key.sort(axis=1)
    places = np.ascontiguousarray(key.T)
    return (places >> np.uint64(32)).astype(np.uint32), places.astype(np.uint32), counts


@given(
    n=st.integers(0, 40),
    k=st.integers(1, 9),
    most=st.sampled_from([9, 300, 2**20]),
    ragged=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_numbers_and_codes_come_back(n, k, most, ragged, seed):
    values, codes, counts = by_value(np.random.default_rng(seed), n, k, most, ragged=ragged)
    again, codes_too = read_by_id(counts, k, streams_by_id(values, codes, counts), "s")
    kept = np.arange(k)[:, None] < counts
    np.testing.assert_array_equal(again[kept], values[kept])
    np.testing.assert_array_equal(codes_too[kept], codes[kept])


def test_the_largest_codes_and_numbers():
    top = 2**32 - 1
    values = np.array([[0], [top]], np.uint32)
    codes = np.array([[top], [0]], np.uint32)
    counts = np.array([2])
    again, codes_too = read_by_id(counts, 2, streams_by_id(values, codes, counts), "s")
    np.testing.assert_array_equal(again, values)
    np.testing.assert_array_equal(codes_too, codes)


def test_classes_halve_each_doubling():
    codes = np.array([0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 14, 15, 2**31, 2**32 - 1], np.uint32)
    assert class_of(codes).tolist() == [1, 3, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 63, 65]


def test_it_takes_fewer_bytes_than_by_value():
    """Where numbers are fine: of 64 ids most have a number of their own, and their order is not paid for."""
    rng = np.random.default_rng(0)
    n, k = 2000, 64
    share = 1 / np.arange(1, 3001) ** 1.1
    codes = np.stack([rng.choice(3000, k, replace=False, p=share / share.sum()) for _ in range(n)])
    values = np.sort(rng.integers(0, 400, (n, k)), 1)
    counts = np.full(n, k)
    v, c = (np.ascontiguousarray(x.T).astype(np.uint32) for x in (values, codes))
    ours = sum(len(s.data) for s in streams_by_id(v, c, counts).values())
    steps = np.diff(v, axis=0, prepend=np.zeros((1, n), np.uint32))
    usual = sum(len(pack(x).data) for rows in (steps, c) for x in rows)
    assert ours < 0.97 * usual


@pytest.fixture
def made():
    values, codes, counts = by_value(np.random.default_rng(1), 30, 5, 90)
    return streams_by_id(values, codes, counts), counts


def refusal_of(streams, counts):
    with pytest.raises(IntegrityError) as e:
        read_by_id(counts, 5, streams, "dir/s")
    assert str(e.value).startswith("dir/s: ")
    return str(e.value)


def numbers_of(stream):
    return unpack(stream, np.empty(stream.entries, np.uint32), where="")


def test_streams_that_are_missing_or_of_another_length(made):
    streams, counts = made
    for name in streams:
        less = {n: s for n, s in streams.items() if n != name}
        assert "not decoded" in refusal_of(less, counts) or name in refusal_of(less, counts)
        one_more = pack(np.append(numbers_of(streams[name]), np.uint32(0)))
        refusal_of({**streams, name: one_more}, counts)
    refusal_of(streams, np.append(counts, 1))


def test_entries_in_the_wrong_class(made):
    """The sum is right, and still one class runs out."""
    streams, counts = made
    names = sorted(n for n in streams if n.startswith("ids.") and n != "ids.0")
    first, second = (numbers_of(streams[n]) for n in names[:2])
    moved = {
        **streams,
        names[0]: pack(first[:-1]),
        names[1]: pack(np.append(second, first[-1])),
    }
    assert "too few entries" in refusal_of(moved, counts)


def test_codes_beyond_2_to_the_32_and_numbers_below_0(made):
    streams, counts = made
    huge = np.full(streams["ids.0"].entries, 2**32 - 1, np.uint32)
    assert "leads beyond 2^32" in refusal_of({**streams, "ids.0": pack(huge)}, counts) or (
        "too few entries" in refusal_of({**streams, "ids.0": pack(huge)}, counts)
    )
    name = next(n for n in streams if n.startswith("values."))
    numbers = np.full(streams[name].entries, 2**32 - 1, np.uint32)
    assert "leads below 0" in refusal_of({**streams, name: pack(numbers)}, counts)


def test_a_stream_that_declares_terabytes_is_not_decoded(made):
    streams, counts = made
    streams["ids.0"] = replace(streams["ids.0"], entries=2**40)
    assert "not decoded" in refusal_of(streams, counts)
