"""Container parquet: what goes in comes out within the codec's bound; a table that lies is refused."""

from __future__ import annotations

import io
import random
from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabels.codecs import make_codec
from softlabels.errors import IntegrityError, SoftLabelsError, TargetError
from softlabels.format.columns import Expected
from softlabels.format.containers.parquet import read_columns
from softlabels.format.encoding import decode_shard, encode_shard, read_statistics
from softlabels.format.footer import read_footer
from softlabels.format.manifest import Statistics, load_manifest
from softlabels.format.plain import log_odds_column
from softlabels.format.shard import Reading, Shard
from tests.store.made_up import STATISTICS, identity_of, row_of, targets_of

START = 10


def shard_of(rng, segments_of_rows, identity, *, counts=None, learn=0.7, ids_from=0):
    """A shard; `counts` is called for each position's number of kept ids."""
    counts = counts or (lambda: int(rng.integers(1, 7)))
    rows = [row_of(rng, s, identity.teacher.vocab_size, learn) for s in segments_of_rows]
    n = sum(int(r.label_mask.sum()) for r in rows)
    targets = targets_of(rng, [counts() for _ in range(n)], identity, ids_from=ids_from)
    return Shard(start_row=START, rows=rows, targets=targets)


def assert_same(shard, again, identity):
    """Inputs and ids equal; numbers within the codec's bound."""
    assert again.start_row == shard.start_row
    assert len(again.rows) == len(shard.rows)
    for a, b in zip(shard.rows, again.rows, strict=True):
        for name in ("input_ids", "segment_lengths", "documents", "label_mask"):
            x, y = getattr(a, name), getattr(b, name)
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype
    np.testing.assert_array_equal(shard.offsets, again.offsets)
    a, b, codec = shard.targets, again.targets, make_codec(identity.encoding.values)
    assert (b.temperatures, b.vocab_size, b.estimator) == (
        a.temperatures,
        a.vocab_size,
        a.estimator,
    )
    assert (b.ids.dtype, b.gaps.dtype, b.log_odds.dtype) == (np.int32, np.float32, np.float32)
    b.validate()
    if a.n == 0:
        assert b.n == 0
        return
    np.testing.assert_array_equal(a.kept.sum(1), b.kept.sum(1))
    np.testing.assert_array_equal(a.ids[a.kept], b.ids[b.kept])
    padding = np.broadcast_to(b.ids[:, :1], b.ids.shape)
    np.testing.assert_array_equal(b.ids[~b.kept], padding[~b.kept])
    stored = a.log_probs(a.temperatures[0] if 1.0 not in a.temperatures else 1.0)
    reach = np.where(np.isfinite(stored), np.abs(stored), 0).max(axis=1, keepdims=True)
    slack = 2 * (codec.relative_error * reach + codec.absolute_error(sample=False)) + 1e-6 * (
        1 + reach
    )
    error = np.abs(np.where(a.kept, a.gaps, 0) - np.where(b.kept, b.gaps, 0)[:, : a.k])
    assert (error <= slack).all()
    finite = np.isfinite(a.log_odds)
    np.testing.assert_array_equal(finite, np.isfinite(b.log_odds))
    bound = codec.relative_error * np.abs(a.log_odds[finite]) + codec.absolute_error(sample=False)
    assert (np.abs(a.log_odds[finite] - b.log_odds[finite]) <= bound).all()
    for t in a.temperatures:
        np.testing.assert_allclose(b.probs(t).sum(1) + b.tail(t), 1, atol=1e-5)


def round_trip(shard, identity):
    data = encode_shard(shard, identity, STATISTICS)
    again = decode_shard(data, Reading(identity=identity, start_row=START, where="s.parquet"))
    assert_same(shard, again, identity)
    return data


@given(
    segments=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
    narrow=st.integers(1, 4),
    spread=st.integers(0, 5),
    learn=st.sampled_from([0.0, 0.3, 1.0]),
    values=st.sampled_from(["float16", "float32"]),
    temperatures=st.sampled_from([(1.0,), (0.5, 1.0, 2.0, 7.25)]),
)
def test_round_trip_of_ragged_kept_sets(
    segments, seed, narrow, spread, learn, values, temperatures
):
    rng = np.random.default_rng(seed)
    identity = identity_of(values=values, temperatures=temperatures)
    counts = lambda: int(rng.integers(narrow, narrow + spread + 1))  # noqa: E731
    shard = shard_of(rng, segments, identity, counts=counts, learn=learn)
    round_trip(shard, identity)


@pytest.mark.parametrize("values", ["float16", "float32"])
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
def test_round_trip_of_large_ids(values, vocab_size, ids_from):
    rng = np.random.default_rng(0)
    identity = identity_of(values=values, vocab_size=vocab_size)
    counts = lambda: min(8, vocab_size)  # noqa: E731
    shard = shard_of(rng, [[9], [5, 6]], identity, counts=counts, learn=1, ids_from=ids_from)
    if ids_from == vocab_size - 8:
        assert shard.targets.ids.max() == vocab_size - 1
    assert shard.targets.ids.min() >= ids_from
    round_trip(shard, identity)


def test_an_id_above_2_to_the_17_is_refused_by_a_smaller_vocabulary():
    rng = np.random.default_rng(0)
    identity = identity_of(vocab_size=262144)
    shard = shard_of(rng, [[2]], identity_of(vocab_size=100), learn=1)
    ids = shard.targets.ids.copy()
    ids[0, 0] = 131072
    data = encode_shard(
        replace(shard, targets=replace(shard.targets, ids=ids)), identity, STATISTICS
    )
    assert (
        decode_shard(data, Reading(identity=identity, start_row=START, where="w")).targets.ids[0, 0]
        == 131072
    )
    small = identity_of(vocab_size=131072)
    with pytest.raises(TargetError, match=r"w: position 0 has an id outside 0\.\.131071"):
        decode_shard(data, Reading(identity=small, start_row=START, where="w"))


@pytest.mark.parametrize("values", ["float16", "float32"])
def test_rows_without_positions(values):
    rng = np.random.default_rng(0)
    identity = identity_of(values=values)
    some = [row_of(rng, [4, 3], 300, learn) for learn in (0, 1, 0, 1, 0)]
    targets = targets_of(rng, [3] * 10, identity)
    shard = Shard(start_row=START, rows=some, targets=targets)
    again = decode_shard(
        encode_shard(shard, identity, STATISTICS),
        Reading(identity=identity, start_row=START, where="w"),
    )
    assert_same(shard, again, identity)
    assert [again.row(r).targets.n for r in range(5)] == [0, 5, 0, 5, 0]
    np.testing.assert_array_equal(again.row(3).targets.ids, targets.ids[5:])
    assert again.row(3).index == START + 3


def test_a_shard_without_any_position_stacks_with_one_that_has_some():
    rng = np.random.default_rng(0)
    identity = identity_of()
    empty = shard_of(rng, [[3], [2]], identity, learn=0)
    data = round_trip(empty, identity)
    nothing = decode_shard(data, Reading(identity=identity, start_row=START, where="w")).targets
    some = shard_of(rng, [[5]], identity, learn=1).targets
    assert type(nothing).concatenate([nothing, some]).n == some.n


def test_a_sample_at_another_temperature():
    rng = np.random.default_rng(0)
    identity = identity_of(temperatures=(2.0,), estimator="sampled", values="float32")
    shard = shard_of(rng, [[6], [3]], identity, learn=1)
    odds = np.full_like(shard.targets.log_odds, -np.inf)
    shard = replace(shard, targets=replace(shard.targets, log_odds=odds))
    data = round_trip(shard, identity)
    again = decode_shard(data, Reading(identity=identity, start_row=START, where="w")).targets
    np.testing.assert_allclose(again.probs(2.0), shard.targets.probs(2.0), rtol=1e-5)
    assert "log_odds_T2" in pq.read_schema(io.BytesIO(data)).names


def test_the_tail_and_gaps_at_the_ends_of_float16():
    rng = np.random.default_rng(0)
    identity = identity_of(values="float16")
    shard = shard_of(rng, [[5]], identity, counts=lambda: 2, learn=1)
    gaps = np.array([[0, 1000], [0, 0], [60000, 0], [0, 1e-4]], np.float32)
    odds = np.array([[20.7], [-20.7], [-60000], [-np.inf]], np.float32)
    round_trip(replace(shard, targets=replace(shard.targets, gaps=gaps, log_odds=odds)), identity)
    gaps[0, 1] = 70000
    with pytest.raises(TargetError, match="--values float32"):
        encode_shard(
            replace(shard, targets=replace(shard.targets, gaps=gaps)), identity, STATISTICS
        )


def test_equal_shards_give_equal_bytes():
    identity = identity_of()
    one, two = (shard_of(np.random.default_rng(7), [[5], [4]], identity) for _ in range(2))
    assert encode_shard(one, identity, STATISTICS) == encode_shard(two, identity, STATISTICS)


def test_statistics_travel_in_the_footer():
    identity = identity_of()
    shard = shard_of(np.random.default_rng(0), [[3]], identity)
    statistics = Statistics(kept_ids=7, kept_mass=[1.25, 0.1], teacher_nll=None)
    assert (
        read_statistics(encode_shard(shard, identity, statistics), IDENTITY, where="w")
        == statistics
    )
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), sink)
    with pytest.raises(IntegrityError, match="w: carries no statistics"):
        read_statistics(sink.getvalue(), IDENTITY, where="w")


# -- plain columns for other readers --------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "name"),
    [
        (1.0, "log_odds_T1"),
        (2.0, "log_odds_T2"),
        (0.5, "log_odds_T0_5"),
        (1.25, "log_odds_T1_25"),
        (10.0, "log_odds_T10"),
        (100.0, "log_odds_T100"),
        (0.1, "log_odds_T0_1"),
    ],
)
def test_names_of_the_log_odds_columns(temperature, name):
    assert log_odds_column(temperature) == name
    assert log_odds_column(np.float64(temperature)) == name


def test_column_names_and_types():
    identity = identity_of(temperatures=(0.5, 1.0))
    shard = shard_of(np.random.default_rng(0), [[3], [2, 2]], identity)
    schema = pq.read_schema(io.BytesIO(encode_shard(shard, identity, STATISTICS)))
    assert {f.name: str(f.type) for f in schema} == {
        "row": "int64",
        "input_digest": "fixed_size_binary[16]",
        "input_ids": "list<element: int32 not null>",
        "segment_lengths": "list<element: int32 not null>",
        "documents": "list<element: int64 not null>",
        "label_mask": "list<element: bool not null>",
        "kept": "list<element: int32 not null>",
        "ids": "list<element: int32 not null>",
        "logp": "list<element: halffloat not null>",
        "log_odds_T0_5": "list<element: halffloat not null>",
        "log_odds_T1": "list<element: halffloat not null>",
    }


def expected_of(built):
    """First shard of the built store, as plain lists."""
    manifest = load_manifest(built)
    path = built / manifest.shards[0].name
    shard = decode_shard(
        path.read_bytes(), Reading(identity=manifest.identity, start_row=0, where=str(path))
    )
    return path, shard


def test_polars_reads_a_shard(built):
    path, shard = expected_of(built)
    frame = pl.read_parquet(path)
    assert frame["row"].to_list() == [0, 1, 2]
    assert frame["input_ids"].to_list() == [r.input_ids.tolist() for r in shard.rows]
    assert frame["label_mask"].to_list() == [r.label_mask.tolist() for r in shard.rows]
    assert frame["input_digest"].to_list() == [r.digest() for r in shard.rows]
    assert frame["ids"].explode().to_list() == shard.targets.ids.ravel().tolist()
    assert frame["kept"].explode().to_list() == [5] * shard.targets.n
    logp = frame["logp"].explode().cast(pl.Float32).to_numpy().reshape(-1, 5)
    # p = exp(logp) at T=1, as the column says, up to the codec's rounding
    np.testing.assert_allclose(np.exp(logp), shard.targets.probs(1.0), rtol=2e-2, atol=1e-6)
    odds = frame["log_odds_T2"].explode().cast(pl.Float32).to_numpy()
    np.testing.assert_array_equal(odds, shard.targets.log_odds[:, 1])


def test_polars_scans_all_shards_of_a_store_as_one_table(built):
    frame = pl.scan_parquet(built / "data" / "*.parquet").select("row", "kept").collect()
    assert frame["row"].to_list() == list(range(8))
    assert frame["kept"].list.len().sum() == load_manifest(built).identity.corpus.positions


def test_duckdb_reads_a_shard(built):
    duckdb = pytest.importorskip("duckdb")
    path, shard = expected_of(built)
    rows = duckdb.sql(
        f"select row, input_ids, ids, kept, label_mask from '{path}' order by row"
    ).fetchall()
    assert [r[0] for r in rows] == [0, 1, 2]
    assert [r[1] for r in rows] == [r.input_ids.tolist() for r in shard.rows]
    assert [i for r in rows for i in r[2]] == shard.targets.ids.ravel().tolist()
    assert [k for r in rows for k in r[3]] == [5] * shard.targets.n
    assert [r[4] for r in rows] == [r.label_mask.tolist() for r in shard.rows]


# -- tables that lie ------------------------------------------------------------------------------


IDENTITY = identity_of(vocab_size=300, temperatures=(1.0, 2.0))


@pytest.fixture(scope="module")
def table():
    """Three rows with 4, 3 and 5 positions; 2 kept ids at each."""
    rng = np.random.default_rng(0)
    shard = shard_of(rng, [[5], [2, 3], [6]], IDENTITY, counts=lambda: 2, learn=1)
    assert shard.offsets.tolist() == [0, 4, 7, 12]
    table = pq.read_table(io.BytesIO(encode_shard(shard, IDENTITY, STATISTICS)))
    assert not any(f.nullable for f in table.schema)
    return table.cast(pa.schema([(f.name, nullable(f.type)) for f in table.schema]))  # as 1.0 was


def nullable(kind):
    return pa.list_(kind.value_type) if pa.types.is_list(kind) else kind


def refusal_of(table, kind=IntegrityError, identity=IDENTITY, start_row=START):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    with pytest.raises(SoftLabelsError) as e:
        decode_shard(
            sink.getvalue(), Reading(identity=identity, start_row=start_row, where="dir/s.parquet")
        )
    assert type(e.value) is kind, e.value
    assert str(e.value).startswith("dir/s.parquet: ")
    return str(e.value)


def with_column(table, name, values, type_=None):
    field = table.schema.field(name)
    array = pa.array(values, type_ or field.type)
    return table.set_column(table.column_names.index(name), name, array)


def altered(table, name, alter, type_=None):
    values = table[name].to_pylist()
    alter(values)
    return with_column(table, name, values, type_)


def put(row, place, value):
    def alter(values):
        values[row][place] = value

    return alter


def longer(row):
    def alter(values):
        values[row].append(values[row][-1])

    return alter


def shorter(row):
    def alter(values):
        values[row].pop()

    return alter


def test_the_unaltered_table_decodes_whoever_wrote_the_file(table):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    shard = decode_shard(sink.getvalue(), Reading(identity=IDENTITY, start_row=START, where="w"))
    assert shard.targets.n == 12
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=1, compression="snappy")
    again = decode_shard(sink.getvalue(), Reading(identity=IDENTITY, start_row=START, where="w"))
    np.testing.assert_array_equal(again.targets.ids, shard.targets.ids)


@pytest.mark.parametrize("numbers", [[10, 12, 11], [11, 12, 13], [10, 11, 11], [10, 11, -12]])
def test_wrong_row_numbers(table, numbers):
    assert "its rows are not 10 to 12" in refusal_of(with_column(table, "row", numbers))


def test_another_start_row(table):
    assert "its rows are not 11 to 13" in refusal_of(table, start_row=11)


def test_rows_in_another_order(table):
    shuffled = with_column(table.take([1, 0, 2]), "row", [10, 11, 12])
    assert decode_shard(
        _bytes(shuffled), Reading(identity=IDENTITY, start_row=START, where="w")
    ).offsets.tolist() == [0, 3, 7, 12]
    half = with_column(table, "input_ids", table["input_ids"].take([1, 0, 2]).to_pylist())
    assert "row 10 does not hold the inputs" in refusal_of(half)


def _bytes(table):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("name", ["ids", "logp"])
@pytest.mark.parametrize("change", [longer, shorter])
def test_kept_ids_that_do_not_add_up(table, row, name, change):
    said = refusal_of(altered(table, name, change(row)))
    assert f"row {START + row} has ids, logp and kept of different lengths" in said


@pytest.mark.parametrize("value", [1, 3, 0, 16])
def test_kept_that_does_not_add_up(table, value):
    said = refusal_of(altered(table, "kept", put(1, 2, value)))
    assert f"row {START + 1} has ids, logp and kept of different lengths" in said


@pytest.mark.parametrize("value", [-1, 17, 2**31 - 1])
def test_an_impossible_number_of_kept_ids(table, value):
    """Refused before anything of that size is allocated."""
    said = refusal_of(altered(table, "kept", put(1, 2, value)))
    assert "ids, the manifest says at most 16" in said


def test_an_empty_kept_set(table):
    def alter(values):
        values[1][0], values[1][1] = 0, 4

    said = refusal_of(altered(table, "kept", alter), TargetError)
    assert "position 4 has an empty kept set, but the manifest says" in said


def test_no_kept_ids_anywhere(table):
    empty = with_column(table, "kept", [[0] * 4, [0] * 3, [0] * 5])
    empty = with_column(with_column(empty, "ids", [[], [], []]), "logp", [[], [], []])
    assert "position 0 has an empty kept set, but the manifest says" in refusal_of(
        empty, TargetError
    )


@pytest.mark.parametrize("name", ["kept", "log_odds_T1", "log_odds_T2"])
@pytest.mark.parametrize(("change", "entries"), [(longer, 4), (shorter, 2)])
def test_a_row_with_another_number_of_positions(table, name, change, entries):
    said = refusal_of(altered(table, name, change(1)))
    assert f"row 11 has 3 positions but {entries} entries of {name}" in said


@pytest.mark.parametrize("segments", [[2, 2], [2, 4], [5, 0], [6, -1], [], [2**31 - 1, 2**31 - 1]])
def test_segment_lengths_that_do_not_sum(table, segments):
    def alter(values):
        values[1] = segments

    said = refusal_of(altered(table, "segment_lengths", alter))
    assert "row 11: segment_lengths do not sum to the 5 tokens" in said


def test_other_segments(table):
    """Valid in themselves, but not those of the digest, or with a label beyond a document's end."""

    def one_more(values):
        values[2] = [5, 1]

    said = refusal_of(altered(table, "segment_lengths", one_more))
    assert "row 12: 1 documents" in said.replace("2 segments but ", "")
    both = altered(
        altered(table, "segment_lengths", one_more), "documents", lambda v: v[2].append(9)
    )
    assert "row 12: label_mask asks for a token beyond the end of a document" in refusal_of(both)
    masked = altered(both, "label_mask", put(2, 4, False))
    assert "row 12 does not hold the inputs that its digest names" in refusal_of(masked)


def test_a_mask_that_asks_for_the_token_after_the_last(table):
    said = refusal_of(altered(table, "label_mask", put(0, 4, True)))
    assert "row 10: label_mask asks for a token beyond the end" in said


@pytest.mark.parametrize("change", [longer, shorter])
def test_a_mask_of_another_length(table, change):
    said = refusal_of(altered(table, "label_mask", change(2)))
    assert "row 12: 6 input_ids but" in said


def test_a_row_without_tokens(table):
    def nothing(values):
        values[1] = []

    for name in ("input_ids", "label_mask", "segment_lengths", "documents"):
        table = altered(table, name, nothing)
    assert "row 11: 0 input_ids" in refusal_of(table)


def test_a_wrong_digest(table):
    def alter(values):
        values[2] = bytes(16)

    said = refusal_of(altered(table, "input_digest", alter))
    assert "row 12 does not hold the inputs that its digest names" in said


def test_another_input_id(table):
    token = table["input_ids"].to_pylist()[1][3]
    said = refusal_of(altered(table, "input_ids", put(1, 3, (token + 1) % 300)))
    assert "row 11 does not hold the inputs that its digest names" in said


@pytest.mark.parametrize("value", [300, -1, 2**31 - 1])
def test_ids_outside_the_vocabulary(table, value):
    said = refusal_of(altered(table, "ids", put(1, 3, value)), TargetError)
    assert f"position 5 has an id outside 0..299 (found {value})" in said
    said = refusal_of(altered(table, "input_ids", put(1, 3, value)))
    assert "an input id outside 0..299" in said


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_log_probabilities_that_are_none(table, value):
    said = refusal_of(altered(table, "logp", put(1, 3, np.float16(value))), TargetError)
    assert "position 5 has a gap that is negative or NaN" in said


def test_a_position_whose_log_probabilities_are_all_minus_infinity(table):
    def alter(values):
        values[1][2] = values[1][3] = np.float16(-np.inf)

    said = refusal_of(altered(table, "logp", alter), TargetError)
    assert "position 5 has a gap that is negative or NaN, or an empty kept set" in said


@pytest.mark.parametrize(
    ("value", "says"), [(np.nan, "NaN for the tail's log-odds"), (np.inf, "without any mass")]
)
def test_log_odds_that_are_none(table, value, says):
    said = refusal_of(altered(table, "log_odds_T2", put(2, 1, np.float16(value))), TargetError)
    assert "position 8 has " in said
    assert says in said


COLUMNS = [
    "row",
    "input_digest",
    "input_ids",
    "segment_lengths",
    "documents",
    "label_mask",
    "kept",
    "ids",
    "logp",
    "log_odds_T1",
    "log_odds_T2",
]
columns = pytest.mark.parametrize("name", COLUMNS)


@columns
def test_a_missing_column(table, name):
    assert f"has no column '{name}'" in refusal_of(table.drop_columns(name))


@columns
def test_a_column_twice(table, name):
    assert f"has 2 column '{name}'" in refusal_of(table.append_column(name, table[name]))


def test_more_columns_are_of_no_concern(table):
    more = table.append_column("entropy", pa.array([1.0, 2.0, 3.0]))
    assert (
        decode_shard(_bytes(more), Reading(identity=IDENTITY, start_row=START, where="w")).targets.n
        == 12
    )


def test_a_grid_that_the_file_does_not_hold(table):
    wider = identity_of(temperatures=(1.0, 2.0, 4.0))
    assert "has no column 'log_odds_T4'" in refusal_of(table, identity=wider)


@columns
def test_a_null_row(table, name):
    def alter(values):
        values[1] = None

    refusal_of(altered(table, name, alter))


@pytest.mark.parametrize("name", COLUMNS[2:])
def test_a_null_inside_a_list(table, name):
    said = refusal_of(altered(table, name, put(1, 0, None)))
    assert f"column '{name}'" in said
    assert "holds nulls" in said


@columns
@pytest.mark.parametrize(
    "other", [pa.string(), pa.list_(pa.string()), pa.list_(pa.float64()), pa.list_(pa.int16())]
)
def test_a_column_of_another_type(table, name, other):
    lengths = [len(v) if isinstance(v, list) else 1 for v in table[name].to_pylist()]
    if pa.types.is_list(other):
        one = "a" if other.value_type == pa.string() else 1
        refusal_of(with_column(table, name, [[one] * n for n in lengths], other))
    else:
        refusal_of(with_column(table, name, ["a"] * 3, other))


@pytest.mark.parametrize("name", COLUMNS[2:])
def test_a_large_list_column(table, name):
    large = pa.large_list(table.schema.field(name).type.value_type)
    said = refusal_of(with_column(table, name, table[name].to_pylist(), large))
    assert f"column '{name}' is large_list" in said


@pytest.mark.parametrize(("values", "written"), [("float32", "float16"), ("float16", "float32")])
def test_numbers_of_another_width_than_the_manifest_says(values, written):
    shard = shard_of(np.random.default_rng(0), [[5]], identity_of(), learn=1)
    data = encode_shard(shard, identity_of(values=written), STATISTICS)
    names = {"float16": "halffloat", "float32": "float"}
    says = f"is list<element: {names[written]} not null>, expected lists of {names[values]}; not decoded"
    with pytest.raises(IntegrityError, match=says):
        decode_shard(data, Reading(identity=identity_of(values=values), start_row=START, where="w"))


def test_no_rows_at_all(table):
    """Zero rows are for the plan, the manifest and the reader to refuse: nothing here contradicts."""
    assert (
        decode_shard(
            _bytes(table.slice(0, 0)), Reading(identity=IDENTITY, start_row=START, where="w")
        ).rows
        == []
    )


def test_a_shard_that_no_reader_would_read_is_not_written(monkeypatch):
    monkeypatch.setattr("softlabels.format.containers.parquet.DECODED_LIMIT", 100)
    monkeypatch.setattr("softlabels.format.columns.DECODED_LIMIT", 100)
    shard = shard_of(np.random.default_rng(0), [[5], [6, 3]], IDENTITY, learn=1)
    with pytest.raises(TargetError, match=r"2 rows takes \d+ bytes, .* lower --shard-rows"):
        encode_shard(shard, IDENTITY, STATISTICS)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 20, b"\0" * 100, b"{}"])
def test_not_a_parquet_file(data):
    for read in (
        lambda: decode_shard(data, Reading(identity=IDENTITY, start_row=0, where="dir/s.parquet")),
        lambda: read_statistics(data, IDENTITY, where="dir/s.parquet"),
    ):
        with pytest.raises(IntegrityError, match=r"^dir/s\.parquet: not a readable Parquet file"):
            read()


def test_altered_and_torn_bytes_never_escape_as_another_error(table):
    """Without any sha256 to compare with: an orphan is decoded before anything vouches for it."""
    rng = random.Random(0)
    shard = shard_of(np.random.default_rng(0), [[5], [6, 3]], IDENTITY, learn=1)
    whole = encode_shard(shard, IDENTITY, STATISTICS)
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    found = 0
    for trial in range(600):
        data = bytearray(whole)
        begin = len(data) - footer if trial % 2 else 0
        for _ in range(1 + trial % 3):
            data[rng.randrange(begin, len(data))] ^= 1 << rng.randrange(8)
        if trial % 5 == 0:
            del data[rng.randrange(len(data)) :]
        try:
            decode_shard(bytes(data), Reading(identity=IDENTITY, start_row=START, where="w"))
            read_statistics(bytes(data), IDENTITY, where="w")
        except (IntegrityError, TargetError):
            found += 1
    assert found > 400


def varint(n: int) -> bytes:
    return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])


def test_columns_over_each_other_are_not_walked_through_again_and_again():
    """30 KB that would take the reader minutes: each of 4,000 columns is the same 1,500 pages."""
    body = bytes.fromhex("1500150015002c150015000000") * 1500
    size = varint(2 * len(body))
    about = b"\x15\x04\x19\x05\x19\x18\x01a\x15\x00\x16\x00\x16\x02\x16" + size + b"\x26\x08\x00"
    chunk = b"\x3c" + about + b"\x00"
    groups = b"\x19\x1c\x19\xfc" + varint(4000) + chunk * 4000 + b"\x00"
    data = parquet_of(body, root(4000) + leaf(b"a") * 4000, 4001, b"\x16\x00" + groups)
    with pytest.raises(ValueError, match="lie over each other"):
        read_footer(data, {"a": 8})


def parquet_of(body: bytes, schema: bytes, nodes: int, rest: bytes) -> bytes:
    """A file of some bytes whose footer has this schema, then these fields from the third on."""
    footer = b"\x29\xfc" + varint(nodes) + schema + rest + b"\x00"
    return b"PAR1" + body + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def root(children: int) -> bytes:
    """A node of a schema that is no column."""
    return b"\x48\x01r\x15" + varint(2 * children) + b"\x00"


def leaf(name: bytes) -> bytes:
    return b"\x15\x04\x38" + varint(len(name)) + name + b"\x00"


NO_ROWS = b"\x16\x00\x19\x0c"
SCHEMAS = {
    "nested a hundred thousand deep": (root(1) * 100_000 + leaf(b"a"), 100_001, "nested too deep"),
    "torn": (root(3) + leaf(b"a"), 2, "torn"),
    "more than it says": (root(1) + leaf(b"a") * 2, 3, "torn"),
    "fewer than none": (b"\x48\x01r\x15\x01\x00" + leaf(b"a"), 2, "torn"),
    "long names": (b"\x48" + varint(5) + b"r" * 5 + b"\x15\x02\x00" + b"\x48" + varint(2**19) + b"x" * 2**19
                   + b"\x15" + varint(2000) + b"\x00" + leaf(b"a") * 1000, 1002, "long names"),
    "a number that wraps": (b"\x48\x01r\x15" + varint(2 * (2**32 + 1)) + b"\x00" + leaf(b"a"), 2, "32 bits"),
    "a field that wraps": (b"\x48\x01r\x15\x02\x05" + varint(2 * (2**16 + 5)) + b"\x04\x00" + leaf(b"a"), 2, "none"),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_that_others_read_otherwise_or_never_end_to_read(name):
    """pyarrow recurses, and lets numbers wrap."""
    schema, nodes, says = SCHEMAS[name]
    data = parquet_of(b"", schema, nodes, NO_ROWS)
    with pytest.raises(ValueError, match=says):
        read_footer(data, {"a": 8})
    with pytest.raises(IntegrityError, match=f"w: not a readable Parquet file .*{says}"):
        read_columns(data, {"a": Expected(dtype=np.dtype(np.int64))}, records=None, where="w")


def test_a_column_whose_name_begins_like_another_is_left_alone():
    table = pa.table({"row": [1], "row.x": ["long"]})
    expected = {"row": Expected(dtype=np.dtype(np.int64), listed=False)}
    found = read_columns(_bytes(table), expected, records=1, where="w")
    assert found["row"].values.tolist() == [1]


def test_columns_that_are_not_where_they_say():
    """pyarrow goes by the places of a row group's columns, whatever they call themselves."""
    whole = _bytes(pa.table({"narrow": [1], "closed": ["long"]}))
    begin = whole.rindex(b"\x06narrow")
    swapped = whole[:begin] + whole[begin:].replace(b"\x06narrow", b"\x06closed")
    assert swapped != whole
    expected = {"narrow": Expected(dtype=np.dtype(np.int64), listed=False)}
    with pytest.raises(IntegrityError, match="not those of the schema"):
        read_columns(swapped, expected, records=1, where="w")
