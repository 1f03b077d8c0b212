"""Profile packed: what goes in comes out within the codec's bound; whatever else is in a file is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabels.codecs import CODECS, make_codec
from softlabels.codecs.codebook import Codebook
from softlabels.codecs.streams import Stream, pack, unpack
from softlabels.codecs.training import train
from softlabels.core.kept import BUILT_IN
from softlabels.core.rows import Row
from softlabels.core.targets import SoftTargets
from softlabels.errors import IntegrityError, SoftLabelsError, TargetError
from softlabels.format import packed, packed_rows
from softlabels.format.containers.parquet import read_streams
from softlabels.format.dictionaries import DICTIONARY, Dictionaries
from softlabels.format.encoding import decode_shard, dictionary_of, encode_shard, read_statistics
from softlabels.format.manifest import Statistics, load_manifest
from softlabels.format.shard import Reading, Shard
from softlabels.making.commit import adopt_shard
from softlabels.making.plan import load_plan
from softlabels.making.repair import repair_store
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.fakes import build_tiny
from tests.store.made_up import STATISTICS, files_of, identity_of, row_of, targets_of, write_sealed

START = 10
VALUES = [name for name in CODECS.names() if not make_codec(name).samples_only]
ESTIMATORS = ["topk", "topp", "dense", "sampled", "rs"]


def packed_identity(**changes):
    return identity_of(**{"profile": "packed", "values": "nat16", "k": 400, **changes})


def shard_of(rng, segments_of_rows, identity, *, counts=None, learn=0.7, ids_from=0):
    """A shard; `counts` is called for each position's number of kept ids."""
    counts = counts or (lambda: int(rng.integers(1, 7)))
    rows = [row_of(rng, s, identity.teacher.vocab_size, learn) for s in segments_of_rows]
    n = sum(int(r.label_mask.sum()) for r in rows)
    targets = targets_of(rng, [counts() for _ in range(n)], identity, ids_from=ids_from)
    if not identity.targets.keeps.tail:
        targets = replace(targets, log_odds=np.full_like(targets.log_odds, -np.inf))
    return Shard(start_row=START, rows=rows, targets=targets)


def by_id(targets):
    """Ids in ascending order, what is not kept last as 2^31, and the gaps that belong to them."""
    ids = np.where(targets.kept, targets.ids, np.int64(2**31))
    order = np.argsort(ids, axis=1, kind="stable")
    return np.take_along_axis(ids, order, 1), np.take_along_axis(targets.gaps, order, 1)


def at_one(targets):
    return 1.0 if 1.0 in targets.temperatures else targets.temperatures[0]


def assert_rows_same(shard, again):
    assert again.start_row == shard.start_row
    assert len(again.rows) == len(shard.rows)
    for a, b in zip(shard.rows, again.rows, strict=True):
        for name in ("input_ids", "segment_lengths", "documents", "label_mask"):
            x, y = getattr(a, name), getattr(b, name)
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype
    np.testing.assert_array_equal(shard.offsets, again.offsets)


def assert_same(shard, again, identity):
    """Inputs and ids equal; log-probabilities and log-odds within the codec's bound."""
    assert_rows_same(shard, again)
    a, b, codec = shard.targets, again.targets, make_codec(identity.encoding.values)
    facts = [(t.temperatures, t.vocab_size, t.estimator, t.n) for t in (a, b)]
    assert facts[0] == facts[1]
    assert (b.ids.dtype, b.gaps.dtype, b.log_odds.dtype) == (np.int32, np.float32, np.float32)
    assert b.ids.flags.c_contiguous
    b.validate()
    if a.n == 0:
        return
    assert b.k == a.kept.sum(axis=1).max()
    padding = np.broadcast_to(b.ids[:, :1], b.ids.shape)
    np.testing.assert_array_equal(b.ids[~b.kept], padding[~b.kept])
    assert (b.gaps[:, 0] == 0).all()  # the likeliest first
    first = np.where(b.kept, b.gaps, np.float32(np.inf))
    assert (first[:, 1:] >= first[:, :-1]).all()
    (ids, _), (ids_back, gaps_back) = by_id(a), by_id(b)
    np.testing.assert_array_equal(ids[:, : b.k], ids_back)
    t = at_one(a)
    logp, logp_back = a.log_probs(t), b.log_probs(t)
    order = np.argsort(np.where(a.kept, a.ids, np.int64(2**31)), axis=1, kind="stable")
    logp = np.take_along_axis(logp, order, 1)[:, : b.k].astype(np.float64)
    order = np.argsort(np.where(b.kept, b.ids, np.int64(2**31)), axis=1, kind="stable")
    logp_back = np.take_along_axis(logp_back, order, 1)
    kept = np.isfinite(gaps_back)
    v = np.abs(logp[kept])
    reach = np.where(kept, np.abs(logp), 0).max(axis=1, keepdims=True)
    reach = np.broadcast_to(reach, kept.shape)[kept]
    absolute = codec.absolute_error(sample=identity.targets.keeps.sample)
    bound = absolute
    if codec.plain:  # the reader takes differences, and divides by a sum of its own
        bound = codec.relative_error * (v + 2 * reach) + 3 * absolute
    error = np.abs(logp[kept] - logp_back[kept])
    assert (error <= bound + 2e-5 + 2.0**-21 * (1 + reach)).all()
    finite = np.isfinite(a.log_odds)
    np.testing.assert_array_equal(finite, np.isfinite(b.log_odds))
    odds = a.log_odds[finite].astype(np.float64)
    step = codec.relative_error * np.abs(odds) + absolute if codec.plain else codec.odds_step / 2
    assert (np.abs(odds - b.log_odds[finite]) <= step + 2.0**-23 * (1 + np.abs(odds))).all()


def round_trip(shard, identity, *, dictionary=None):
    data = encode_shard(shard, identity, STATISTICS, dictionary=dictionary)
    n, r = shard.targets.n, len(shard.rows)
    find = None if dictionary is None else {dictionary.sha256: dictionary}.__getitem__
    again = decode_shard(
        data,
        Reading(identity=identity, start_row=START, where="s", rows=r, positions=n),
        dictionary=find,
    )
    assert_same(shard, again, identity)
    unknown = decode_shard(
        data, Reading(identity=identity, start_row=START, where="s"), dictionary=find
    )
    assert_equal(again, unknown)
    return data, again


def assert_equal(a, b):
    """To the bit."""
    assert_rows_same(a, b)
    for name in ("ids", "gaps", "log_odds"):
        np.testing.assert_array_equal(getattr(a.targets, name), getattr(b.targets, name))


def dictionary_from(shard):
    """Trained on a shard, as it is read from its file."""
    t = shard.targets
    tokens = packed_rows.contexts(shard.rows)
    data = train(tokens, t.ids, t.kept).to_bytes()
    return Codebook.from_bytes(data, vocab_size=t.vocab_size, where="d")


# -- round trips ----------------------------------------------------------------------------------


@given(
    segments=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
    narrow=st.integers(1, 4),
    spread=st.integers(0, 5),
    learn=st.sampled_from([0.0, 0.3, 1.0]),
    values=st.sampled_from(VALUES),
    estimator=st.sampled_from(ESTIMATORS),
    grid=st.sampled_from([(1.0,), (0.5, 1.0, 2.0, 7.25)]),
    vocab_size=st.sampled_from([20, 300, 151936, 2**31]),
    trained=st.booleans(),
)
def test_round_trip_of_ragged_kept_sets(
    segments, seed, narrow, spread, learn, values, estimator, grid, vocab_size, trained
):
    rng = np.random.default_rng(seed)
    grid = (2.0,) if BUILT_IN[estimator].sample and len(grid) > 1 else grid
    identity = packed_identity(
        values=values, temperatures=grid, estimator=estimator, vocab_size=vocab_size, seed=seed
    )
    counts = lambda: int(rng.integers(narrow, narrow + spread + 1))  # noqa: E731
    book = None
    if trained:  # on other rows: some ids and tokens are known, some not
        some = shard_of(rng, [[20, 20]], identity, counts=counts, learn=1)
        book = dictionary_from(some)
    shard = shard_of(rng, segments, identity, counts=counts, learn=learn)
    if trained and vocab_size > 300:
        known = np.concatenate([some.targets.ids[some.targets.kept], np.arange(30)])
        t = shard.targets
        mapped = np.zeros(t.ids.shape, np.int32)
        for line in mapped:
            line[:] = rng.choice(np.unique(known), t.k, replace=False)
        ids = np.where(t.kept, mapped, mapped[:, :1]).astype(np.int32)
        shard = replace(shard, targets=replace(t, ids=ids))
        tokens = np.concatenate([r.input_ids for r in some.rows])
        rows = [replace(r, input_ids=rng.choice(tokens, len(r.input_ids))) for r in shard.rows]
        shard = replace(shard, rows=rows)
    round_trip(shard, identity, dictionary=book)


@pytest.mark.parametrize("values", ["nat8", "nat64", "float16", "float32"])
@pytest.mark.parametrize(
    ("vocab_size", "ids_from"),
    [
        (2, 0),
        (151936, 0),
        (151936, 2**17),
        (151936, 151936 - 8),
        (262144, 2**17),
        (262144, 262144 - 8),
        (2**31, 2**31 - 8),
    ],
)
@pytest.mark.parametrize("trained", [False, True])
def test_round_trip_of_large_ids(values, vocab_size, ids_from, trained):
    rng = np.random.default_rng(0)
    identity = packed_identity(values=values, vocab_size=vocab_size)
    counts = lambda: min(8, vocab_size)  # noqa: E731
    shard = shard_of(rng, [[9], [5, 6]], identity, counts=counts, learn=1, ids_from=ids_from)
    if ids_from == vocab_size - 8:
        assert shard.targets.ids.max() == vocab_size - 1
    book = (
        dictionary_from(shard_of(rng, [[7]], identity, learn=1, counts=counts)) if trained else None
    )
    round_trip(shard, identity, dictionary=book)


@pytest.mark.parametrize("values", ["nat8", "nat32", "float16"])
@pytest.mark.parametrize(
    ("least", "most"),
    [(64, 64), (65, 65), (60, 70), (128, 128), (129, 129), (100, 140), (1, 300), (256, 257)],
)
@pytest.mark.parametrize("trained", [False, True])
def test_places_that_share_streams(values, least, most, trained):
    """From place 64 on they come in bands; of ragged sets some bands are empty in most positions."""
    rng = np.random.default_rng(least)
    identity = packed_identity(values=values, vocab_size=1000)
    counts = lambda: int(rng.integers(least, most + 1))  # noqa: E731
    shard = shard_of(rng, [[9], [3, 4]], identity, counts=counts, learn=1)
    book = dictionary_from(shard) if trained else None
    data, _ = round_trip(shard, identity, dictionary=book)
    names = {n for n in read_streams(data, where="s") if n.startswith("ids.")}
    bands = [*range(64), 64, 128, 256]
    assert names == {f"ids.{b}" for b in bands if b < shard.targets.k}


def test_a_band_of_positions_that_all_stop_before_it():
    """The rectangle in memory may be wider than any kept set."""
    rng = np.random.default_rng(0)
    identity = packed_identity()
    shard = shard_of(rng, [[9]], identity, counts=lambda: 3, learn=1)
    t = shard.targets
    for wide in (4, 70):
        short = wide - t.k
        wider = replace(
            t,
            ids=np.hstack([t.ids, np.repeat(t.ids[:, :1], short, axis=1)]),
            gaps=np.hstack([t.gaps, np.full((t.n, short), np.inf, np.float32)]),
        )
        data, _ = round_trip(replace(shard, targets=wider), identity)
        assert data == encode_shard(shard, identity, STATISTICS)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("values", VALUES)
def test_rows_without_positions(values, estimator):
    rng = np.random.default_rng(0)
    identity = packed_identity(values=values, estimator=estimator)
    some = [row_of(rng, [4, 3], 300, learn) for learn in (0, 1, 0, 1, 0)]
    targets = targets_of(rng, [3] * 10, identity)
    if BUILT_IN[estimator].sample:
        targets = replace(targets, log_odds=np.full_like(targets.log_odds, -np.inf))
    _, again = round_trip(Shard(start_row=START, rows=some, targets=targets), identity)
    assert [again.row(r).targets.n for r in range(5)] == [0, 5, 0, 5, 0]
    assert again.row(3).index == START + 3
    empty = shard_of(rng, [[3], [2]], identity, learn=0)
    for book in (None, dictionary_from(again)):
        _, nothing = round_trip(empty, identity, dictionary=book)
        assert SoftTargets.concatenate([nothing.targets, again.targets]).n == 10


def test_chats_and_shared_rows():
    """Masks that turn on and off anywhere, segments of one token, documents that share rows."""
    rng = np.random.default_rng(3)
    identity = packed_identity()
    rows = []
    for _ in range(20):
        segments = rng.integers(1, 9, rng.integers(1, 8))
        mask = rng.random(segments.sum()) < rng.choice([0.1, 0.5, 0.95])
        mask[np.cumsum(segments) - 1] = False
        rows.append(
            Row(
                input_ids=rng.integers(0, 300, segments.sum()).astype(np.int32),
                segment_lengths=segments.astype(np.int32),
                documents=rng.integers(-(2**63), 2**63 - 1, len(segments)),
                label_mask=mask,
            )
        )
    n = sum(int(r.label_mask.sum()) for r in rows)
    targets = targets_of(rng, [int(c) for c in rng.integers(1, 9, n)], identity)
    shard = Shard(start_row=START, rows=rows, targets=targets)
    data, _ = round_trip(shard, identity)
    usual = [replace(r, label_mask=packed_rows._usual_mask(r.segment_lengths)) for r in rows]
    n = sum(int(r.label_mask.sum()) for r in usual)
    full = Shard(start_row=START, rows=usual, targets=targets_of(rng, [3] * n, identity))
    data, _ = round_trip(full, identity)
    assert read_streams(data, where="s")["mask_turns"] == Stream(entries=0, data=b"")


@pytest.mark.parametrize("values", ["float16", "float32"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_floats_are_those_of_the_profile_open_to_the_bit(values, estimator):
    rng = np.random.default_rng(1)
    grid = (2.0,) if BUILT_IN[estimator].sample else (0.5, 1.0)
    both = [
        identity_of(values=values, estimator=estimator, temperatures=grid, profile=p, k=16)
        for p in ("open", "packed")
    ]
    shard = shard_of(
        rng, [[30, 9], [20]], both[0], learn=1, counts=lambda: int(rng.integers(1, 17))
    )
    plain, coded = (
        decode_shard(
            encode_shard(shard, i, STATISTICS), Reading(identity=i, start_row=START, where="s")
        )
        for i in both
    )
    assert_rows_same(plain, coded)
    for a, b in zip(by_id(plain.targets), by_id(coded.targets), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(plain.targets.log_odds, coded.targets.log_odds)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("estimator", ["topk", "sampled"])
def test_equal_shards_give_equal_bytes(values, estimator):
    identity = packed_identity(values=values, estimator=estimator)
    one, two = (shard_of(np.random.default_rng(7), [[5], [4]], identity) for _ in range(2))
    data = encode_shard(one, identity, STATISTICS)
    assert encode_shard(two, identity, STATISTICS) == data
    book = dictionary_from(one)
    with_book = encode_shard(one, identity, STATISTICS, dictionary=book)
    assert encode_shard(two, identity, STATISTICS, dictionary=book) == with_book
    if estimator == "topk":  # nor does the order of slots matter
        t = one.targets
        p = np.argsort(np.random.default_rng(1).random(t.ids.shape), axis=1)
        shuffled = replace(
            t, ids=np.take_along_axis(t.ids, p, 1), gaps=np.take_along_axis(t.gaps, p, 1)
        )
        again = encode_shard(replace(one, targets=shuffled), identity, STATISTICS)
        a, b = (
            decode_shard(d, Reading(identity=identity, start_row=START, where="s"))
            for d in (data, again)
        )
        assert_rows_same(a, b)
        np.testing.assert_array_equal(by_id(a.targets)[0], by_id(b.targets)[0])
        np.testing.assert_allclose(a.targets.gaps, b.targets.gaps, atol=1e-5)


def test_a_sample_is_rounded_by_seed_and_row_alone():
    one, two = (packed_identity(estimator="sampled", values="nat8", seed=s) for s in (0, 2**63 - 1))
    shard = shard_of(np.random.default_rng(7), [[30], [30]], one, learn=1, counts=lambda: 6)
    first, other = (round_trip(shard, i)[1] for i in (one, two))
    assert (by_id(first.targets)[1] != by_id(other.targets)[1]).any()
    moved = replace(shard, start_row=START + 1)
    data = encode_shard(moved, one, STATISTICS)
    again = decode_shard(data, Reading(identity=one, start_row=START + 1, where="s"))
    assert (by_id(first.targets)[1] != by_id(again.targets)[1]).any()
    # row 11, whichever shard it is in
    half = Shard(start_row=START + 1, rows=shard.rows[1:], targets=shard.targets[29:])
    data = encode_shard(half, one, STATISTICS)
    alone = decode_shard(data, Reading(identity=one, start_row=START + 1, where="s"))
    np.testing.assert_array_equal(by_id(first.targets)[1][29:], by_id(alone.targets)[1])


def test_statistics_survive():
    identity = packed_identity()
    shard = shard_of(np.random.default_rng(0), [[3]], identity)
    statistics = Statistics(kept_ids=7, kept_mass=[1.25, 0.1], teacher_nll=None)
    for book in (None, dictionary_from(shard)):
        data = encode_shard(shard, identity, statistics, dictionary=book)
        assert read_statistics(data, identity, where="w") == statistics
        assert dictionary_of(data, identity, where="w") == (book and book.sha256)


def test_a_value_that_cannot_be_held():
    rng = np.random.default_rng(0)
    identity = packed_identity(values="nat8")
    shard = shard_of(rng, [[5]], identity, counts=lambda: 2, learn=1)
    gaps = np.array([[0, 1e9]] * 4, np.float32)
    with pytest.raises(TargetError, match="--values float32"):
        encode_shard(
            replace(shard, targets=replace(shard.targets, gaps=gaps)), identity, STATISTICS
        )


def test_a_shard_that_no_reader_would_take_is_not_written(monkeypatch):
    rng = np.random.default_rng(0)
    identity = packed_identity()
    shard = shard_of(rng, [[9]], identity, counts=lambda: 5, learn=1)
    data = encode_shard(shard, identity, STATISTICS)
    monkeypatch.setattr(packed_rows, "DECODED_LIMIT", 8 * 8 * 5)
    with pytest.raises(TargetError, match=r"8 positions with up to 5 ids.*lower --shard-rows"):
        encode_shard(shard, identity, STATISTICS)
    with pytest.raises(TargetError, match=r"^w: a shard of 8 positions"):
        decode_shard(data, Reading(identity=identity, start_row=START, where="w"))


def test_what_is_written_is_read_whatever_seq_len_says():
    """A shard of many short rows holds few tokens, though its rows could be long."""
    rng = np.random.default_rng(0)
    identity = packed_identity()
    corpus = msgspec.structs.replace(identity.corpus, seq_len=2**28)
    long = msgspec.structs.replace(identity, corpus=corpus)
    shard = shard_of(rng, [[3]] * 8, long, learn=1)
    round_trip(shard, long)


# -- streams that lie -----------------------------------------------------------------------------

IDENTITY = packed_identity(vocab_size=300, temperatures=(1.0, 2.0), k=3)


@pytest.fixture(scope="module")
def streams():
    """Three rows with 4, 3 and 5 positions; 1 to 3 kept ids at each."""
    rng = np.random.default_rng(0)
    counts = iter([3, 3, 1, 2, 3, 1, 3, 2, 2, 3, 3, 1])
    shard = shard_of(rng, [[5], [2, 3], [6]], IDENTITY, counts=lambda: next(counts), learn=1)
    assert shard.offsets.tolist() == [0, 4, 7, 12]
    return packed.streams_of(shard, IDENTITY, None)


def numbers_of(stream, dtype=np.uint32):
    return unpack(stream, np.empty(stream.entries, dtype), where="")


def decode(streams, identity=IDENTITY, *, rows=None, positions=None, start_row=START):
    return packed.shard_of(
        streams,
        None,
        Reading(
            identity=identity, start_row=start_row, rows=rows, positions=positions, where="dir/s"
        ),
    )


def refusal_of(streams, kind=(IntegrityError, TargetError), **how):
    with pytest.raises(SoftLabelsError) as e:
        decode(streams, **how)
    assert isinstance(e.value, kind), e.value
    assert str(e.value).startswith("dir/s: ")
    return str(e.value)


def with_numbers(streams, name, values, dtype=np.uint32):
    return {**streams, name: pack(np.asarray(values).astype(dtype))}


def test_the_unaltered_streams_are_read_in_any_order_and_with_others(streams):
    shard = decode(streams)
    assert shard.targets.n == 12
    assert_equal(
        decode({"more": pack(np.ones(3, np.uint32)), **dict(reversed(streams.items()))}), shard
    )
    assert_equal(decode(streams, rows=3, positions=12), shard)


def names_of(streams):
    return [n for n in streams if n != "input_digest"]


def test_every_stream_is_needed_and_of_its_length(streams):
    assert set(streams) == {
        "order_classes", "order", "input_digest", "tokens", "input_ids", "segments", "segment_lengths",
        "documents", "mask_turns", "kept", "log_odds_T1", "log_odds_T2",
        "values.0", "values.1", "values.2", "ids.0", "ids.1", "ids.2",
    }  # fmt: skip
    for name, stream in streams.items():
        said = refusal_of({n: s for n, s in streams.items() if n != name}, IntegrityError)
        assert f"stream {name!r}" in said
        for entries in (0, stream.entries - 1, stream.entries + 1, 2**24 + 1, 2**40, 2**62):
            if entries not in (stream.entries, -1):
                refusal_of({**streams, name: Stream(entries=entries, data=stream.data)})
        if name == "input_digest" or not stream.entries:
            continue
        dtype = np.int64 if name == "documents" else np.uint32
        values = numbers_of(stream, dtype)
        refusal_of(with_numbers(streams, name, values[:-1], dtype))
        refusal_of(with_numbers(streams, name, [*values, values[-1]], dtype))
        refusal_of(with_numbers(streams, name, values, np.uint64))
        refusal_of({**streams, name: Stream(entries=stream.entries, data=stream.data[:-1])})


def test_streams_of_another_shard(streams):
    """Each of them is well made."""
    rng = np.random.default_rng(1)
    other = packed.streams_of(
        shard_of(rng, [[7], [2, 8], [6]], IDENTITY, counts=lambda: 2, learn=1), IDENTITY, None
    )
    for name in streams:
        if other.get(name, streams[name]) != streams[name] and name != "documents":
            refusal_of({**streams, name: other[name]})


def test_another_number_of_rows_or_positions(streams):
    assert "holds 3 rows, expected 4" in refusal_of(streams, rows=4)
    assert "have 12 positions, the manifest says 13" in refusal_of(streams, positions=13)
    digests = streams["input_digest"]
    torn = Stream(entries=3, data=digests.data[:-1])
    assert "'input_digest': is torn" in refusal_of({**streams, "input_digest": torn})
    swapped = Stream(entries=3, data=digests.data[16:] + digests.data[:16])
    said = refusal_of({**streams, "input_digest": swapped})
    assert "row 10 does not hold the inputs that its digest names" in said
    assert "row 77 does not" in refusal_of({**streams, "input_digest": swapped}, start_row=77)
    nothing = {**streams, "input_digest": Stream(entries=0, data=b"")}
    refusal_of(with_numbers(nothing, "tokens", []))


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("tokens", [5, 5, 65], "expected 1..64"),
        ("tokens", [5, 0, 11], "expected 1..64"),
        ("tokens", [2**32 - 1, 5, 6], ""),
        ("tokens", [4, 6, 6], ""),
        ("segments", [1, 2, 14], "17 segments of 16 tokens"),
        ("segments", [2**32 - 1, 2**32 - 1, 2**32 - 1], "segments of 16 tokens"),
        ("segments", [0, 3, 1], "segment_lengths do not sum"),
        ("segments", [2, 1, 1], "segment_lengths do not sum"),
        ("segment_lengths", [5, 2, 3, 7], "do not sum to the 16 tokens"),
        ("segment_lengths", [5, 0, 5, 6], "do not sum to the 16 tokens"),
        ("segment_lengths", [5, 2, 2**32 - 1, 2**31], "do not sum to the 16 tokens"),
        ("segment_lengths", [5, 2**32 - 1, 4, 8], "do not sum to the 16 tokens"),
        ("mask_turns", [16], "lead beyond the 16 tokens"),
        ("mask_turns", [2**32 - 1], "lead beyond the 16 tokens"),
        ("mask_turns", [9, 2**32 - 8], "lead beyond the 16 tokens"),
        ("mask_turns", [1, 1], "row 10 does not hold the inputs"),
        ("mask_turns", [4, 1], "asks for a token beyond the end of a document"),
        ("mask_turns", [0] * 17, "more than 16 entries"),
        ("kept", [0, 3, 1, 2, 3, 1, 3, 2, 2, 3, 3, 1], ""),
        ("kept", [4, 3, 1, 2, 3, 1, 3, 2, 2, 3, 3, 1], "keeps 4 ids, the manifest says at most 3"),
        ("kept", [2**32 - 1] * 12, "keeps 4294967295 ids"),
        ("kept", [0] * 12, "position 0 has an empty kept set"),
        ("log_odds_T1", [2**32 - 1] * 12, "a kept set without any mass"),
    ],
)
def test_numbers_that_contradict_each_other(streams, name, values, says):
    assert says in refusal_of(with_numbers(streams, name, values))


@pytest.mark.parametrize("number", [2**31, 2**32 - 1, 2**32 - 300, 600, 1300])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_ids_beyond_the_vocabulary(streams, number, place):
    """Sums of steps must not wrap around into it."""
    for slot in range(streams[f"ids.{place}"].entries):
        values = numbers_of(streams[f"ids.{place}"])
        values[slot] = number
        assert "an id outside 0..299" in refusal_of(with_numbers(streams, f"ids.{place}", values))
    values = numbers_of(streams["input_ids"])
    values[3] = number
    said = refusal_of(with_numbers(streams, "input_ids", values))
    assert "row 10 has an input id outside 0..299" in said


def test_a_code_beyond_everything_is_no_id_of_the_largest_vocabulary():
    identity = packed_identity(vocab_size=2**31)
    shard = shard_of(np.random.default_rng(0), [[5]], identity, counts=lambda: 2, learn=1)
    streams = packed.streams_of(shard, identity, None)
    for name in ("ids.0", "input_ids"):
        values = numbers_of(streams[name])
        values[1] = 2**32 - 1
        assert "outside 0..2147483647" in refusal_of(
            with_numbers(streams, name, values), identity=identity
        )


def test_values_that_wrap_around(streams):
    """The second would be likelier than the first."""
    values = numbers_of(streams["values.1"])
    values[2] = 2**32 - 1
    both = with_numbers(streams, "values.1", values)
    first = numbers_of(streams["values.0"])
    first[:] = 5
    assert "a gap that is negative" in refusal_of(with_numbers(both, "values.0", first))


@pytest.mark.parametrize("values", ["float16", "float32"])
def test_numbers_that_are_no_floats(values):
    identity = packed_identity(values=values, k=3)
    shard = shard_of(np.random.default_rng(0), [[5]], identity, counts=lambda: 2, learn=1)
    streams = packed.streams_of(shard, identity, None)
    largest = 2**16 if values == "float16" else 2**32
    for name, number in (("values.0", 0), ("values.0", largest - 1), ("log_odds_T1", 0)):
        some = numbers_of(streams[name])
        some[1] = number  # NaN
        refusal_of(with_numbers(streams, name, some), TargetError, identity=identity)
    if values == "float16":
        some = numbers_of(streams["values.0"]) + np.uint32(
            2**16
        )  # the same bits, spelled otherwise
        refusal_of(with_numbers(streams, "values.0", some), identity=identity)


def test_an_order_that_lies(streams):
    order, classes = numbers_of(streams["order"]), numbers_of(streams["order_classes"])
    many = order.copy()
    many[0] = 300
    assert "outside 0..299" in refusal_of(with_numbers(streams, "order", many))
    starts = np.cumsum(classes) - classes
    inside = next(i for i in range(len(order)) if i not in starts)
    twice = order.copy()
    twice[inside] = 0
    assert "twice" in refusal_of(with_numbers(streams, "order", twice))
    assert "do not add up" in refusal_of(with_numbers(streams, "order_classes", [*classes, 1]))


def test_noise_in_the_streams_is_refused_or_is_another_shard(streams):
    """Whatever numbers are in them: no crash, and nothing out of range."""
    rng = np.random.default_rng(0)
    names = names_of(streams)
    for trial in range(1500):
        name = names[trial % len(names)]
        dtype = np.int64 if name == "documents" else np.uint32
        values = numbers_of(streams[name], dtype)
        if not len(values):
            continue
        slots = rng.integers(0, len(values), rng.integers(1, 4))
        values[slots] = rng.choice([0, 1, 2, 7, 255, 299, 300, 2**16, 2**31 - 1, 2**31], len(slots))
        try:
            shard = decode(with_numbers(streams, name, values, dtype))
        except SoftLabelsError as e:
            assert str(e).startswith("dir/s: ")  # noqa: PT017
        else:
            shard.targets.validate(unique=False)
            assert shard.targets.n == 12


# -- files that lie -------------------------------------------------------------------------------


def in_parquet(columns, types=None, **how):
    sink = io.BytesIO()
    table = pa.table(
        {
            n: pa.array(v, None if types is None else types[i])
            for i, (n, v) in enumerate(columns.items())
        }
    )
    pq.write_table(table, sink, **{"compression": "none", "use_dictionary": False, **how})
    return sink.getvalue()


def columns_of(streams):
    return {
        "stream": list(streams),
        "entries": [s.entries for s in streams.values()],
        "data": [s.data for s in streams.values()],
    }


def file_refusal(data):
    with pytest.raises(IntegrityError, match=r"^dir/s: ") as e:
        decode_shard(data, Reading(identity=IDENTITY, start_row=START, where="dir/s"))
    return str(e.value)


def test_whoever_wrote_the_file(streams):
    expected = decode(streams)
    found = decode_shard(
        in_parquet(columns_of(streams)), Reading(identity=IDENTITY, start_row=START, where="w")
    )
    assert_equal(found, expected)
    more = {"note": ["x"] * len(streams), **dict(reversed(columns_of(streams).items()))}
    for how in ({}, {"data_page_version": "2.0"}, {"row_group_size": 3}, {"compression": "zstd"}):
        data = in_parquet(more, **how)
        assert_equal(
            decode_shard(data, Reading(identity=IDENTITY, start_row=START, where="w")), expected
        )


def test_tables_that_are_not_of_streams(streams):
    columns = columns_of(streams)
    assert "not a readable Parquet" in file_refusal(b"")
    assert "has no column 'data'" in file_refusal(
        in_parquet({k: columns[k] for k in ("stream", "entries")})
    )
    assert "nulls" in file_refusal(in_parquet({**columns, "data": [None, *columns["data"][1:]]}))
    assert "nulls" in file_refusal(
        in_parquet({**columns, "entries": [None, *columns["entries"][1:]]})
    )
    assert "nulls" in file_refusal(
        in_parquet({**columns, "stream": [None, *columns["stream"][1:]]})
    )
    other = [pa.string(), pa.int32(), pa.binary()]
    small = {**columns, "entries": [min(n, 9) for n in columns["entries"]]}
    assert "expected" in file_refusal(in_parquet(small, other))
    assert "expected" in file_refusal(in_parquet(columns, [pa.binary(), pa.int64(), pa.binary()]))
    negative = [-1, *columns["entries"][1:]]
    assert "less than no entries" in file_refusal(in_parquet({**columns, "entries": negative}))
    twice = {k: [*v, v[0]] for k, v in columns.items()}
    assert "there twice" in file_refusal(in_parquet(twice))
    nothing = {k: v[:0] for k, v in columns.items()}
    file_refusal(in_parquet(nothing, [pa.string(), pa.int64(), pa.binary()]))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize(
    "how",
    [
        {"use_dictionary": ["data"]},
        {"use_dictionary": ["stream"]},
        {"column_encoding": {"data": "DELTA_BYTE_ARRAY"}},
        {"column_encoding": {"stream": "DELTA_BYTE_ARRAY"}},
    ],
)
def test_streams_that_refer_to_each_other_are_not_decoded(streams, how, version):
    """One of a megabyte could stand for a thousand."""
    data = in_parquet(columns_of(streams), data_page_version=version, **how)
    assert "is coded once more" in file_refusal(data)


def test_a_stream_whose_name_is_not_utf_8(streams):
    data = in_parquet({**columns_of(streams), "stream": [*list(streams)[:-1], "qqqq"]})
    assert data.count(b"qqqq") > 0
    file_refusal(data.replace(b"qqqq", b"\xff\xfe\xff\xfe"))


def test_a_profile_open_file_is_not_one_of_streams():
    rng = np.random.default_rng(0)
    plain = identity_of(values="float16")
    data = encode_shard(shard_of(rng, [[5]], plain), plain, STATISTICS)
    assert "has no column 'stream'" in file_refusal(data)
    coded = identity_of(values="float16", profile="packed")
    data = encode_shard(shard_of(rng, [[5]], coded), coded, STATISTICS)
    with pytest.raises(IntegrityError, match="has no column 'row'"):
        decode_shard(data, Reading(identity=plain, start_row=START, where="w"))


@pytest.mark.parametrize("trained", [False, True])
def test_every_flipped_bit_is_refused_or_reads_equal(trained):
    """Every bit of the file: pages have checksums, and what the footer says is compared with them."""
    rng = np.random.default_rng(0)
    identity = packed_identity(vocab_size=40, k=2)
    shard = shard_of(rng, [[4], [2, 2]], identity, counts=lambda: int(rng.integers(1, 3)), learn=1)
    book = dictionary_from(shard) if trained else None
    find = None if book is None else {book.sha256: book}.get

    def finding(sha256):
        if find is None or (found := find(sha256)) is None:
            raise IntegrityError("dir/s: no such dictionary")
        return found

    data = encode_shard(shard, identity, STATISTICS, dictionary=book)
    right = decode_shard(
        data, Reading(identity=identity, start_row=START, where="dir/s"), dictionary=finding
    )
    equal = 0
    told = Reading(identity=identity, start_row=START, where="dir/s", rows=2, positions=5)
    for place in range(len(data)):
        for bit in range(8):
            bad = bytearray(data)
            bad[place] ^= 1 << bit
            try:
                found = decode_shard(bytes(bad), told, dictionary=finding)
            except SoftLabelsError as e:
                assert str(e).startswith("dir/s: "), e  # noqa: PT017
                continue
            assert_equal(found, right)
            equal += 1
    assert equal < 8 * len(data) / 2  # most of it is looked at


# -- stores with a dictionary ---------------------------------------------------------------------


JOB = {"limit_rows": 8, "shard_rows": 3, "profile": "packed", "values": "nat16"}
SHARDS = [f"data/train-{i:05d}-of-00003.parquet" for i in range(3)]


@pytest.fixture(scope="module")
def packed_store(tmp_path_factory, corpus) -> Path:
    """Read only: never write here."""
    store = tmp_path_factory.mktemp("packed") / "store"
    build_tiny(store, corpus, **JOB)
    return store


@pytest.fixture(scope="module")
def with_dictionary(tmp_path_factory, packed_store) -> Path:
    """The same shards coded with a dictionary, as a build may make them. Read only."""
    store = Path(shutil.copytree(packed_store, tmp_path_factory.mktemp("dictionary") / "store"))
    manifest = load_manifest(store)
    identity = manifest.identity
    opened = open_store(store)
    shards = [opened.read_shard(i) for i in range(3)]
    book = dictionary_from(shards[0])
    file = book.to_bytes()
    (store / DICTIONARY).parent.mkdir()
    (store / DICTIONARY).write_bytes(file)
    record = {"sha256": hashlib.sha256(file).hexdigest(), "bytes": len(file)}
    plan = json.loads((store / "plan.json").read_bytes())
    plan["files"][DICTIONARY] = record
    write_sealed(store / "plan.json", plan)
    digest = json.loads((store / "plan.json").read_bytes())["digest"]
    raw = json.loads((store / "manifest.json").read_bytes())
    raw["files"][DICTIONARY] = record
    for i, shard in enumerate(shards):
        path = store / SHARDS[i]
        statistics = read_statistics(path.read_bytes(), identity, where="s")
        data = encode_shard(shard, identity, statistics, dictionary=book)
        path.write_bytes(data)
        about = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        raw["shards"][i] |= about
        commit = json.loads((store / f"commits/{i:05d}.json").read_bytes())
        write_sealed(store / f"commits/{i:05d}.json", commit | about | {"plan_digest": digest})
    write_sealed(store / "manifest.json", raw)
    return store


@pytest.fixture
def broken(with_dictionary, tmp_path) -> Path:
    """A copy of `with_dictionary`, to break."""
    return Path(shutil.copytree(with_dictionary, tmp_path / "store"))


def test_a_store_with_a_dictionary_is_as_good(with_dictionary, packed_store):
    assert verify_store(with_dictionary).problems == []
    repair = repair_store(with_dictionary)
    assert (repair.actions, repair.problems) == ([], [])
    for a, b in zip(open_store(with_dictionary), open_store(packed_store), strict=True):
        for x, y in zip(by_id(a.targets), by_id(b.targets), strict=True):
            np.testing.assert_array_equal(x, y)
    names = [dictionary_of((with_dictionary / n).read_bytes(), load_manifest(with_dictionary).identity, where="")
             for n in SHARDS]  # fmt: skip
    assert names == [hashlib.sha256((with_dictionary / DICTIONARY).read_bytes()).hexdigest()] * 3


CHANGES = ["missing", "altered", "torn", "another", "empty"]


def change_dictionary(store, change):
    path = store / DICTIONARY
    data = path.read_bytes()
    if change == "missing":
        path.unlink()
    elif change == "altered":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif change == "torn":
        path.write_bytes(data[:-1])
    elif change == "another":
        book = train(np.array([1], np.int32), np.array([[2]], np.int32), np.ones((1, 1), bool))
        path.write_bytes(book.to_bytes())
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("change", CHANGES)
def test_without_its_dictionary_a_store_says_so(broken, change):
    change_dictionary(broken, change)
    opened = open_store(broken)
    with pytest.raises(IntegrityError, match=r"dictionaries/00000\.bin"):
        opened.row(0)
    problems = verify_store(broken).problems
    assert len(problems) == 4  # the file itself, and each shard
    assert all(DICTIONARY in p for p in problems)
    shallow = verify_store(broken, deep=False).problems
    assert len(shallow) == 1
    assert DICTIONARY in shallow[0]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("also", ["nothing", "record", "manifest", "shard"])
def test_repair_changes_nothing_without_the_dictionary(broken, change, also):
    sha256 = hashlib.sha256((broken / DICTIONARY).read_bytes()).hexdigest()
    change_dictionary(broken, change)
    if also == "record":
        (broken / "commits/00001.json").unlink()
    elif also == "manifest":
        (broken / "manifest.json").unlink()
    elif also == "shard":
        (broken / SHARDS[0]).unlink()
    before = files_of(broken)
    for dry_run in (True, False):
        with pytest.raises(IntegrityError, match="nothing was changed") as e:
            repair_store(broken, dry_run=dry_run)
        assert f"{broken / 'dictionaries'}: holds no dictionary of sha256 {sha256[:12]}" in str(
            e.value
        )
        assert files_of(broken) == before


@pytest.mark.parametrize("change", CHANGES)
def test_a_shard_is_not_thrown_away_for_want_of_its_dictionary(broken, change):
    plan = load_plan(broken)
    (broken / "commits/00001.json").unlink()
    was = (broken / DICTIONARY).read_bytes()
    change_dictionary(broken, change)
    data = (broken / SHARDS[1]).read_bytes()
    with pytest.raises(IntegrityError, match="holds no dictionary of sha256"):
        adopt_shard(broken, plan, plan.shards[1], notice=print)
    assert (broken / SHARDS[1]).read_bytes() == data
    (broken / DICTIONARY).write_bytes(was)
    assert adopt_shard(broken, plan, plan.shards[1], notice=print) is not None
    assert verify_store(broken).problems == []


def test_repair_with_the_dictionary_there(broken):
    (broken / "commits/00001.json").unlink()
    (broken / "manifest.json").unlink()
    assert repair_store(broken).whole
    assert verify_store(broken).problems == []
    data = (broken / SHARDS[2]).read_bytes()
    (broken / SHARDS[2]).write_bytes(data[:-9] + b"?" + data[-8:])
    assert repair_store(broken).rebuild == [SHARDS[2]]
    assert not (broken / SHARDS[2]).exists()
    assert (broken / DICTIONARY).exists()


@pytest.mark.parametrize("stranger", ["dangling", "loop", "folder", "pipe", "huge", "noise"])
def test_strangers_beside_the_dictionary_are_passed_over(broken, stranger):
    """While a store is made, or mended, dictionaries are whatever lies in their folder."""
    path = broken / "dictionaries" / "00000-first.bin"
    if stranger in ("dangling", "loop"):
        path.symlink_to(path if stranger == "loop" else "nowhere")
    elif stranger == "folder":
        path.mkdir()
    elif stranger == "pipe":
        os.mkfifo(path)
    elif stranger == "huge":
        with path.open("wb") as f:
            f.truncate(2**40)
    else:
        path.write_bytes(b"noise")
    sha256 = hashlib.sha256((broken / DICTIONARY).read_bytes()).hexdigest()
    assert Dictionaries(broken, 300)(sha256).sha256 == sha256
    (broken / DICTIONARY).unlink()
    with pytest.raises(IntegrityError, match="holds no dictionary of sha256"):
        Dictionaries(broken, 300)(sha256)


def test_a_dictionary_of_another_vocabulary(broken):
    sha256 = hashlib.sha256((broken / DICTIONARY).read_bytes()).hexdigest()
    with pytest.raises(IntegrityError, match=r"00000\.bin: .*more than 10 entries"):
        Dictionaries(broken, 10)(sha256)


def test_a_shard_that_asks_for_a_dictionary_where_nobody_finds_any(with_dictionary):
    manifest = load_manifest(with_dictionary)
    data = (with_dictionary / SHARDS[0]).read_bytes()
    with pytest.raises(IntegrityError, match="w: needs the dictionary"):
        decode_shard(data, Reading(identity=manifest.identity, start_row=0, where="w"))


@pytest.mark.parametrize("deep", [True, False])
def test_verify_finds_flipped_bits(broken, deep):
    """Of any file; every bit of one small shard is looked at above."""
    rng = np.random.default_rng(0)
    whole = files_of(broken)
    names = sorted(n for n in whole if n.startswith(("data/", "dictionaries/")))
    for trial in range(80):
        name = names[trial % len(names)]
        bad = bytearray(whole[name])
        bad[int(rng.integers(len(bad)))] ^= 1 << int(rng.integers(8))
        (broken / name).write_bytes(bytes(bad))
        problems = verify_store(broken, deep=deep).problems
        assert problems
        assert all(str(broken / name) in p for p in problems)
        (broken / name).write_bytes(whole[name])
    assert verify_store(broken, deep=deep).problems == []
