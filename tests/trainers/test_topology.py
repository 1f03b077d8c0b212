"""The same global batches in the same order, whoever makes them, and wherever they were interrupted."""

import json
import random
from itertools import product

import pytest
from torch.utils.data import DataLoader

from softlabels.errors import ConfigError, IntegrityError, RunError
from tests.fakes import build_tiny, write_corpus
from tests.trainers.topology import Topology, run
from trainers import SoftTargetDataset, SoftTargetStream

STEPS = 14
OPTIONS = {"batch_size": 8, "seed": 5, "block_shards": 2}
MATRIX = [Topology(r, w) for r, w in product((1, 2, 4), (0, 1, 3))]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("topology")
    build_tiny(folder / "store", write_corpus(folder / "corpus"), shard_rows=4)
    return folder / "store"


@pytest.fixture(scope="module")
def whole(store):
    """One process that was never interrupted; several blocks and epochs."""
    found, state = run(store, Topology(1, -1), STEPS, **OPTIONS)
    assert len(set(found)) == STEPS
    stream = SoftTargetStream(store, **OPTIONS)
    stream.load_state_dict(json.loads(state))
    assert stream.epoch > 2
    return found, state


def check_pair(store, whole, first, second, stop):
    begun, state = run(store, first, stop, **OPTIONS)
    rest, final = run(store, second, STEPS - stop, state, **OPTIONS)
    assert begun + rest == whole[0]
    assert final == whole[1]


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(MATRIX)), ids=map(str, MATRIX))
def test_killed_and_resumed_on_another_topology(store, whole, place):
    chance = random.Random(place)
    second = chance.choice([t for t in MATRIX if t != MATRIX[place]])
    check_pair(store, whole, MATRIX[place], second, chance.randrange(1, STEPS))


@pytest.mark.parametrize("ranks", [2, 4])
def test_bare_streams_on_many_ranks(store, whole, ranks):
    check_pair(store, whole, Topology(ranks, -1), Topology(1, 1), 6)


@pytest.mark.slow
def test_spawned_workers(store, whole):
    check_pair(store, whole, Topology(1, 1, "spawn"), Topology(2, -1), 5)


@pytest.mark.slow
@pytest.mark.parametrize("first", MATRIX, ids=str)
def test_every_pair_of_topologies(store, whole, first):
    chance = random.Random(str(first))
    for second in MATRIX:
        check_pair(store, whole, first, second, chance.randrange(STEPS + 1))


@pytest.mark.slow
# A loader that is dropped with batches in flight may have to kill a worker, and says so when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("first", [Topology(1, 3, "spawn"), Topology(2, 1, "spawn")], ids=str)
def test_more_spawned_workers(store, whole, first):
    check_pair(store, whole, first, Topology(1, 3, "spawn"), 4)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_rank_holds_its_slice_of_the_global_batch(store, rank):
    batches = iter(SoftTargetStream(store, **OPTIONS, prefetch=0))
    slices = iter(SoftTargetStream(store, **OPTIONS, prefetch=0, rank=rank, world_size=4))
    for i in range(5):
        batch, part = next(batches), next(slices)
        assert part.rows == batch.rows[rank * 2 : rank * 2 + 2]
        assert part.offset == batch.offset == i * 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"world_size": 3}, "--batch-size 8: must be divisible by the 3 ranks.*choose 6"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2: expected 0 to 1"),
        ({"world_size": 0}, "rank 0 of 0"),
        ({"prefetch": -1}, "prefetch -1"),
    ],
)
@pytest.mark.parametrize("kind", [SoftTargetStream, SoftTargetDataset])
def test_slices_that_do_not_go_are_refused(store, kind, given, message):
    with pytest.raises(ConfigError, match=message):
        kind(store, **OPTIONS, **given)


def test_a_state_of_a_later_version_or_another_position_is_refused(store):
    stream = SoftTargetStream(store, **OPTIONS)
    with pytest.raises(RunError, match="curriculum = 'short first', this one None"):
        stream.load_state_dict(stream.state_dict() | {"curriculum": "short first"})
    state = stream.state_dict()
    del state["position"]
    with pytest.raises(RunError, match="position = None"):
        stream.load_state_dict(state)


def test_a_dataset_refuses_another_seed_and_an_open_store(store):
    state = SoftTargetDataset(store, **OPTIONS).state_dict()
    with pytest.raises(RunError, match="seed"):
        SoftTargetDataset(store, **OPTIONS | {"seed": 6}).load_state_dict(state)
    with pytest.raises(ConfigError, match="give the store's path"):
        SoftTargetDataset(SoftTargetStream(store, **OPTIONS).store, batch_size=8)


def test_a_damaged_shard_reaches_the_caller_from_a_worker(tmp_path):
    build_tiny(tmp_path / "store", write_corpus(tmp_path / "corpus"), shard_rows=4)
    shard = sorted((tmp_path / "store" / "data").iterdir())[3]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    dataset = SoftTargetDataset(tmp_path / "store", **OPTIONS)
    with pytest.raises(IntegrityError, match=shard.name):
        for _ in zip(range(30), DataLoader(dataset, batch_size=None, num_workers=1), strict=False):
            pass
