"""A store as a map-style dataset for `torch.utils.data.DataLoader`, in the order that runs have.

Forked and spawned workers each read shards for themselves; an item depends on its place alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Sampler

from softlabels.format.shard import StoredRow
from softlabels.store.reader import open_store
from trainers.data.arrangement import Arrangement, orders_of
from trainers.data.batch import collate
from trainers.data.lanes import MOST


class StoreRows(Dataset[StoredRow]):
    """Item i is row i of the stream's endless order; one epoch is `len()` of them.

    Args:
        store, seed, shuffle, order, block_shards, vocab: as of `SoftTargetStream`.
        lanes: likewise, for the rows of a step once it is known how many they are; None: even unshuffled.
    """

    column_names = None
    """Of a table, which this is not; axolotl asks."""

    def __init__(
        self,
        store: Path | str,
        *,
        seed: int = 0,
        shuffle: bool = True,
        order: str | None = None,
        block_shards: int = 8,
        lanes: int | None = None,
        vocab: str | None = None,
    ) -> None:
        held = 2 * max(block_shards, lanes or MOST)
        self.store = open_store(store, cached_shards=held, vocab=vocab)
        self._arranged = partial(Arrangement.chosen, order, lanes)
        self._cut = partial(
            orders_of, [self.store], seed, block_shards=block_shards, shuffle=shuffle
        )
        self.in_steps(lanes or 1)

    def in_steps(self, batch_size: int) -> None:
        """Give the rows of steps of so many, over all processes, as `softtrain run --batch-size` does.

        Raises:
            ConfigError: lanes that do not divide them.
        """
        (self._order,) = self._cut(arrangement=self._arranged(batch_size))
        self._batch_size = batch_size

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, place: int) -> StoredRow:
        return self.store.row(self._order.take(self._batch_size, place, 1)[0])


class EpochSampler(Sampler[int]):
    """Places `epoch * rows` to `(epoch + 1) * rows`; which epoch that is, it asks whenever it begins.

    It has no `set_epoch`: of what accelerate wraps it in, some pass that on and some do not.
    """

    def __init__(self, rows: int, epoch: Callable[[], int]) -> None:
        self._rows, self._epoch = rows, epoch

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[int]:
        begin = self._epoch() * self._rows
        return iter(range(begin, begin + self._rows))


def collate_rows(rows: Sequence[StoredRow]) -> dict[str, Any]:
    """The model's inputs, by the names of its own arguments, and the `Batch`."""
    batch = collate(rows)
    return {**batch.inputs, "batch": batch}
