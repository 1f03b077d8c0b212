"""Batches of a store in a shuffled order that anyone can repeat, resume and share.

The order (`order.py`) is one endless sequence of rows; batch i is always rows i*B to (i+1)*B of it, so no
row is dropped and none repeated. B is the *global* batch, in which the rows of each lane (`lanes.py`) lie together:
of W ranks, rank r makes its rows r*B/W to (r+1)*B/W, and decodes the shards that these lanes lie in. The state is one
number, how many global rows were taken, whoever took them: it is the same on every rank, and any other number of ranks
or workers goes on from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlabels.errors import ConfigError, RunError
from softlabels.store.reader import Store, open_store
from trainers.data.arrangement import EARLIER, Arrangement, orders_of
from trainers.data.batch import Batch, collate
from trainers.data.blocks import BlockReader
from trainers.data.chain import Chain
from trainers.data.lanes import Span, spans
from trainers.data.order import PLANNED, CorpusOrder

if TYPE_CHECKING:
    from trainers.data.full_teacher import FullTeacher


class BatchStream(ABC):
    """What all streams share: order, ranks, offset, prefetch. Make a `SoftTargetStream` or a `MixedStream`.

    One that is made has its options checked, and no store yet: it then opens them and calls `_begin`.

    Args:
        batch_size, seed, shuffle, order, block_shards, lanes, prefetch, rank, world_size: as of `SoftTargetStream`.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        order: str | None,
        block_shards: int,
        lanes: int | None,
        prefetch: int,
        rank: int,
        world_size: int,
    ) -> None:
        check_slices(batch_size, rank, world_size)
        if prefetch < 0:
            raise ConfigError(f"prefetch {prefetch}: expected at least 0")
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.offset = 0
        """Global rows taken so far, all epochs together."""
        self._shuffle, self._block_shards, self._prefetch = shuffle, block_shards, prefetch
        self._named = (order, lanes)
        """None: not named, so that a state may say it."""
        self._arrangement = Arrangement.chosen(order, lanes, batch_size, shuffle=shuffle)
        self._stores: Sequence[Store] = ()
        self._own_facts: dict[str, Any] = {}
        self._readers: Sequence[BlockReader] = ()
        """Of each store."""

    def _begin(self, stores: Sequence[Store], facts: dict[str, Any]) -> None:
        """Read these stores, whose facts a state must agree in."""
        self._stores = stores
        self._own_facts = {
            **facts,
            "seed": self.seed,
            "shuffle": self._shuffle,
            "block_shards": self._block_shards,
        }
        self._readers = self._arranged(self._arrangement)

    def _arranged(self, arrangement: Arrangement) -> list[BlockReader]:
        block, shuffle = self._block_shards, self._shuffle
        cut = orders_of(self._stores, self.seed, arrangement, block_shards=block, shuffle=shuffle)
        return [BlockReader(s, o, block) for s, o in zip(self._stores, cut, strict=True)]

    @property
    def order(self) -> str:
        """By what the rows are ordered: `corpus`, `plan` or `store`."""
        return self._arrangement.order

    @property
    def lanes(self) -> int:
        """C, lanes of the order."""
        return self._arrangement.lanes

    @property
    @abstractmethod
    def epoch(self) -> float:
        """How many times the store was gone through, so far."""

    @abstractmethod
    def _read(self, own: Sequence[Span], offset: int) -> Batch:
        """The rows of these spans, as a batch whose global batch begins at `offset`."""

    @abstractmethod
    def _look_ahead(self, own: Sequence[Span]) -> None:
        """These spans are the next batch."""

    # -- state ------------------------------------------------------------------------------------

    def state_dict(self, after: Batch | None = None) -> dict[str, Any]:
        """Plain data from which `load_state_dict` continues exactly, on any number of ranks.

        Args:
            after: the last batch that was used; None: the last one that this stream yielded.
        """
        offset = self.offset
        if after is not None:
            if after.offset is None:
                raise ConfigError("state_dict(after=…): that batch did not come from a stream")
            offset = after.offset + self.batch_size
        return self.state_at(offset)

    def state_at(self, position: int) -> dict[str, Any]:
        """What `state_dict` gives where so many global rows were taken."""
        return {**self._facts(self._arrangement), "position": position}

    def _facts(self, arrangement: Arrangement) -> dict[str, Any]:
        return {**self._own_facts, **arrangement.facts(self.batch_size)}

    def _arrangement_of(self, state: dict[str, Any]) -> Arrangement:
        """What is named and, where nothing is, what a state says; as it is, if a stream cannot have that."""
        order, lanes = self._named
        order = state.get("order", EARLIER["order"]) if order is None else order
        lanes = state.get("lanes", EARLIER["lanes"]) if lanes is None else lanes
        try:
            return Arrangement.chosen(order, lanes, self.batch_size)
        except ConfigError:
            return self._arrangement

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another stream was, from the next `iter` on; in its order and lanes where none are named.

        Raises:
            RunError: the state is of another store, seed or shuffle.
        """
        arrangement = self._arrangement_of(state)
        facts = self._facts(arrangement)
        beside = {"position", "learnt"} if state.get("order") == PLANNED else {"position"}
        for name in sorted(facts.keys() | (state.keys() - beside)):
            value, saved = facts.get(name), state.get(name)
            if saved != value:
                raise RunError(
                    f"the saved stream has {name} = {saved!r}, this one {value!r}: its rows would come in "
                    "another order; resume with the store and seed that the run began with"
                )
        offset = state.get("position")
        if type(offset) is not int or offset < 0:
            raise RunError(
                f"the saved stream has position = {offset!r}, expected a number of rows, 0 or more; resume from "
                "another checkpoint"
            )
        if arrangement.lanes > 1 and offset % self.batch_size:
            raise RunError(
                f"the saved stream has position = {offset}, expected a multiple of the batch size {self.batch_size}; "
                "resume from another checkpoint"
            )
        same = arrangement == self._arrangement
        readers = self._readers if same else self._arranged(arrangement)
        self._check_learnt(readers, offset, state.get("learnt"))
        self._arrangement, self._readers, self.offset = arrangement, readers, offset

    def _check_learnt(self, readers: Sequence[BlockReader], offset: int, learnt: Any) -> None:
        """Refuse a store whose shards are not those that a state has learnt from, if it names any."""
        if learnt is not None:
            raise RunError(f"the saved stream has learnt = {learnt!r}, this one names no shards")

    def stop_waiting(self) -> None:
        """Of a store that is followed: wait for no more of its shards, until the next iterator is made."""
        for reader in self._readers:
            reader.store.stop_waiting()

    # -- batches ----------------------------------------------------------------------------------

    def batch_at(self, offset: int) -> Batch:
        """This rank's slice of the global batch that begins at a place. Not while an iterator is open.

        Raises:
            ConfigError: with several lanes, a place in the midst of a batch.
        """
        if self.lanes > 1 and offset % self.batch_size:
            raise ConfigError(
                f"batch_at({offset}): with {self.lanes} lanes a batch begins at a multiple of {self.batch_size}"
            )
        return self._batch(offset, offset + self.batch_size)

    def _batch(self, offset: int, following: int) -> Batch:
        batch = self._read(self._own(offset), offset)
        self._look_ahead(self._own(following))
        return batch

    def _own(self, offset: int) -> list[Span]:
        """Where this rank's rows lie of the batch that begins at a place."""
        count = self.batch_size // self.world_size
        return list(spans(self.batch_size, self.lanes, offset, self.rank * count, count))

    def __iter__(self) -> Generator[Batch]:
        """Batches from the present offset on, without end; `offset` advances with each."""
        return self.every(1)

    def every(self, stride: int, first: int = 0) -> Generator[Batch]:
        """Batches `first`, `first + stride`, … from the present offset on; `offset` is after the last yielded.

        One of n workers iterates `every(n, first=w)`. One iterator at a time: close it, or drop it, before the next.
        """
        step = stride * self.batch_size
        place = self.offset + first * self.batch_size
        if self._prefetch == 0:
            while True:
                batch = self._batch(place, place + step)
                self.offset = place + self.batch_size
                place += step
                yield batch
        with (
            self._decoding_ahead(),
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="softlabels-batches") as pool,
        ):
            ahead: deque[Future[Batch]] = deque()
            planned = place
            try:
                while True:
                    while len(ahead) < self._prefetch:
                        ahead.append(pool.submit(self._batch, planned, planned + step))
                        planned += step
                    batch = ahead.popleft().result()
                    self.offset = place + self.batch_size
                    place += step
                    yield batch
            finally:
                for future in ahead:
                    future.cancel()
                for reader in self._readers:
                    reader.give_up()

    @contextmanager
    def _decoding_ahead(self) -> Iterator[None]:
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="softlabels-decode")
        for reader in self._readers:
            reader.decode_on(pool)
        try:
            yield
        finally:
            pool.shutdown(cancel_futures=True)
            for reader in self._readers:
                reader.decode_on(None)


class SoftTargetStream(BatchStream):
    """Endless batches of a store. One global batch is one optimiser step.

    With a batch size and a seed alone it gives the rows of `softtrain run` with these.

    Args:
        store: path of a store, or an open one (which the stream then has to itself).
        batch_size: rows in a global batch.
        seed: of the order.
        shuffle: False for the store's own order.
        order: `corpus`, in which all stores of one corpus give the same rows at each step, whatever they keep of them
            (`trainers/data/order.py`); `plan`, the same but for the first epoch, which goes from the first row to the
            last; or `store`, which follows from the store's digest. None: `corpus`.
        block_shards: shards (or slices of the corpus) whose rows are mixed; up to twice as many are held decoded, or
            one of each lane and these.
        lanes: C, which must divide the batch size: a batch takes B/C rows of each of C places of the epoch, and of W
            ranks each decodes the shards of C/W of them (`trainers/data/lanes.py`). None: the most that divide it, up
            to 16; one if nothing is shuffled, and by plan.
        prefetch: batches made ahead on a thread of their own, while another decodes the next block's shards;
            0 makes and decodes them when asked.
        vocab: another vocabulary to read it in, as in `open_store`; an open store has its own already.
        images: where the images of a store of images lie; likewise.
        teacher: all of the teacher's distribution, which batches then carry beside the store's targets.
        rank: of this process, from 0. It makes the rank's contiguous slice of each batch.
        world_size: number of ranks; must divide the batch size.

    Raises:
        ConfigError: a vocabulary besides an open store, or one that does not fit; a rank or world size that does not.
        StoreError: the store cannot be opened; later, that a shard was found damaged.
    """

    def __init__(
        self,
        store: Store | Path | str,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        order: str | None = None,
        block_shards: int = 8,
        lanes: int | None = None,
        prefetch: int = 2,
        vocab: str | None = None,
        images: Sequence[str] = (),
        teacher: FullTeacher | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            order=order,
            block_shards=block_shards,
            lanes=lanes,
            prefetch=prefetch,
            rank=rank,
            world_size=world_size,
        )
        self.store = opened(store, vocab, images)
        self._teacher = teacher
        self._chain = Chain(self.store)
        self._begin([self.store], {"store": self.store.digest})

    @property
    def epoch(self) -> float:
        """How many times the store was gone through, so far."""
        return self.offset / self._reader.lanes.order.rows

    @property
    def _reader(self) -> BlockReader:
        (reader,) = self._readers
        return reader

    def state_at(self, position: int) -> dict[str, Any]:
        """As of all streams; by plan, also what the shards were that were learnt from."""
        state, begun = super().state_at(position), _begun_by(self._reader, position)
        return state if begun is None else {**state, "learnt": self._chain.state(begun)}

    def _check_learnt(self, readers: Sequence[BlockReader], offset: int, learnt: Any) -> None:
        (reader,) = readers
        if (begun := _begun_by(reader, offset)) is not None:
            self._chain.check(learnt, begun)

    def _facts(self, arrangement: Arrangement) -> dict[str, Any]:
        """By plan, the rows of the store stand for it: its shards may not all be made."""
        facts = super()._facts(arrangement)
        if arrangement.order == PLANNED:
            del facts["store"]
            facts["corpus"] = self.store.identity.corpus.fingerprint
        return facts

    def _read(self, own: Sequence[Span], offset: int) -> Batch:
        rows = self._reader.rows(own)
        teacher = None if self._teacher is None else self._teacher.at(rows)
        return replace(collate(rows, offset=offset), teacher=teacher)

    def _look_ahead(self, own: Sequence[Span]) -> None:
        self._reader.look_ahead(own)


def _begun_by(reader: BlockReader, position: int) -> int | None:
    """How many of a store's first shards are learnt from before a position; None: not by plan."""
    order = reader.lanes.order
    if isinstance(order, CorpusOrder) and order.forward:
        return order.begun_by(position)
    return None


def check_slices(batch_size: int, rank: int, world_size: int) -> None:
    """Refuse a batch that the ranks cannot share evenly.

    Raises:
        ConfigError: names all three.
    """
    if batch_size < 1:
        raise ConfigError(f"--batch-size {batch_size}: expected at least 1")
    if world_size < 1 or not 0 <= rank < world_size:
        raise ConfigError(f"rank {rank} of {world_size}: expected 0 to {max(world_size, 1) - 1}")
    if batch_size % world_size:
        raise ConfigError(
            f"--batch-size {batch_size}: must be divisible by the {world_size} ranks, which take equal slices of each "
            f"batch; choose {batch_size - batch_size % world_size or world_size} or another multiple of {world_size}"
        )


def opened(store: Store | Path | str, vocab: str | None, images: Sequence[str] = ()) -> Store:
    """An open store, or the store of a path.

    Raises:
        ConfigError: a vocabulary or images besides an open store.
        PairingError: its inputs are elsewhere, and were not given.
    """
    if not isinstance(store, Store):
        store, vocab, images = open_store(store, vocab=vocab, images=images), None, ()
    store.need_inputs()
    if images:
        raise ConfigError("images=…: the store is open already; give them to open_store")
    if vocab is not None:
        raise ConfigError(f"vocab {vocab!r}: the store is open already; give it to open_store")
    return store
