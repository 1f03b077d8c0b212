"""Rows of a store in a given order, their shards decoded before they are needed.

While batches are made of one block, the next one is decoded on a thread, so that entering it costs nothing.
At most the shards of two blocks are held decoded, plus what a batch of more than a block needs while it is made.

Of a remote store the shards of the next two blocks come from the network at the same time, all at once.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future

from softlabels.format.shard import Shard, StoredRow
from softlabels.store.reader import Store
from trainers.data.order import RowOrder

FETCHED_BLOCKS = 3
"""Blocks whose shards are fetched while the first of them is read."""
BELIEVED = 2**20
"""Rows of a block whose order is made (8 MiB) before any of its shards is looked at."""


class BlockReader:
    """Reads rows by their place in an order. Not shared between threads.

    Call `rows`, use them, forget them, then call `look_ahead` with the place that is read next.

    Args:
        store: to read from; its own cache is not used.
        order: of its rows.
    """

    def __init__(self, store: Store, order: RowOrder) -> None:
        self.store, self.order = store, order
        self._decoded: dict[int, Future[Shard]] = {}
        self._fetching: int | None = None
        """The block whose shards, with those of the blocks after it, were last asked for ahead."""
        self._pool: Executor | None = None
        order.before_block = self._believe

    def decode_on(self, pool: Executor | None) -> None:
        """Decode on a pool of one thread from now on; None: on the caller's, without looking ahead.

        The pool of before must have been shut down.
        """
        self._pool = pool
        self._fetching = None
        self.store.go_on()
        self._decoded = {
            index: future
            for index, future in self._decoded.items()
            if future.done() and not future.cancelled() and future.exception() is None
        }

    def give_up(self) -> None:
        """Until `decode_on`, wait for no network: what other threads read from one fails."""
        self.store.give_up()

    def rows(self, offset: int, count: int) -> list[StoredRow]:
        """`count` rows from a place of the order on, whose targets are views of their shards.

        Raises:
            IntegrityError, TargetError, PairingError: as `Store.read_shard`; they name the shard.
        """
        found = []
        for piece in self.order.pieces(offset, count):
            self._fetch(piece.block)
            if self._pool is not None:  # all at once, so that the thread is never without work
                self._want(piece.block)
            for row in piece.rows.tolist():
                shard, place = self.store.locate(row)
                found.append(self._shard(shard).row(place))
        return found

    def look_ahead(self, offset: int) -> None:
        """Drop what is not needed from a place on, and begin to decode the block after its own."""
        block = self.order.block_at(offset)
        near = {int(s) for b in (block, block + 1) for s in self.order.shards_of(b)}
        if self.order.blocks > 2:  # else all of them are held for good
            for index in self._decoded.keys() - near:
                self._decoded.pop(index).cancel()
        if self._pool is not None:
            self._fetch(block)
            self._want(block)
            self._want(block + 1)

    def _fetch(self, block: int) -> None:
        """Have the shards of a block fetched, if they are not yet here, and of the two after it if we look ahead."""
        if self._fetching == block:
            return
        self._fetching = block
        blocks = range(block, block + (1 if self._pool is None else FETCHED_BLOCKS))
        shards = dict.fromkeys(int(s) for b in blocks for s in self.order.shards_of(b))
        self.store.ahead([s for s in shards if not self._is_decoded(s)])

    def _believe(self, block: int) -> None:
        """Decode the shards of a very large block before memory is taken for its rows, which a manifest only claims."""
        if self.order.rows_of(block) <= BELIEVED:
            return
        self._fetch(block)
        for index in self.order.shards_of(block).tolist():
            self._shard(index)

    def _is_decoded(self, index: int) -> bool:
        found = self._decoded.get(index)
        return found is not None and found.done() and not found.cancelled()

    def _want(self, block: int) -> None:
        for index in self.order.shards_of(block).tolist():
            if index not in self._decoded:
                self._decoded[index] = self._begin(index)

    def _begin(self, index: int) -> Future[Shard]:
        if self._pool is not None:
            return self._pool.submit(self.store.read_shard, index)
        read: Future[Shard] = Future()
        read.set_result(self.store.read_shard(index))
        return read

    def _shard(self, index: int) -> Shard:
        if index not in self._decoded:
            self._decoded[index] = self._begin(index)
        try:
            return self._decoded[index].result()
        except BaseException:
            self._decoded.pop(index, None)  # whoever asks again reads it again
            raise
