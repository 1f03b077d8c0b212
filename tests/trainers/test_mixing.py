import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlabels.errors import ConfigError, PairingError, RunError, TokenizerError
from softlabels.store.reader import open_store
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.trainers.topology import Topology, digest, run
from trainers import MixedStream, SoftTargetStream
from trainers.data.mixing import Pattern, make_stream, parse_stores

OPTIONS = {"batch_size": 8, "seed": 5, "block_shards": 2, "order": "store", "lanes": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two teachers on one corpus; the second keeps fewer ids."""
    folder = tmp_path_factory.mktemp("mixing")
    corpus = write_corpus(folder / "corpus")
    build_tiny(folder / "a", corpus, shard_rows=4)
    build_tiny(folder / "b", corpus, shard_rows=3, k=3, teacher=TinyTeacher(seed=1))
    return folder


@pytest.fixture
def pairs(folders):
    return [(folders / "a", 0.7), (folders / "b", "0.3")]


weights = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@given(weights, st.integers(0, 500), st.integers(1, 80))
def test_a_stretch_holds_each_stores_share(weights, position, count):
    """To within a row of the ideal at either end, anywhere; and places are counted as they come."""
    pattern = Pattern(weights)
    stores = pattern.stores(position, count)
    for s, weight in enumerate(weights):
        found = int((stores == s).sum())
        assert found == pattern.before(s, position + count) - pattern.before(s, position)
        assert abs(found - count * weight / sum(weights)) <= len(weights)
    whole = pattern.stores(position, pattern.length)
    assert np.bincount(whole, minlength=len(weights)).tolist() == list(pattern.turns)


@pytest.mark.parametrize(
    ("weights", "turns"),
    [((0.7, 0.3), (7, 3)), (("1", "1"), (1, 1)), ((0.1, 0.2, 0.7), (1, 2, 7)), ((2, 0.5), (4, 1))],
)
def test_weights_are_what_was_written(weights, turns):
    assert Pattern(weights).turns == turns


@pytest.mark.parametrize("bad", [0, -1, "nan", "inf", "x", ""])
def test_bad_weights_are_refused(bad):
    with pytest.raises(ConfigError, match="expected a number above 0"):
        Pattern([1, bad])


def test_a_ratio_of_too_many_digits_is_refused():
    with pytest.raises(ConfigError, match="round them"):
        Pattern([0.12345678, 0.5])


def test_rows_come_from_their_stores_in_each_ones_own_order(pairs):
    stores = [open_store(p) for p, _ in pairs]
    mixed = iter(MixedStream(pairs, **OPTIONS))
    own = [SoftTargetStream(p, **OPTIONS | {"batch_size": 1}) for p, _ in pairs]
    singles = [iter(s) for s in own]
    counts = [0, 0]
    for _ in range(10):
        batch = next(mixed)
        done = 0
        for b, (row, s) in enumerate(zip(batch.rows, batch.sources, strict=True)):
            assert (row,) == next(singles[s]).rows
            stored = stores[s].row(row)
            n, k = stored.targets.ids.shape
            here = slice(done, done + n)
            np.testing.assert_array_equal(batch.targets.ids[here, :k], stored.targets.ids)
            np.testing.assert_array_equal(batch.targets.gaps[here, :k], stored.targets.gaps)
            assert np.isinf(batch.targets.gaps[here, k:]).all()
            width = len(stored.row.input_ids)
            np.testing.assert_array_equal(
                batch.inputs["input_ids"][b, :width], stored.row.input_ids
            )
            done += n
            counts[s] += 1
    assert counts == [56, 24]
    for stream in (mixed, *singles):
        stream.close()


@pytest.mark.parametrize(
    ("first", "second"),
    [(Topology(1, 0), Topology(2, 1)), (Topology(4, 1), Topology(1, 3))],
    ids=str,
)
def test_any_topology_gives_the_same_batches(pairs, first, second):
    stream = iter(MixedStream(pairs, **OPTIONS))
    expected = [next(stream) for _ in range(10)]
    stream.close()
    begun, state = run(pairs, first, 4, **OPTIONS)
    rest, _ = run(pairs, second, 6, state, **OPTIONS)
    assert begun + rest == [digest([b]) for b in expected]


def test_the_state_is_of_these_stores_and_weights(folders, pairs):
    state = json.loads(json.dumps(MixedStream(pairs, **OPTIONS).state_dict()))
    MixedStream(pairs, **OPTIONS).load_state_dict(state)
    for other in ([(folders / "a", 0.6), (folders / "b", 0.4)], pairs[::-1]):
        with pytest.raises(RunError, match=r"stores|turns"):
            MixedStream(other, **OPTIONS).load_state_dict(state)
    with pytest.raises(RunError, match="store"):
        SoftTargetStream(folders / "a", **OPTIONS).load_state_dict(state)


def test_the_loss_of_two_teachers_is_the_weighted_sum(folders):
    """Forward KL over a whole turn of both stores: the mean over rows is the weighted mean of the stores' means."""
    from trainers import DistillLoss, Head

    g = torch.Generator().manual_seed(0)
    body = torch.nn.Embedding.from_pretrained(torch.randn(300, 8, generator=g))
    head = Head(weight=torch.randn(300, 8, generator=g))
    loss = DistillLoss(alpha=1.0)

    def soft(batch):
        return loss(body(batch.inputs["input_ids"]), head, batch)

    rows = len(open_store(folders / "a"))
    assert rows == len(open_store(folders / "b"))
    sums, counts = [], []
    for name in "ab":
        batch = SoftTargetStream(folders / name, batch_size=rows).batch_at(0)
        sums.append(soft(batch).soft)
        counts.append(batch.positions)
    weights = [(folders / "a", 1), (folders / "b", 1)]
    both = MixedStream(weights, batch_size=2 * rows).batch_at(0)
    assert soft(both).loss.item() == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    assert sums[0] != pytest.approx(sums[1], rel=1e-2)


def test_stores_that_do_not_go_together_are_refused(folders, tmp_path):
    corpus = f"text:{folders}/corpus/*.txt"
    a = (folders / "a", 1)
    with pytest.raises(ConfigError, match="twice"):
        MixedStream([a, a], **OPTIONS)
    with pytest.raises(ConfigError, match="no stores"):
        MixedStream([], **OPTIONS)
    for name, how, error, match in (
        ("salted", {"teacher": TinyTeacher(salt="x")}, TokenizerError, "tokenizer"),
        ("wide", {"teacher": TinyTeacher(320)}, PairingError, "vocabulary is 320"),
        ("sampled", {"estimator": "sampled"}, PairingError, "estimator is 'sampled'"),
        ("warm", {"temperature": (1.0, 2.0)}, PairingError, r"temperatures is \[1.0, 2.0\]"),
    ):
        build_tiny(tmp_path / name, corpus, **how)
        with pytest.raises(error, match=match):
            MixedStream([a, (tmp_path / name, 1)], **OPTIONS)


def test_stores_and_weights_as_they_are_typed(tmp_path):
    assert parse_stores("some/store") == [("some/store", Fraction(1))]
    assert parse_stores(["a=0.7", "b=0.3"]) == [("a", Fraction(7, 10)), ("b", Fraction(3, 10))]
    (tmp_path / "run=2").mkdir()
    assert parse_stores([f"{tmp_path}/run=2"]) == [(f"{tmp_path}/run=2", 1)]
    assert parse_stores([f"{tmp_path}/run=2=0.5"]) == [(f"{tmp_path}/run=2", Fraction(1, 2))]
    with pytest.raises(ConfigError, match=r"--store 'a=x'.*expected PATH"):
        parse_stores(["a=x"])


def test_one_pair_is_the_store_alone(folders):
    alone = make_stream([(folders / "a", 0.4)], **OPTIONS)
    assert isinstance(alone, SoftTargetStream)
    assert alone.state_dict() == make_stream(folders / "a", **OPTIONS).state_dict()
    assert isinstance(make_stream(Path(folders / "a"), **OPTIONS), SoftTargetStream)
