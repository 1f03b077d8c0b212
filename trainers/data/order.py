"""The endless sequence of a store's row numbers: shuffled, and repeatable by anyone.

    store    a function of (store digest, seed, epoch) alone: shards are permuted
    corpus   a function of (fingerprint of the corpus, seed, epoch) alone: slices of it are, whatever the shards
    plan     as corpus, but the first epoch has its slices from the first to the last, as builders make them

Consecutive shards (or slices) of that order form a block; the rows of a block are permuted. Epochs follow each other
without a seam.

Two stores of one corpus, whatever their teacher, estimator, codec, container and shards, give the same rows at each
place of the order by corpus, so that runs on them differ in their targets alone. Its price: a shard that holds more
rows than a slice (`slice_rows`) is decoded up to once for each slice of it, where the order by store decodes it once an
epoch. With the default of 256 rows a shard, and any power of two below, nothing is decoded twice.

The order by plan is for a student that begins while the store is made: of one lane, it needs no more of the store than
its beginning. Its price: in the first epoch rows are mixed with those of their block alone.

Memory is O(shards), 24 bytes each, and O(rows of a block). Any place is found without the ones before it.
Ranks share the order by its lanes (`lanes.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from softlabels.errors import ConfigError

Int64 = npt.NDArray[np.int64]
ORDERS = ("corpus", "plan", "store")
PLANNED = "plan"
SLICE_ROWS = 256
"""Rows of a slice of the corpus: as many as a shard has by default."""
SLICE_POSITIONS = 2**18
"""Positions of a slice, at most, in the mean: a block of long rows must fit into memory."""
SLICES = 2**20
"""Slices of a corpus, at most: the order holds 24 bytes of each."""


def check_order(order: str, lanes: int | None = None) -> None:
    """Refuse what is not in `ORDERS`, and lanes that go with no order by plan.

    Raises:
        ConfigError: names the flag.
    """
    if order not in ORDERS:
        raise ConfigError(f"--order {order!r}: expected one of {', '.join(ORDERS)}")
    if order == PLANNED and lanes not in (None, 1):
        raise ConfigError(
            f"--lanes {lanes}: begin at as many places of the store, and --order plan at its first row alone; leave "
            "--lanes out"
        )


class Piece(NamedTuple):
    """A stretch of the sequence that lies in one block."""

    block: int
    """Number of the block, counted through all epochs."""
    rows: Int64
    """Row numbers."""


class RowOrder:
    """The endless sequence of row numbers. Not shared between threads.

    Args:
        shard_rows: `[shards]`: rows of each shard.
        digest: the store's content digest.
        seed: of the shuffle.
        block_shards: shards whose rows are mixed with each other.
        shuffle: False gives the store's own order, each epoch.

    Raises:
        ConfigError: a block of no shards, or no rows.
    """

    def __init__(
        self,
        shard_rows: Sequence[int] | Int64,
        digest: str,
        seed: int,
        *,
        block_shards: int = 8,
        shuffle: bool = True,
    ) -> None:
        if block_shards < 1:
            raise ConfigError(f"block_shards {block_shards}: expected at least 1")
        self._sizes = np.asarray(shard_rows, np.int64)
        self._starts = np.zeros(len(self._sizes), np.int64)
        np.cumsum(self._sizes[:-1], out=self._starts[1:])
        self.rows = int(self._sizes.sum())
        if self.rows < 1:
            raise ConfigError(f"an order of {self.rows} rows: expected at least 1")
        self.block_shards = block_shards
        self.parts = len(self._sizes)
        """Shards, or slices, of an epoch."""
        self.blocks = -(-self.parts // block_shards)
        """Blocks of an epoch."""
        self._digest, self._seed = digest, seed
        self._shuffle = shuffle
        self.before_block: Callable[[int], None] | None = None
        """Called with the number of a block before its rows are counted out, which takes 8 bytes for each."""
        self._epoch: tuple[int, Int64, Int64] | None = None
        self._block: tuple[int, Int64] | None = None

    def pieces(self, offset: int, count: int) -> Iterator[Piece]:
        """`count` row numbers from a place on, cut where a block ends."""
        while count > 0:
            block, start = self.find(offset)
            rows = self._rows_of(block)[start : start + count]
            yield Piece(block, rows)
            offset, count = offset + len(rows), count - len(rows)

    def take(self, offset: int, count: int) -> Int64:
        """`[count] int64`: row numbers from a place on."""
        found = [p.rows for p in self.pieces(offset, count)]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def find(self, offset: int) -> tuple[int, int]:
        """The block that a place lies in, and how many of its rows come before."""
        epoch, within = divmod(offset, self.rows)
        _, ends = self._shards(epoch)
        own = int(np.searchsorted(ends, within, side="right"))
        return epoch * self.blocks + own, within - (int(ends[own - 1]) if own else 0)

    def shards_of(self, block: int) -> Int64:
        """Shards that the rows of a block lie in, in the order of the epoch."""
        return self._parts_of(block)

    def _parts_of(self, block: int) -> Int64:
        """What a block is made of: numbers of entries of `shard_rows`."""
        epoch, own = divmod(block, self.blocks)
        order, _ = self._shards(epoch)
        return order[own * self.block_shards : (own + 1) * self.block_shards]

    def rows_of(self, block: int) -> int:
        """How many rows a block has."""
        return int(self._sizes[self._parts_of(block)].sum())

    def _permutes(self, epoch: int) -> bool:
        """Whether the shards of an epoch are."""
        return self._shuffle

    def _generator(self, *purpose: object) -> np.random.Generator:
        words = "\n".join(map(str, ("softlabels order 1", self._digest, self._seed, *purpose)))
        key = np.frombuffer(hashlib.sha256(words.encode()).digest()[:16], "<u8")
        return np.random.Generator(np.random.Philox(key=key))

    def _shards(self, epoch: int) -> tuple[Int64, Int64]:
        """The epoch's order of shards, and how many rows there are up to the end of each block of them."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = None  # never two at a time
            order = np.arange(len(self._sizes), dtype=np.int64)
            if self._permutes(epoch):
                self._generator("shards", epoch).shuffle(order)
            firsts = np.arange(0, len(order), self.block_shards)
            self._epoch = (epoch, order, np.cumsum(np.add.reduceat(self._sizes[order], firsts)))
        return self._epoch[1], self._epoch[2]

    def _rows_of(self, block: int) -> Int64:
        if self._block is None or self._block[0] != block:
            self._block = None
            if self.before_block is not None:
                self.before_block(block)
            rows = np.concatenate(
                [
                    np.arange(self._starts[s], self._starts[s] + self._sizes[s])
                    for s in self._parts_of(block)
                ]
            )
            if self._shuffle:
                self._generator("rows", *divmod(block, self.blocks)).shuffle(rows)
            rows.flags.writeable = False  # pieces are views
            self._block = (block, rows)
        return self._block[1]


class CorpusOrder(RowOrder):
    """The endless sequence of row numbers, whatever the shards that the rows lie in.

    Args:
        shard_rows: `[shards]`: rows of each shard.
        positions: of all rows.
        fingerprint: of the corpus: over the digests of all rows, in order.
        seed: of the shuffle.
        copy: orders of one corpus that go side by side (a mixture of several teachers' stores) differ in it.
        block_slices: slices whose rows are mixed with each other.
        shuffle: False gives the corpus' own order, each epoch.
        forward: keep the slices of the first epoch in the corpus' order, and shuffle within blocks alone.

    Raises:
        ConfigError: a block of no slices, or no rows.
    """

    def __init__(
        self,
        shard_rows: Sequence[int] | Int64,
        positions: int,
        fingerprint: str,
        seed: int,
        *,
        copy: int = 0,
        block_slices: int = 8,
        shuffle: bool = True,
        forward: bool = False,
    ) -> None:
        held = np.asarray(shard_rows, np.int64)
        rows = int(held.sum())
        size = slice_rows(rows, positions)
        whole, rest = divmod(rows, size)
        sizes = np.full(whole + (rest > 0), size, np.int64)
        sizes[whole:] = rest
        super().__init__(
            sizes,
            f"corpus {fingerprint} {copy}",
            seed,
            block_shards=block_slices,
            shuffle=shuffle,
        )
        self._shard_ends = np.cumsum(held)
        self.forward = forward

    def begun_by(self, offset: int) -> int:
        """Of an order that begins forward: how many shards, from the first on, the blocks of the places before need."""
        if offset == 0:
            return 0
        if offset > self.rows:
            return len(self._shard_ends)
        # Of the first epoch alone, without what is remembered of another: a thread may be ahead in that.
        part = int(np.searchsorted(self._starts, offset - 1, side="right")) - 1
        last = min((part // self.block_shards + 1) * self.block_shards, self.parts) - 1
        row = self._starts[last] + self._sizes[last] - 1
        return int(np.searchsorted(self._shard_ends, row, side="right")) + 1

    def _permutes(self, epoch: int) -> bool:
        return self._shuffle and not (self.forward and epoch == 0)

    def shards_of(self, block: int) -> Int64:
        """Shards that the rows of a block lie in, each once, in the order in which slices name them."""
        parts = self._parts_of(block)
        starts = self._starts[parts]
        first = np.searchsorted(self._shard_ends, starts, side="right")
        last = np.searchsorted(self._shard_ends, starts + self._sizes[parts] - 1, side="right")
        named = (np.arange(a, b + 1) for a, b in zip(first, last, strict=True))
        return np.array(list(dict.fromkeys(np.concatenate(list(named)).tolist())), np.int64)


def slice_rows(rows: int, positions: int) -> int:
    """Rows of a slice, of a corpus alone: `SLICE_ROWS`, or a smaller power of two where rows are long."""
    size = SLICE_ROWS
    while size > 1 and size * positions > SLICE_POSITIONS * rows:
        size //= 2
    return max(size, -(-rows // SLICES))
