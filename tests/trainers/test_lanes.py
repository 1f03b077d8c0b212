"""Lanes of the row order: a rank reads the shards of its own, and batches are the same on any number of ranks."""

import json
import random
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabels.errors import ConfigError, RunError
from softlabels.format.files import LocalFiles
from softlabels.store.reader import open_store
from tests.fakes import Notices, TinyTeacher, build_tiny, write_corpus
from tests.students import llama
from tests.trainers import topology
from tests.trainers.test_corpus_order import inputs_digest
from tests.trainers.topology import Topology
from trainers import MixedStream, SoftTargetStream
from trainers.data import order
from trainers.data.lanes import Lanes, Span, default_lanes, spans
from trainers.data.order import CorpusOrder, RowOrder
from trainers.run.config import RunConfig
from trainers.run.setup import train

B = 16
OPTIONS = {"batch_size": B, "seed": 5, "order": "corpus", "lanes": 16}
STEPS = 12
RANKS = (1, 2, 4, 8, 16)
MATRIX = [Topology(r, w) for r, w in product(RANKS, (0, 1, 3))]


@pytest.fixture(scope="module", autouse=True)
def small_slices():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "SLICE_ROWS", 2)
        patch.setattr(topology, "digest", inputs_digest)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One corpus of 125 rows in two stores that have nothing else in common."""
    folder = tmp_path_factory.mktemp("lanes")
    corpus = write_corpus(folder / "corpus", repeat=10)
    build_tiny(folder / "a", corpus, shard_rows=2, limit_rows=125)
    packed = {"profile": "packed", "container": "zarr", "values": "nat8"}
    other = {"estimator": "sampled", "k": 3, "teacher": TinyTeacher(seed=1), **packed}
    build_tiny(folder / "b", corpus, shard_rows=9, limit_rows=125, **other)
    build_tiny(folder / "c", corpus, shard_rows=25, limit_rows=125, teacher=TinyTeacher(seed=1))
    (folder / "student.json").write_text(json.dumps(llama()))
    return folder


@pytest.fixture(scope="module")
def whole(folders):
    """One process that was never interrupted, for more than an epoch."""
    found, state = topology.run(folders / "a", Topology(1, -1), STEPS, **OPTIONS)
    assert len(set(found)) == STEPS
    assert json.loads(state)["lanes"] == 16
    return found, state


# -- the same batches, whoever makes them ------------------------------------------------------------


def check_pair(store, whole, first, second, stop):
    begun, state = topology.run(store, first, stop, **OPTIONS)
    rest, final = topology.run(store, second, STEPS - stop, state, **OPTIONS)
    assert begun + rest == whole[0]
    return final


@pytest.mark.parametrize(
    ("first", "second"), [(1, 16), (16, 4), (2, 8)], ids=lambda ranks: f"{ranks} ranks"
)
def test_killed_and_resumed_on_another_number_of_ranks(folders, whole, first, second):
    final = check_pair(folders / "a", whole, Topology(first, -1), Topology(second, -1), 5)
    assert final == whole[1]


def test_of_another_store_of_the_corpus(folders, whole):
    """Other teacher, estimator, codec, container and shards: by digest of what the rows hold."""
    check_pair(folders / "b", whole, Topology(4, -1), Topology(1, -1), 7)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(MATRIX)), ids=map(str, MATRIX))
def test_every_topology_killed_and_resumed_on_another(folders, whole, place):
    chance = random.Random(place)
    second = chance.choice([t for t in MATRIX if t.ranks != MATRIX[place].ranks])
    stop = chance.randrange(1, STEPS)
    assert check_pair(folders / "a", whole, MATRIX[place], second, stop) == whole[1]


def test_a_rank_reads_its_lanes_shards_alone(folders, monkeypatch):
    """Of an epoch, through real reads: at most 1.3 times its share, however many ranks there are."""
    shards = len(open_store(folders / "a").manifest.shards)
    assert shards == 63
    read: list[str] = []
    checked = LocalFiles.checked
    monkeypatch.setattr(LocalFiles, "checked", lambda s, f: read.append(f.name) or checked(s, f))
    for ranks in RANKS:
        seen = set()
        for rank in range(ranks):
            ours = {"rank": rank, "world_size": ranks, "prefetch": 0}
            stream = SoftTargetStream(folders / "a", **OPTIONS, **ours)
            read.clear()
            for i in range(125 // B):
                stream.batch_at(i * B)
            assert 0 < len(read) <= 1.3 * shards / ranks
            seen |= set(read)
        assert len(seen) >= shards - 125 % B  # together, but for the last rows of the epoch


# -- mixtures ----------------------------------------------------------------------------------------


def test_a_mixtures_batches_too(folders):
    """Of two stores 3 : 1, on 1, 4 and 16 ranks; each epoch of a store has all of its rows."""
    pairs = [(folders / "a", 3), (folders / "c", 1)]
    options = OPTIONS | {"order": "store", "prefetch": 0}
    batches = {}
    for ranks in (1, 4, 16):
        streams = [MixedStream(pairs, **options, rank=r, world_size=ranks) for r in range(ranks)]
        found = [[s.batch_at(i * B) for s in streams] for i in range(12)]
        batches[ranks] = [
            (sum((b.rows for b in parts), ()), sum((b.sources for b in parts), ()))
            for parts in found
        ]
    assert batches[1] == batches[4] == batches[16]
    assert all(Counter(sources) == {0: 12, 1: 4} for _, sources in batches[1])
    of_first = [
        r for rows, s in batches[1] for r, source in zip(rows, s, strict=True) if source == 0
    ]
    assert len(of_first) == 144
    assert max(Counter(of_first[:96]).values()) == 1  # lanes end an epoch a row or two apart
    assert len(set(of_first)) == 125
    stream = streams[0]
    stream.offset = 12 * B
    assert stream.epochs == (144 / 125, 48 / 125)


# -- the order ---------------------------------------------------------------------------------------

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=25)
geometry = st.sampled_from([(1, 1), (4, 2), (4, 4), (6, 3), (8, 8), (16, 4)])


@given(sizes, st.integers(1, 4), geometry, st.integers(0, 3))
def test_each_epoch_holds_every_row_once(sizes, block, geometry, epoch):
    """Of the sequence in which row v is of lane v mod C, which batches are stretches of."""
    batch, lanes = geometry
    rows = sum(sizes)
    cut = Lanes(RowOrder(sizes, "d", 1, block_shards=block), lanes)
    own = [
        row
        for lane in range(lanes)
        for piece in cut.pieces(
            Span(
                lane,
                len(range(lane, epoch * rows, lanes)),
                len(range(lane, (epoch + 1) * rows, lanes)) - len(range(lane, epoch * rows, lanes)),
            )
        )
        for row in piece.rows.tolist()
    ]
    uncut = RowOrder(sizes, "d", 1, block_shards=block).take(epoch * rows, rows)
    assert sorted(own) == list(range(rows))
    assert sum(own[i] == uncut[i] for i in range(rows)) == rows or lanes > 1
    first, last = epoch * rows // batch, -(-(epoch + 1) * rows // batch)
    taken = Counter(cut.take(batch, first * batch, (last - first) * batch))
    assert all(taken[r] >= 1 for r in range(rows))
    assert taken.total() == (last - first) * batch


@given(sizes, st.integers(1, 4), st.integers(0, 300), st.integers(1, 60))
def test_one_lane_is_the_order_itself(sizes, block, place, count):
    cut = Lanes(RowOrder(sizes, "d", 1, block_shards=block))
    uncut = RowOrder(sizes, "d", 1, block_shards=block)
    assert cut.take(7, place, count) == uncut.take(place, count).tolist()


@given(sizes, geometry, st.lists(st.integers(0, 200), min_size=1, max_size=6))
def test_any_place_is_found_without_those_before_it(sizes, geometry, places):
    batch, lanes = geometry
    walked = Lanes(RowOrder(sizes, "d", 1, block_shards=2), lanes).take(batch, 0, 230)
    jumping = Lanes(RowOrder(sizes, "d", 1, block_shards=2), lanes)
    for place in places:
        assert jumping.take(batch, place, 30) == walked[place : place + 30]


@given(sizes, geometry, st.integers(0, 40), st.integers(1, 6))
def test_blocks_that_follow_are_those_that_are_entered(sizes, geometry, step, count):
    batch, lanes = geometry
    cut = Lanes(RowOrder(sizes, "d", 1, block_shards=2), lanes)
    at = list(spans(batch, lanes, step * batch, 0, batch))
    here = {cut.stretch(s.lane, s.step).block for s in at}
    entered = [
        piece.block
        for s in at
        for piece in cut.pieces(s._replace(rows=99))
        if piece.block not in here
    ]
    soon = cut.following(at, count)
    assert len(soon) == count
    assert {b for b in soon if b not in here} <= set(entered)


def test_a_batch_has_rows_of_each_lanes_place():
    """Of 640 slices, 16 lanes: the rows of a batch are of 16 slices, and of 8 for 8 lanes."""
    for lanes in (8, 16):
        cut = Lanes(RowOrder([4] * 640, "d", 0, block_shards=1), lanes)
        batches = [np.array(cut.take(64, i * 64, 64)) // 4 for i in range(40)]
        assert {len(set(b.tolist())) for b in batches} <= {16, 24, 32, 16 * (16 // lanes)}
        assert all(len(set(b.tolist())) >= 16 for b in batches)


def test_the_order_is_pinned():
    """It must not change with a version, or no run could be resumed."""
    cut = Lanes(CorpusOrder([6, 6, 3], 150, "fingerprint", 7, block_slices=1), 4)
    assert cut.take(4, 0, 20) == PINNED


PINNED = [7, 5, 12, 3, 6, 4, 13, 2, 0, 9, 10, 14, 1, 8, 11, 7, 5, 9, 0, 3]


# -- runs --------------------------------------------------------------------------------------------


def config_of(folders, **changes) -> RunConfig:
    values = {
        "store": str(folders / "a"),
        "student": f"hf-config:{folders / 'student.json'}",
        "steps": 4,
        "batch_size": 4,
        "log_every": 1,
        "checkpoint_every": 2,
        "dtype": "float32",
        "threads": 1,
    }
    return RunConfig(**(values | changes))


def losses(run):
    return [json.loads(x)["loss"] for x in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_new_run_takes_lanes_and_resumes_with_them_alone(folders, tmp_path):
    run = tmp_path / "run"
    train(config_of(folders, steps=2), run)
    assert json.loads((run / "run.json").read_text())["config"]["lanes"] == 4
    with pytest.raises(RunError, match="begun with lanes = 4, this has 2"):
        train(config_of(folders, steps=4, lanes=2), run, resume=True)
    train(config_of(folders, steps=2, lanes=1), tmp_path / "other")
    assert losses(run) != losses(tmp_path / "other")


def test_a_run_of_before_goes_on_with_one(folders, tmp_path):
    """Neither run.json nor the stream's state says how many."""
    run = tmp_path / "run"
    train(config_of(folders, lanes=1, steps=2), run)
    facts = json.loads((run / "run.json").read_text())
    del facts["config"]["lanes"]
    (run / "run.json").write_text(json.dumps(facts))
    told = Notices()
    train(config_of(folders, steps=4), run, resume=True, reporter=told)
    assert any("resuming after step 2" in line for line in told.lines)
    with pytest.raises(RunError, match="begun with lanes = 1, this has 4"):
        train(config_of(folders, lanes=4), run, resume=True)


def test_what_does_not_go_is_refused(folders):
    for lanes in (0, 3, 32):
        with pytest.raises(
            ConfigError, match=f"--lanes {lanes}: .* divide --batch-size 16; choose 16"
        ):
            SoftTargetStream(folders / "a", **OPTIONS | {"lanes": lanes})
    with pytest.raises(ConfigError, match="--lanes 3: "):
        config_of(folders, lanes=3)
    stream = SoftTargetStream(folders / "a", **OPTIONS)
    with pytest.raises(ConfigError, match="a multiple of 16"):
        stream.batch_at(8)
    state = stream.state_dict()
    with pytest.raises(RunError, match="position = 8, expected a multiple of the batch size 16"):
        stream.load_state_dict(state | {"position": 8})
    for other in ({"lanes": 8}, {"lanes": 1}, {"batch_size": 32}):
        with pytest.raises(RunError, match="the saved stream has "):
            SoftTargetStream(folders / "a", **OPTIONS | other).load_state_dict(state)


@pytest.mark.parametrize(
    ("batch", "lanes"), [(1, 1), (8, 8), (17, 1), (24, 12), (48, 16), (512, 16)]
)
def test_the_default_is_the_most_that_divide_a_batch(batch, lanes):
    assert default_lanes(batch) == lanes
