"""Shards decoded ahead: how many at a time, on which thread, and what happens when one is bad."""

import gc
import threading
import time
import weakref

import pytest

from softlabels.errors import IntegrityError
from softlabels.store.reader import open_store
from tests.fakes import build_tiny, write_corpus
from trainers.data.stream import SoftTargetStream

BLOCK = 2
SHARDS = {"order": "store", "lanes": 1, "block_shards": BLOCK}
"""Whole shards in blocks, one block after the other."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    corpus = write_corpus(folder / "corpus", repeat=3)
    build_tiny(folder / "store", corpus, shard_rows=3, limit_rows=30)
    return folder / "store"


class Watched:
    """A store that remembers its decoded shards, and on which thread they were."""

    def __init__(self, path, seconds=0.0):
        self.store = open_store(path)
        self.alive = weakref.WeakSet()
        self.most, self.threads, self.order = 0, set(), []
        read, lock = self.store.read_shard, threading.Lock()

        def read_shard(index):
            time.sleep(seconds)
            shard = read(index)
            with lock:
                self.alive.add(shard)
                self.most = max(self.most, len(self.alive))
                self.threads.add(threading.current_thread().name)
                self.order.append(index)
            return shard

        self.store.read_shard = read_shard


def ours():
    return [t.name for t in threading.enumerate() if t.name.startswith("softlabels-")]


def settled(watched):
    """Wait until nothing is decoded any more."""
    before = -1
    while before != len(watched.order):
        before = len(watched.order)
        time.sleep(0.1)


@pytest.mark.parametrize("prefetch", [0, 1, 4])
@pytest.mark.parametrize("batch", [2, 5])
def test_no_more_than_two_blocks_are_held(store, prefetch, batch):
    watched = Watched(store)
    assert len(watched.store.manifest.shards) == 5 * BLOCK
    batches = iter(SoftTargetStream(watched.store, batch_size=batch, prefetch=prefetch, **SHARDS))
    gc.disable()  # freed by reference counts alone, or the bound would depend on luck
    try:
        for _ in range(60):
            next(batches)
            time.sleep(0.002)
    finally:
        gc.enable()
    batches.close()
    assert BLOCK <= watched.most <= 2 * BLOCK


def test_the_next_block_is_decoded_before_it_is_asked_for(store):
    watched = Watched(store)
    stream = SoftTargetStream(watched.store, batch_size=1, prefetch=1, **SHARDS)
    batches = iter(stream)
    next(batches)
    settled(watched)
    assert sorted(watched.order) == sorted(
        int(s) for b in (0, 1) for s in stream._reader.lanes.order.shards_of(b)
    )
    assert all(name.startswith("softlabels-decode") for name in watched.threads)
    batches.close()


def test_entering_a_block_does_not_wait_for_its_shards(store):
    """Each shard takes 30 ms; a batch of a block that is there takes far less, on either side of the seam."""
    watched = Watched(store, seconds=0.03)
    stream = SoftTargetStream(watched.store, batch_size=3, prefetch=1, **SHARDS)
    batches = iter(stream)
    next(batches)
    waits = []
    for _ in range(8):
        settled(watched)
        start = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - start)
    batches.close()
    assert stream.offset > 3 * 6, "no block was entered"
    assert sorted(waits)[-2] < 0.03  # one may be the machine's


def test_a_small_store_is_decoded_once(store, tmp_path):
    build_tiny(tmp_path / "store", write_corpus(tmp_path / "c", documents=1), shard_rows=4)
    watched = Watched(tmp_path / "store")
    batches = iter(SoftTargetStream(watched.store, batch_size=4))
    for _ in range(40):
        next(batches)
    batches.close()
    assert sorted(watched.order) == list(range(len(watched.store.manifest.shards)))


@pytest.mark.parametrize("how", ["close", "drop", "error"])
def test_no_thread_outlives_the_iterator(store, how):
    watched = Watched(store, seconds=0.01)
    batches = iter(SoftTargetStream(watched.store, batch_size=2, **SHARDS))
    next(batches)
    assert ours()
    if how == "close":
        batches.close()
    elif how == "error":
        with pytest.raises(KeyError, match="a step"):
            batches.throw(KeyError("a step failed"))
    del batches
    gc.collect()
    assert not ours()


def test_a_bad_shard_is_named_once_it_is_needed_and_read_again_when_asked_again(store):
    opened = open_store(store)
    stream = SoftTargetStream(opened, batch_size=2, **SHARDS)
    bad = int(stream._reader.lanes.order.shards_of(1)[0])
    read = opened.read_shard
    broken = True

    def read_shard(index):
        if broken and index == bad:
            raise IntegrityError(f"{opened.manifest.shards[index].name}: torn")
        return read(index)

    opened.read_shard = read_shard
    batches = iter(stream)
    got = [next(batches)]  # the bad one is being decoded ahead by now: nobody needs it yet
    with pytest.raises(IntegrityError, match=opened.manifest.shards[bad].name):
        got.extend(batches)
    first = got[-1]
    assert not ours()
    assert stream.state_dict() == stream.state_dict(after=first)
    broken = False
    again = iter(stream)
    assert next(again).offset == first.offset + 2
    again.close()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_stream_that_nobody_has_gives_its_shards_back_at_once(store, prefetch):
    gc.collect()
    gc.disable()  # whose turn would come after some more streams
    try:
        watched = Watched(store)
        stream = SoftTargetStream(watched.store, batch_size=4, prefetch=prefetch, **SHARDS)
        batches = iter(stream)
        next(batches)
        assert watched.alive
        del watched.store, stream, batches
        assert not watched.alive
    finally:
        gc.enable()
