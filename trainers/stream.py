"""Rows of a store in a shuffled order that anyone can repeat, resume and share.

Order: a function of (store digest, seed, epoch) alone. Shards are permuted; consecutive shards of that
order form a block; the rows of a block are permuted. Memory is one block of decoded shards and O(shards)
for the order.
State: one number, how many rows were taken. Epochs follow each other without a seam, so no row is
dropped and none repeated: batch i is always rows i*B to (i+1)*B of that endless sequence. Of W ranks, rank r
takes the r-th of W equal parts of each batch; the state counts the rows of all, so it fits any W.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from softlabels.errors import ConfigError, RunError
from softlabels.rows import pad_rows
from softlabels.store.reader import Store, StoredRow, open_store
from softlabels.targets import SoftTargets

__all__ = ["Batch", "RowOrder", "SoftTargetStream", "collate"]

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B rows, padded, with their N targets."""

    rows: tuple[int, ...]
    """Row numbers in the store, for messages and digests."""
    input_ids: Tensor
    """`[B, S] int64`."""
    position_ids: Tensor | None
    """`[B, S] int64` if documents share a row, else None."""
    flat_positions: Tensor
    """`[N] int64`: where the positions lie in the flattened `[B * S]`."""
    labels: Tensor
    """`[N] int64`."""
    targets: SoftTargets
    """Of the N positions, in order."""

    @property
    def positions(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def soft_positions(self) -> int:
        """M: those of the N positions that have a soft target; the others are hard-label only."""
        return int(self.targets.soft.sum())

    def to(self, device: torch.device) -> Batch:
        """Tensors on a device; targets stay where they are until the loss asks for them."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            position_ids=None
            if self.position_ids is None
            else self.position_ids.to(device, non_blocking=True),
            flat_positions=self.flat_positions.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )


def collate(rows: Sequence[StoredRow]) -> Batch:
    """Lay rows side by side."""
    padded = pad_rows([r.row for r in rows])
    return Batch(
        rows=tuple(r.index for r in rows),
        input_ids=torch.from_numpy(padded.input_ids),
        position_ids=None if padded.position_ids is None else torch.from_numpy(padded.position_ids),
        flat_positions=torch.from_numpy(padded.flat_positions),
        labels=torch.from_numpy(padded.labels),
        targets=SoftTargets.concatenate([r.targets for r in rows]),
    )


class RowOrder:
    """The endless sequence of row numbers.

    Args:
        shard_rows: rows of each shard.
        digest: the store's content digest.
        seed: of the shuffle.
        block_shards: shards whose rows are mixed with each other.
        shuffle: False gives the store's own order, each epoch.
    """

    def __init__(
        self,
        shard_rows: Sequence[int],
        digest: str,
        seed: int,
        *,
        block_shards: int = 8,
        shuffle: bool = True,
    ) -> None:
        self._sizes = np.array(shard_rows, np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])[:-1]
        self.rows = int(self._sizes.sum())
        self._digest, self._seed = digest, seed
        self._block_shards = block_shards
        self._shuffle = shuffle
        self._epoch: tuple[int, Int64, Int64] | None = None
        self._block: tuple[tuple[int, int], Int64] | None = None

    def __getitem__(self, position: int) -> int:
        """Row number at a place of the sequence."""
        epoch, offset = divmod(position, self.rows)
        if not self._shuffle:
            return offset
        shards, ends = self._shards(epoch)
        block = int(np.searchsorted(ends, offset, side="right"))
        start = int(ends[block - 1]) if block else 0
        return int(self._rows_of(epoch, block, shards)[offset - start])

    def take(self, position: int, count: int) -> list[int]:
        """`count` row numbers from a place on."""
        return [self[position + i] for i in range(count)]

    def _generator(self, *purpose: object) -> np.random.Generator:
        words = "\n".join(map(str, ("softlabels order 1", self._digest, self._seed, *purpose)))
        key = np.frombuffer(hashlib.sha256(words.encode()).digest()[:16], "<u8")
        return np.random.Generator(np.random.Philox(key=key))

    def _shards(self, epoch: int) -> tuple[Int64, Int64]:
        """The epoch's order of shards, and where each block of them ends."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = self._generator("shards", epoch).permutation(len(self._sizes)).astype(np.int64)
            total = np.cumsum(self._sizes[order])
            last = np.arange(
                self._block_shards - 1, len(order) + self._block_shards - 1, self._block_shards
            )
            self._epoch = (epoch, order, total[np.minimum(last, len(order) - 1)])
        return self._epoch[1], self._epoch[2]

    def _rows_of(self, epoch: int, block: int, shards: Int64) -> Int64:
        if self._block is None or self._block[0] != (epoch, block):
            mine = shards[block * self._block_shards : (block + 1) * self._block_shards]
            rows = np.concatenate(
                [np.arange(self._starts[s], self._starts[s] + self._sizes[s]) for s in mine]
            )
            self._block = ((epoch, block), self._generator("rows", epoch, block).permutation(rows))
        return self._block[1]


class SoftTargetStream:
    """Endless batches of a store. One batch is one optimiser step.

    Args:
        store: path of a store, or an open one (which the stream then has to itself).
        batch_size: rows in a batch, of all ranks together.
        rank: which part of each batch is wanted here, from 0.
        world_size: how many equal parts a batch is dealt in.
        seed: of the order.
        shuffle: False for the store's own order.
        block_shards: shards whose rows are mixed; that many are held decoded.
        prefetch: batches made ahead on a thread of their own; 0 makes them when asked.
        view: another vocabulary to read it in, as in `open_store`; an open store has its own already.

    Raises:
        ConfigError: a view besides an open store, or one that does not fit; a batch that W ranks cannot share.
        StoreError: the store cannot be opened; later, that a shard was found damaged.
    """

    def __init__(
        self,
        store: Store | Path | str,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        block_shards: int = 8,
        prefetch: int = 2,
        view: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"--batch-size {batch_size}: expected at least 1")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} of {world_size}: expected 0 to {world_size - 1}")
        if batch_size % world_size:
            raise ConfigError(
                f"--batch-size {batch_size}: {world_size} ranks cannot share it equally; expected a multiple of "
                f"{world_size}"
            )
        if isinstance(store, Store):
            if view is not None:
                raise ConfigError(
                    f"view {view!r}: the store is open already; give it to open_store"
                )
            self.store = store
        else:  # a batch that spans two blocks needs the shards of both
            self.store = open_store(store, cached_shards=2 * block_shards, view=view)
        self.batch_size = batch_size
        self.rank, self.world_size = rank, world_size
        self.seed = seed
        self.position = 0
        """Rows taken so far, by all ranks in all epochs together."""
        self._prefetch = prefetch
        self._order = RowOrder(
            [s.rows for s in self.store.manifest.shards],
            self.store.digest,
            seed,
            block_shards=block_shards,
            shuffle=shuffle,
        )
        self._facts = {
            "store": self.store.digest,
            "seed": seed,
            "shuffle": shuffle,
            "block_shards": block_shards,
        }

    @property
    def epoch(self) -> float:
        """How many times the store was gone through, so far."""
        return self.position / self._order.rows

    def state_dict(self) -> dict[str, Any]:
        """Plain data from which `load_state_dict` continues exactly."""
        return {**self._facts, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another stream was.

        Raises:
            RunError: the state is of another store, seed or shuffle.
        """
        for name, value in self._facts.items():
            if state.get(name) != value:
                raise RunError(
                    f"the saved stream has {name} = {state.get(name)!r}, this one {value!r}: its rows would come in "
                    "another order; resume with the store and seed that the run began with"
                )
        self.position = int(state["position"])

    def batch_at(self, position: int) -> Batch:
        """This rank's part of the batch that begins at a place of the sequence."""
        share = self.batch_size // self.world_size
        mine = self._order.take(position + self.rank * share, share)
        return collate([self.store.row(i) for i in mine])

    def __iter__(self) -> Generator[Batch]:
        """Batches from the present position on, without end; `position` advances with each."""
        if self._prefetch == 0:
            while True:
                batch = self.batch_at(self.position)
                self.position += self.batch_size
                yield batch
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="softlabels-stream") as pool:
            ahead: deque[Future[Batch]] = deque()
            next_position = self.position
            try:
                while True:
                    while len(ahead) < self._prefetch:
                        ahead.append(pool.submit(self.batch_at, next_position))
                        next_position += self.batch_size
                    batch = ahead.popleft().result()
                    self.position += self.batch_size
                    yield batch
            finally:
                for future in ahead:
                    future.cancel()
