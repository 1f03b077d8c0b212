"""The endless sequence of a store's row numbers: shuffled, and repeatable by anyone.

It is a function of (store digest, seed, epoch) alone. Shards are permuted; consecutive shards of that
order form a block; the rows of a block are permuted. Epochs follow each other without a seam.

Memory is O(shards), 24 bytes each, and O(rows of a block). Any place is found without the ones before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from softlabels.errors import ConfigError

Int64 = npt.NDArray[np.int64]


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
        self.blocks = -(-len(self._sizes) // block_shards)
        """Blocks of an epoch."""
        self._digest, self._seed = digest, seed
        self._shuffle = shuffle
        self.before_block: Callable[[int], None] | None = None
        """Called with the number of a block before its rows are counted out, which takes 8 bytes for each."""
        self._epoch: tuple[int, Int64, Int64] | None = None
        self._block: tuple[int, Int64] | None = None

    @property
    def shards(self) -> int:
        """Shards of the store."""
        return len(self._sizes)

    def pieces(self, offset: int, count: int) -> Iterator[Piece]:
        """`count` row numbers from a place on, cut where a block ends."""
        while count > 0:
            block, start = self._find(offset)
            rows = self._rows_of(block)[start : start + count]
            yield Piece(block, rows)
            offset, count = offset + len(rows), count - len(rows)

    def take(self, offset: int, count: int) -> Int64:
        """`[count] int64`: row numbers from a place on."""
        found = [p.rows for p in self.pieces(offset, count)]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def block_at(self, offset: int) -> int:
        """Number of the block that a place lies in."""
        return self._find(offset)[0]

    def shards_of(self, block: int) -> Int64:
        """Shards of a block, in the order of the epoch."""
        epoch, own = divmod(block, self.blocks)
        order, _ = self._shards(epoch)
        return order[own * self.block_shards : (own + 1) * self.block_shards]

    def rows_of(self, block: int) -> int:
        """How many rows a block has."""
        return int(self._sizes[self.shards_of(block)].sum())

    def _find(self, offset: int) -> tuple[int, int]:
        """Block of a place, and how many of its rows come before."""
        epoch, within = divmod(offset, self.rows)
        _, ends = self._shards(epoch)
        own = int(np.searchsorted(ends, within, side="right"))
        return epoch * self.blocks + own, within - (int(ends[own - 1]) if own else 0)

    def _generator(self, *purpose: object) -> np.random.Generator:
        words = "\n".join(map(str, ("softlabels order 1", self._digest, self._seed, *purpose)))
        key = np.frombuffer(hashlib.sha256(words.encode()).digest()[:16], "<u8")
        return np.random.Generator(np.random.Philox(key=key))

    def _shards(self, epoch: int) -> tuple[Int64, Int64]:
        """The epoch's order of shards, and how many rows there are up to the end of each block of them."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = None  # never two at a time
            order = np.arange(len(self._sizes), dtype=np.int64)
            if self._shuffle:
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
                    for s in self.shards_of(block)
                ]
            )
            if self._shuffle:
                self._generator("rows", *divmod(block, self.blocks)).shuffle(rows)
            rows.flags.writeable = False  # pieces are views
            self._block = (block, rows)
        return self._block[1]
