"""A stream for torch's `DataLoader`: any number of workers, forked or spawned, and the same batches.

    dataset = SoftTargetDataset("STORE", batch_size=64, rank=rank, world_size=ranks)
    for batch in DataLoader(dataset, batch_size=None, num_workers=3):
        ...                                          # one step
        state = dataset.state_dict(after=batch)      # what to save with the step

Worker w of n makes batches w, w + n, …; DataLoader asks the workers in turn, so that the batches come in order.
Its workers run ahead of the loop, which is why only the batch in hand says how far a run is.

Every worker decodes every shard of its rank's lanes, since a batch holds rows of all of them: workers share the making
of batches, not the decoding, and one `SoftTargetStream`, which has threads of its own, is mostly the faster way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from softlabels.core.allocator import keep_memory
from softlabels.errors import ConfigError
from softlabels.store.reader import Store
from trainers.data.batch import Batch
from trainers.data.mixing import Weight, make_stream
from trainers.data.stream import BatchStream


class SoftTargetDataset(IterableDataset[Batch]):
    """Endless batches for a `DataLoader(…, batch_size=None)`, which must leave them as they are.

    Args:
        store: path of a store, or (path, weight) of each of several (`MixedStream`). Each worker opens it for itself.
        batch_size: rows in a global batch.
        options: the other arguments of `SoftTargetStream`. `prefetch` is 0 unless given: DataLoader has its own
            (`prefetch_factor`).

    Raises:
        ConfigError: an open store, or as `SoftTargetStream`.
        StoreError: the store cannot be opened.
    """

    def __init__(
        self,
        store: Path | str | Sequence[tuple[Path | str, Weight]],
        *,
        batch_size: int,
        **options: Any,
    ) -> None:
        paths = [store] if isinstance(store, Store | str | Path) else [s for s, _ in store]
        for path in paths:
            if not isinstance(path, str | Path):
                raise ConfigError(
                    f"SoftTargetDataset({type(path).__name__}): give the store's path; each worker opens it for itself"
                )
        self._store = store
        self._options = {"prefetch": 0, **options, "batch_size": batch_size}
        self._stream: BatchStream | None = self._open()  # which says states; no batch is made on it
        self._state = self._stream.state_dict()

    def __getstate__(self) -> dict[str, Any]:
        """Without the open store."""
        return {**self.__dict__, "_stream": None}

    def _open(self) -> BatchStream:
        return make_stream(self._store, **self._options)

    def state_dict(self, after: Batch | None = None) -> dict[str, Any]:
        """Plain data from which `load_state_dict` continues exactly; equal to a `SoftTargetStream`'s.

        Args:
            after: the last batch that was used; None: none was since the state was loaded.
        """
        if after is None:
            return dict(self._state)
        if self._stream is None:
            self._stream = self._there()
        return self._stream.state_dict(after)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another stream was, in iterators that are made from now on.

        Workers that live on (`persistent_workers`) do not hear of it: make a new DataLoader.

        Raises:
            RunError: the state is of another store, seed or shuffle.
        """
        stream = self._open()
        stream.load_state_dict(state)
        self._stream, self._state = stream, stream.state_dict()

    def _there(self) -> BatchStream:
        stream = self._open()
        stream.load_state_dict(self._state)
        return stream

    def __iter__(self) -> Iterator[Batch]:
        """This worker's share of the batches, without end; all of them outside a worker."""
        stream = self._there()
        worker = get_worker_info()
        if worker is None:
            return iter(stream)
        keep_memory()  # the worker's process is ours
        return stream.every(worker.num_workers, first=worker.id)
