import json
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabels.errors import ConfigError
from trainers.data.order import RowOrder

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=25)
blocks = st.integers(1, 8)


@given(sizes, blocks, st.integers(0, 3), st.integers(1, 70), st.booleans())
def test_each_epoch_holds_every_row_once_whatever_the_batch(sizes, block, epoch, batch, shuffle):
    """Batches that straddle the seam neither lose a row nor take one twice."""
    order = RowOrder(sizes, "d", 1, block_shards=block, shuffle=shuffle)
    rows = sum(sizes)
    first = epoch * rows // batch
    last = -(-(epoch + 1) * rows // batch)
    taken = np.concatenate([order.take(i * batch, batch) for i in range(first, last)])
    own = taken[epoch * rows - first * batch :][:rows]
    assert sorted(own) == list(range(rows))
    if not shuffle:
        assert own.tolist() == list(range(rows))


@given(sizes, blocks, st.lists(st.integers(0, 400), min_size=1, max_size=8), st.integers(1, 50))
def test_any_place_is_found_without_those_before_it(sizes, block, places, count):
    """Jumping about one order gives what walking another gives."""
    jumping = RowOrder(sizes, "d", 1, block_shards=block)
    walked = RowOrder(sizes, "d", 1, block_shards=block).take(0, 450)
    for place in places:
        assert jumping.take(place, count).tolist() == walked[place : place + count].tolist()


@given(sizes, blocks, st.integers(0, 200), st.integers(1, 120))
def test_pieces_lie_in_their_blocks(sizes, block, position, count):
    order = RowOrder(sizes, "d", 1, block_shards=block)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    pieces = list(order.pieces(position, count))
    assert sum(len(p.rows) for p in pieces) == count
    assert all(b.block == a.block + 1 for a, b in pairwise(pieces))
    assert pieces[0].block == order.find(position)[0]
    for piece in pieces:
        assert set(shard_of[piece.rows]) <= set(order.shards_of(piece.block).tolist())


def test_epochs_differ_in_shards_and_in_rows():
    order = RowOrder([50] * 4, "d", 0, block_shards=1)
    firsts = [order.shards_of(e * 4).tolist() for e in range(12)]
    assert len({tuple(f) for f in firsts}) > 1
    assert len({tuple(order.take(e * 200, 200).tolist()) for e in range(12)}) == 12


@pytest.mark.parametrize(
    ("sizes", "block", "message"), [([], 8, "0 rows"), ([4], 0, "block_shards 0")]
)
def test_an_order_of_nothing_is_refused(sizes, block, message):
    with pytest.raises(ConfigError, match=message):
        RowOrder(sizes, "d", 0, block_shards=block)


def place_among_a_billion() -> dict[str, float]:
    """Seconds to the first row numbers from a place, and the peak of memory that takes (MiB)."""
    shard_rows = np.full(10**6, 1000)
    position = 7 * 10**9 + 123_456_789
    start = perf_counter()
    RowOrder(shard_rows, "d", 1).take(position, 256)
    seconds = perf_counter() - start
    tracemalloc.start()
    order = RowOrder(shard_rows, "d", 1)
    for epoch in range(3):  # and the seams
        order.take(position, 256)
        order.take((7 + epoch) * 10**9 - 128, 256)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return {"seconds": seconds, "peak_mib": peak + shard_rows.nbytes / 2**20}


@pytest.mark.slow
def test_the_order_of_a_billion_rows_is_quick_and_small():
    """The order alone, of more shards than a store can have: 10^6 of 1,000 rows, in a process of its own."""
    program = "import json; from tests.trainers.test_order import *; print(json.dumps(place_among_a_billion()))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["seconds"] < 1
    assert found["peak_mib"] * 2**20 <= 50e6
