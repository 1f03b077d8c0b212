import hashlib
from collections import Counter

import numpy as np
import pytest
import torch

from softlabels.errors import IntegrityError, RunError
from softlabels.store.reader import open_store
from tests.fakes import build_tiny, write_corpus
from trainers.data.microbatches import split_batch
from trainers.data.order import RowOrder
from trainers.data.stream import SoftTargetStream


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    build_tiny(folder / "store", write_corpus(folder / "corpus"), shard_rows=4)
    return folder / "store"


def take(stream, n):
    batches = iter(stream)
    out = [next(batches) for _ in range(n)]
    batches.close()
    return out


def digest(batches):
    h = hashlib.sha256()
    for b in batches:
        for x in (
            b.rows,
            b.inputs["input_ids"].numpy(),
            b.labels.numpy(),
            b.targets.ids,
            b.targets.gaps,
        ):
            h.update(np.ascontiguousarray(x).tobytes())
    return h.hexdigest()


def taken(sizes, digest, seed, count, **options):
    return RowOrder(sizes, digest, seed, **options).take(0, count).tolist()


def test_each_epoch_holds_every_row_once_in_another_order(store):
    order = RowOrder([4] * 9 + [3], "d", 0, block_shards=3)
    epochs = [order.take(e * 39, 39).tolist() for e in range(3)]
    for e in epochs:
        assert Counter(e) == Counter(range(39))
    assert epochs[0] != epochs[1] != epochs[2]


def test_order_is_a_function_of_digest_seed_and_epoch():
    sizes = [5, 3, 8, 1, 6]
    assert taken(sizes, "a", 1, 50) == taken(sizes, "a", 1, 50)
    assert taken(sizes, "a", 1, 23) != taken(sizes, "b", 1, 23)
    assert taken(sizes, "a", 1, 23) != taken(sizes, "a", 2, 23)
    # Pinned: the order must not change with a version, or no run could be resumed.
    assert taken([4, 4, 4], "digest", 7, 12, block_shards=2) == PINNED


PINNED = [5, 4, 7, 2, 3, 0, 6, 1, 11, 8, 9, 10]


def test_random_access_equals_the_sequence():
    order = RowOrder([4] * 10, "d", 3, block_shards=4)
    sequence = order.take(0, 100)
    for place in (99, 0, 57, 41, 13):
        assert RowOrder([4] * 10, "d", 3, block_shards=4).take(place, 1) == sequence[place]


def test_blocks_bound_what_is_mixed():
    order = RowOrder([10] * 20, "d", 0, block_shards=2)
    for block in range(10):
        rows = order.take(block * 20, 20)
        assert len({r // 10 for r in rows}) == 2


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_prefetch_does_not_change_the_batches(store, prefetch):
    a = take(SoftTargetStream(store, batch_size=5, seed=1, prefetch=0), 20)
    b = take(SoftTargetStream(store, batch_size=5, seed=1, prefetch=prefetch), 20)
    assert digest(a) == digest(b)


@pytest.mark.parametrize("stop", [0, 1, 7, 8, 13])
def test_resume_continues_exactly_across_epochs(store, stop):
    whole = take(SoftTargetStream(store, batch_size=5, seed=1), 20)
    first = SoftTargetStream(store, batch_size=5, seed=1)
    begun = take(first, stop)
    second = SoftTargetStream(store, batch_size=5, seed=1)
    second.load_state_dict(first.state_dict())
    assert digest(begun + take(second, 20 - stop)) == digest(whole)


def test_the_state_refuses_another_store_or_seed(store, tmp_path):
    state = SoftTargetStream(store, batch_size=5, seed=1).state_dict()
    with pytest.raises(RunError, match="seed"):
        SoftTargetStream(store, batch_size=5, seed=2).load_state_dict(state)
    build_tiny(tmp_path / "other", write_corpus(tmp_path / "c", repeat=1))
    with pytest.raises(RunError, match="store"):
        SoftTargetStream(tmp_path / "other", batch_size=5, seed=1).load_state_dict(state)


def test_targets_belong_to_their_rows(store):
    opened = open_store(store)
    for batch in take(SoftTargetStream(store, batch_size=4, seed=3), 12):
        done = 0
        for b, index in enumerate(batch.rows):
            row = opened.row(index)
            n = row.targets.n
            here = slice(done, done + n)
            np.testing.assert_array_equal(batch.targets.ids[here], row.targets.ids)
            np.testing.assert_array_equal(batch.labels[here].numpy(), row.row.labels)
            flat = batch.flat_positions[here].numpy() - b * batch.inputs["input_ids"].shape[1]
            np.testing.assert_array_equal(flat, row.row.positions)
            done += n
        assert done == batch.positions


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_micro_batches_hold_the_same_positions(store, parts):
    (batch,) = take(SoftTargetStream(store, batch_size=4, seed=3), 1)
    micro = list(split_batch(batch, parts))
    assert sum((m.rows for m in micro), ()) == batch.rows
    assert torch.equal(torch.cat([m.labels for m in micro]), batch.labels)
    np.testing.assert_array_equal(np.concatenate([m.targets.ids for m in micro]), batch.targets.ids)
    whole = batch.inputs["input_ids"].flatten()[batch.flat_positions]
    assert torch.equal(
        torch.cat([m.inputs["input_ids"].flatten()[m.flat_positions] for m in micro]), whole
    )


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_damaged_shard_reaches_the_training_thread(store, tmp_path, prefetch):
    folder = tmp_path / "corpus"
    build_tiny(tmp_path / "store", write_corpus(folder), shard_rows=4)
    shard = sorted((tmp_path / "store" / "data").iterdir())[3]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(IntegrityError, match=shard.name):
        take(SoftTargetStream(tmp_path / "store", batch_size=4, prefetch=prefetch), 30)
