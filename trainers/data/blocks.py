"""Rows of a store in a given order, their shards decoded before they are needed.

While batches are made of a block, the next one is decoded on a thread, so that entering it costs nothing. Of each lane
that is read here the shards of one block are held decoded, and those of the blocks that are entered next: one for each
lane, but in all no more than `Lanes` mixes; plus what a batch of more than a block needs while it is made.

Of a remote store these shards, and those of as many blocks more, come from the network at the same time. Of a store
that is followed, a block is entered when all its shards are there; what is not there is not decoded ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from functools import partial
from weakref import ref

from softlabels.format.shard import Shard, StoredRow
from softlabels.store.reader import Store
from trainers.data.lanes import Lanes, Span

BELIEVED = 2**20
"""Rows of a block whose order is made (8 MiB) before any of its shards is looked at."""


class BlockReader:
    """Reads rows by their place in an order. Not shared between threads.

    Call `rows`, use them, forget them, then call `look_ahead` with what is read next.

    Args:
        store: to read from; its own cache is not used.
        lanes: of the order of its rows.
        mixed: shards (or slices) that are mixed with each other; as many may be decoded ahead.
    """

    def __init__(self, store: Store, lanes: Lanes, mixed: int) -> None:
        self.store, self.lanes = store, lanes
        self._ahead = max(1, mixed // lanes.order.block_shards)
        """Blocks that are decoded ahead, at most."""
        self._decoded: dict[int, Future[Shard]] = {}
        self._planned: list[int] = []
        """The blocks at hand when shards were last asked for ahead."""
        self._asked: set[int] = set()
        """The blocks whose shards were."""
        self._entered: int | None = None
        """The block, none of these, that a batch went on into."""
        self._whole: int | None = None
        """Of a store that is followed, the block whose shards were last waited for."""
        self._lacking = False
        """Whether shards that are wanted ahead were not."""
        self._pool: Executor | None = None
        lanes.order.before_block = partial(_believe, ref(self))

    def decode_on(self, pool: Executor | None) -> None:
        """Decode on a pool of one thread from now on; None: on the caller's, without looking ahead.

        The pool of before must have been shut down.
        """
        self._pool = pool
        self._planned = []
        self.store.go_on()
        self._decoded = {
            index: future
            for index, future in self._decoded.items()
            if future.done() and not future.cancelled() and future.exception() is None
        }

    def give_up(self) -> None:
        """Until `decode_on`, wait for no network: what other threads read from one fails."""
        self.store.give_up()

    def rows(self, spans: Sequence[Span]) -> list[StoredRow]:
        """The rows of some lanes, one span after the other, whose targets are views of their shards.

        Raises:
            IntegrityError, TargetError, PairingError: as `Store.read_shard`; they name the shard.
        """
        self.look_ahead(spans)  # nothing new, unless they are not what was announced
        found = []
        for span in spans:
            for piece in self.lanes.pieces(span):
                self._enter(piece.block)
                for row in piece.rows.tolist():
                    shard, place = self.store.locate(row)
                    found.append(self._shard(shard).row(place))
        return found

    def look_ahead(self, spans: Sequence[Span]) -> None:
        """Drop what is not needed from these spans on, and begin to decode the blocks that come after their own."""
        here = [self.lanes.stretch(span.lane, span.step).block for span in spans]
        if here == self._planned and self._entered is None and not self._lacking:
            return
        self._planned, self._entered = here, None
        count, order = min(len(spans), self._ahead), self.lanes.order
        soon = self.lanes.following(spans, 2 * count)
        near = self._shards_of(here + soon[:count])
        if order.parts > (len(spans) + count) * order.block_shards:  # else all are held for good
            for index in self._decoded.keys() - set(near):
                self._decoded.pop(index).cancel()
        asked = here if self._pool is None else here + soon
        self._asked = set(asked)
        self._fetch(self._shards_of(asked))
        if self._pool is not None:
            there = [index for index in near if self.store.is_there(index)]
            self._lacking = len(there) < len(near)
            self._want(there)

    def _shards_of(self, blocks: Sequence[int]) -> list[int]:
        """Each once, those of the first blocks first."""
        named = (self.lanes.order.shards_of(b).tolist() for b in dict.fromkeys(blocks))
        return list(dict.fromkeys(index for shards in named for index in shards))

    def _enter(self, block: int) -> None:
        """Have all shards of a block decoded at once that was not planned: a batch goes on into it."""
        if not self.store.finished and block != self._whole:
            shards = self._shards_of([block])
            self.store.wait_for(shards)
            self._whole = block
            if self._pool is not None:
                self._want(shards)
        if block in self._asked or block == self._entered:
            return
        self._entered = block
        shards = self._shards_of([block])
        self._fetch(shards)
        if self._pool is not None:
            self._want(shards)

    def _fetch(self, shards: Sequence[int]) -> None:
        """Have these shards fetched, and no others, if they are not yet here."""
        self.store.ahead([s for s in shards if not self._is_decoded(s)])

    def _is_decoded(self, index: int) -> bool:
        found = self._decoded.get(index)
        return found is not None and found.done() and not found.cancelled()

    def _want(self, shards: Sequence[int]) -> None:
        for index in shards:
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


def _believe(reader: ref[BlockReader], block: int) -> None:
    """Decode the shards of a very large block before memory is taken for its rows, which a manifest only claims.

    An order that knew its reader itself would keep the decoded shards of a stream that nobody has any more.
    """
    found = reader()
    if found is None or found.lanes.order.rows_of(block) <= BELIEVED:
        return
    for index in found.lanes.order.shards_of(block).tolist():
        found._shard(index)
