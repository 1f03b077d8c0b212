"""Whoever names no order and no lanes takes the rows of `softtrain run`, and a state goes on in its own."""

import json

import pytest
import torch

from softlabels.errors import ConfigError, RunError
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.students import llama
from trainers import DistillLoss, MixedStream, SoftTargetDataset, SoftTargetStream
from trainers.data.arrangement import EARLIER, Arrangement
from trainers.data.mixing import make_stream
from trainers.integrations.rows import StoreRows
from trainers.run.config import RunConfig
from trainers.run.setup import train

STEPS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrangement")
    corpus = write_corpus(folder / "corpus")
    build_tiny(folder / "a", corpus, shard_rows=4)
    build_tiny(folder / "b", corpus, shard_rows=3, teacher=TinyTeacher(seed=1))
    (folder / "student.json").write_text(json.dumps(llama()))
    return folder


def rows_of(stream, steps=STEPS):
    return [stream.batch_at(stream.offset + i * stream.batch_size).rows for i in range(steps)]


@pytest.mark.parametrize(("batch", "names"), [(6, "a"), (20, "a"), (6, "ab")])
def test_a_stream_that_names_nothing_gives_the_rows_of_a_run(
    folders, tmp_path, monkeypatch, batch, names
):
    learnt = []
    plain = DistillLoss.__call__

    def seeing(self, hidden, head, given, **more):
        learnt.append(given.rows)
        return plain(self, hidden, head, given, **more)

    monkeypatch.setattr(DistillLoss, "__call__", seeing)
    config = RunConfig(
        store=[f"{folders / n}={1 / len(names)}" for n in names],
        student=f"hf-config:{folders / 'student.json'}",
        steps=STEPS,
        batch_size=batch,
        seed=3,
        dtype="float32",
        threads=torch.get_num_threads(),
    )
    train(config, tmp_path / "run")
    stores = [(folders / n, 1) for n in names]
    stream = make_stream(stores, batch_size=batch, seed=3)
    assert learnt == rows_of(stream)
    assert type(stream) is (SoftTargetStream if names == "a" else MixedStream)
    assert stream.order == "corpus"
    by_store = make_stream(stores, batch_size=batch, seed=3, **EARLIER)
    assert learnt != rows_of(by_store)


@pytest.mark.parametrize(
    "begun", [EARLIER, {"order": "corpus", "lanes": 2}, {"order": "store", "lanes": 4}]
)
def test_a_state_goes_on_in_its_own_order(folders, begun):
    first = SoftTargetStream(folders / "a", batch_size=8, seed=3, **begun)
    state = json.loads(json.dumps(first.state_dict() | {"position": 16}))
    first.load_state_dict(state)
    later = SoftTargetStream(folders / "a", batch_size=8, seed=3)
    later.load_state_dict(state)
    assert rows_of(later) == rows_of(first)
    assert later.state_dict() == state
    dataset = SoftTargetDataset(folders / "a", batch_size=8, seed=3)
    dataset.load_state_dict(state)
    batches = iter(dataset)
    assert [next(batches).rows for _ in range(STEPS)] == rows_of(first)
    named = SoftTargetStream(folders / "a", batch_size=8, seed=3, order="corpus", lanes=8)
    with pytest.raises(RunError, match="the saved stream has "):
        named.load_state_dict(state)


@pytest.mark.parametrize(
    "changes",
    [
        {"order": "length"},
        {"order": ["store"]},
        {"lanes": 3},
        {"lanes": 0},
        {"lanes": 2.0},
        {"lanes": None},
        {"order": "store", "lanes": 2, "seed": 4},
        {"order": "store", "lanes": 2, "position": 4},
        {"lanes": 4, "batch_size": 16},
    ],
)
def test_a_state_that_a_stream_cannot_go_on_from_leaves_it_as_it_is(folders, changes):
    stream = SoftTargetStream(folders / "a", batch_size=8, seed=3)
    before, rows = stream.state_dict(), rows_of(stream)
    with pytest.raises(RunError, match="the saved stream has "):
        stream.load_state_dict(before | changes)
    assert (stream.state_dict(), rows_of(stream)) == (before, rows)


def test_unshuffled_rows_are_those_of_the_store_one_after_the_other(folders):
    batches = rows_of(SoftTargetStream(folders / "a", batch_size=8, shuffle=False))
    assert [r for b in batches for r in b] == list(range(8 * STEPS))


def test_rows_of_hugging_face_come_in_lanes_whether_they_are_shuffled_or_not(folders):
    """A checkpoint of theirs skips so many places, and says nothing of lanes."""
    rows = StoreRows(folders / "a", shuffle=False)
    rows.in_steps(8)
    lanes = SoftTargetStream(folders / "a", batch_size=8, shuffle=False, lanes=8)
    expected = [rows.store.row(i).row.digest for i in rows_of(lanes)[0]]
    assert [rows[i].row.digest for i in range(8)] == expected


def test_what_is_named_is_taken_or_refused():
    assert Arrangement.chosen(None, None, 24) == ("corpus", 12)
    assert Arrangement.chosen("store", 1, 24) == ("store", 1)
    with pytest.raises(ConfigError, match="--order 'length'"):
        Arrangement.chosen("length", None, 24)
    with pytest.raises(ConfigError, match="--lanes 0"):
        Arrangement.chosen(None, 0, 24)
