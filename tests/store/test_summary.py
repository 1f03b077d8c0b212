"""Summaries of positions in files: their bounds, every profile and container, and what is refused."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabels.codecs import summary as codec
from softlabels.codecs.streams import pack, unpack
from softlabels.core.summary import Summary
from softlabels.core.targets import SoftTargets
from softlabels.errors import FormatError, IntegrityError, TargetError
from softlabels.format import packed
from softlabels.format.encoding import check_round_trip, decode_shard, encode_shard
from softlabels.format.shard import Reading, Shard
from softlabels.format.summaries import summary_record
from tests.store.made_up import STATISTICS, identity_of, row_of, targets_of

V = 300
FORMS = [(p, c) for p in ("open", "packed") for c in ("parquet", "zarr")]


# -- the codec ------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 21.375, width=32), min_size=1, max_size=50))
def test_entropies_are_within_their_bound_and_stay_what_they_became(values):
    h = np.array(values, np.float32)
    held = codec.held_entropy(h).astype(np.float32)
    assert (np.abs(held - h) <= codec.entropy_bound(h)).all()
    assert (codec.entropy_bound(h) <= 0.0157 * np.sqrt(h) + h / 2000 + 0.0002).all()
    np.testing.assert_array_equal(codec.entropy_of_numbers(codec.entropy_to_numbers(h)), held)
    np.testing.assert_array_equal(codec.held_entropy(held), held.astype(np.float16))


@given(st.lists(st.floats(max_value=0, width=32, allow_nan=False), min_size=1, max_size=50))
def test_log_probabilities_are_binary16_or_minus_infinity(values):
    logp = np.array(values, np.float32)
    held = codec.held_label_logp(logp).astype(np.float32)
    finite = logp > -65504
    bound = 2.0**-11 * np.abs(logp) + 2.0**-25
    assert (np.abs(held[finite] - logp[finite]) <= bound[finite]).all()
    assert np.isneginf(held[logp < -65536]).all()
    again = codec.label_logp_of_numbers(codec.label_logp_to_numbers(logp))
    np.testing.assert_array_equal(again, held)


def test_what_is_not_known_stays_so_and_every_code_is_one_value():
    nothing = np.full(3, np.nan, np.float32)
    assert codec.entropy_to_numbers(nothing).tolist() == [0, 0, 0]
    assert codec.label_logp_to_numbers(nothing).tolist() == [0, 0, 0]
    assert np.isnan(codec.entropy_of_numbers(np.zeros(2, np.uint32))).all()
    assert np.isnan(codec.label_logp_of_numbers(np.zeros(2, np.uint32))).all()
    steps = np.arange(299, dtype=np.uint32)
    values = codec.entropy_of_numbers(steps)
    assert (np.diff(values[1:]) > 0).all()
    np.testing.assert_array_equal(codec.entropy_to_numbers(values), steps)
    bits = np.arange(0x7C02, dtype=np.uint32)
    np.testing.assert_array_equal(
        codec.label_logp_to_numbers(codec.label_logp_of_numbers(bits)), bits
    )
    for decode, beyond in (
        (codec.entropy_of_numbers, 299),
        (codec.label_logp_of_numbers, 0x7C02),
    ):
        with pytest.raises(ValueError, match="expected at most"):
            decode(np.array([beyond], np.uint32))


# -- shards ---------------------------------------------------------------------------------------


def identity(profile="open", container="parquet", values=None, **changes):
    values = values or ("float16" if profile == "open" else "nat16")
    made = identity_of(profile=profile, container=container, values=values, **changes)
    targets = msgspec.structs.replace(made.targets, positions="random:0.5")
    return msgspec.structs.replace(
        made, summary=summary_record(made.teacher.vocab_size), targets=targets
    )


def summary_of(rng, t: SoftTargets) -> Summary:
    """Any: tops kept at any place or not at all, some numbers unknown."""
    slot = rng.integers(0, t.k, t.n)
    top = np.where(rng.random(t.n) < 0.6, t.ids[np.arange(t.n), slot], -1)
    top = np.where(rng.random(t.n) < 0.3, rng.integers(0, t.vocab_size, t.n), top)
    logp = -rng.gamma(1.0, 4.0, t.n)
    entropy = np.minimum(rng.gamma(1.0, 2.0, t.n), 21.0)  # of 2^31 ids at most 21.5
    logp[rng.random(t.n) < 0.2] = np.nan
    logp[rng.random(t.n) < 0.1] = -np.inf
    entropy[rng.random(t.n) < 0.2] = np.nan
    return Summary(
        label_logp=logp.astype(np.float32),
        entropy=entropy.astype(np.float32),
        top=top.astype(np.int32),
    )


def shard_of(seed: int, made, segments=((9, 4), (7,), (12, 1))) -> Shard:
    rng = np.random.default_rng(seed)
    rows = [row_of(rng, list(s), min(made.teacher.vocab_size, V)) for s in segments]
    n = sum(r.n for r in rows)
    t = targets_of(rng, rng.integers(1, 6, n).tolist(), made)
    t = t.hard_label_only(rng.random(n) < 0.4)
    return Shard(start_row=0, rows=rows, targets=dataclasses.replace(t, summary=summary_of(rng, t)))


@given(
    seed=st.integers(0, 2**32),
    form=st.sampled_from(FORMS),
    estimator=st.sampled_from(["topk", "sampled"]),
    vocab_size=st.sampled_from([20, V, 2**31]),
)
def test_they_come_back_in_every_profile_and_container(seed, form, estimator, vocab_size):
    made = identity(*form, estimator=estimator, vocab_size=vocab_size)
    shard = shard_of(seed, made)
    data = encode_shard(shard, made, STATISTICS)
    check_round_trip(shard, data, made, lambda sha256: None, where="s")
    given, found = (
        shard.targets.summary,
        decode_shard(data, Reading(identity=made, start_row=0, where="s")),
    )
    held = found.targets.summary
    np.testing.assert_array_equal(held.top, given.top)
    np.testing.assert_array_equal(held.label_logp, codec.held_label_logp(given.label_logp))
    np.testing.assert_array_equal(held.entropy, codec.held_entropy(given.entropy))
    again = encode_shard(found, made, STATISTICS)
    twice = decode_shard(again, Reading(identity=made, start_row=0, where="s")).targets.summary
    for name in ("top", "label_logp", "entropy"):
        np.testing.assert_array_equal(getattr(twice, name), getattr(held, name), err_msg=name)


def test_a_store_without_them_has_not_a_byte_of_them():
    made = msgspec.structs.replace(identity(), summary=None)
    shard = shard_of(1, made)
    bare = dataclasses.replace(shard, targets=dataclasses.replace(shard.targets, summary=None))
    assert encode_shard(shard, made, STATISTICS) == encode_shard(bare, made, STATISTICS)
    assert "summary" not in msgspec.to_builtins(made)
    assert (
        decode_shard(
            encode_shard(bare, made, STATISTICS), Reading(identity=made, start_row=0, where="s")
        ).targets.summary
        is None
    )


def test_a_store_with_them_needs_them():
    made = identity()
    shard = shard_of(1, made)
    bare = dataclasses.replace(shard, targets=dataclasses.replace(shard.targets, summary=None))
    with pytest.raises(TargetError, match="holds a summary of each position"):
        encode_shard(bare, made, STATISTICS)
    wrong = msgspec.structs.replace(made.summary, entropy="byte")
    with pytest.raises(FormatError, match="'byte', known are 'float16' and 'root64'"):
        encode_shard(shard, msgspec.structs.replace(made, summary=wrong), STATISTICS)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("top", 2**32 - 1, "likeliest id|leads beyond"),
        ("entropy", 299, "a number of 299, expected at most 298"),
        ("label_logp", 0x7C02, "expected at most"),
    ],
)
def test_streams_that_stand_for_nothing_are_refused(name, value, said):
    made = identity("packed")
    shard = shard_of(2, made)
    streams = packed.streams_of(shard, made, None)
    numbers = unpack(streams[name], np.empty(shard.targets.n, np.uint32), where="")
    numbers[3] = value
    how = {"start_row": 0, "rows": 3, "positions": shard.targets.n, "where": "s"}
    with pytest.raises((IntegrityError, TargetError), match=said):
        packed.shard_of(streams | {name: pack(numbers)}, None, Reading(identity=made, **how))
    for torn in (
        {k: v for k, v in streams.items() if k != name},
        streams | {name: pack(numbers[1:])},
    ):
        with pytest.raises(IntegrityError, match=name):
            packed.shard_of(torn, None, Reading(identity=made, **how))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("top", 99, "position 3 keeps . ids, and its likeliest is said to be number 99"),
        ("top", -1 - V, "position 3 has the likeliest id 300, outside 0..299"),
        ("entropy", -1.0, "position 3 has entropy = -1.0"),
        ("entropy", np.inf, "position 3 has entropy = inf"),
        ("label_logp", 0.5, "position 3 has label_logp = 0.5"),
    ],
)
def test_columns_that_no_teacher_says_are_refused(name, value, said):
    from softlabels.format.plain import columns_of
    from softlabels.format.plain import shard_of as plain_shard

    made = identity()
    columns = columns_of(shard_of(2, made), made)
    plain_shard(columns, Reading(identity=made, start_row=0, where="s"))
    values = columns[name].values.copy()
    values[3] = value
    columns[name] = dataclasses.replace(columns[name], values=values)
    with pytest.raises((IntegrityError, TargetError), match=said):
        plain_shard(columns, Reading(identity=made, start_row=0, where="s"))
    columns[name] = dataclasses.replace(columns[name], offsets=columns[name].offsets + 1)
    with pytest.raises(IntegrityError, match="has not one entry for each position"):
        plain_shard(columns, Reading(identity=made, start_row=0, where="s"))


def test_a_shard_whose_summaries_take_a_readers_memory_is_not_written(monkeypatch):
    made = identity("packed")
    shard = shard_of(2, made)
    n, k = shard.targets.n, shard.targets.k
    tokens = sum(r.size for r in shard.rows)
    monkeypatch.setattr(
        "softlabels.format.packed_rows.DECODED_LIMIT", 8 * n * (k + 2) + 4 * tokens - 1
    )
    with pytest.raises(TargetError, match="lower --shard-rows"):
        packed.streams_of(shard, made, None)
