"""A store as a dataset of Ray Data: a block a shard, read by Ray's tasks on any host.

    from softlabels.integrations.ray import read_store

    pairs = read_store("s3://bucket/store", columns=["ids", "logp"])

Columns are those of `softlabels.scan`, one line for each position (docs/read-with.md). Nothing is read before the
dataset is consumed but the manifest, which tells how many lines and shards there are. A task opens the store that the
manifest was of, by its digest, and decodes one shard, checked like those that a trainer reads.

The price: a process of Ray's opens the store once, which reads its manifest.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from softlabels.core.views import VocabView
from softlabels.errors import ConfigError, MissingExtraError
from softlabels.store.reader import Store, open_store
from softlabels.store.scan import SCHEMA, columns_of, shard_frame, temperature_of

try:
    import ray.data
    from ray.data.block import BlockMetadata
except ImportError as e:
    raise MissingExtraError("Ray Data", "ray", "softlabels.integrations.ray") from e

OPENED = 2
"""Stores that one of Ray's processes holds open."""


def read_store(
    url: str | Path,
    *,
    columns: Sequence[str] | None = None,
    temperature: float | None = None,
    **how: Any,
) -> ray.data.Dataset:
    """A store as a `ray.data.Dataset` of its positions, in order where Ray keeps order.

    Args:
        url: as `open_store` takes it: a folder that all hosts see, or an address.
        columns: which of `softlabels.scan`'s; all that the store has if None. What they do not need is not decoded.
        temperature: of `logp` and `tail`, as `softlabels.scan` takes it.
        how: what else `open_store` takes: `inputs`, `vocab`, `key`, …; it goes to Ray's processes.

    Raises:
        ConfigError: the store has no such column.
        PairingError: the temperature is not of the grid.
        FormatError, IntegrityError, …: as `open_store`; while the dataset is consumed, as reading a shard does, inside
            of Ray's own error.
    """
    source = StoreSource(_anywhere(url), columns, temperature, _elsewhere(how))
    return ray.data.read_datasource(source, override_num_blocks=max(1, source.shards))


def _anywhere(place: str | Path) -> str | Path:
    """A place that means the same to Ray's processes, which work elsewhere."""
    return place if "://" in str(place) else Path(place).absolute()


def _elsewhere(how: dict[str, Any]) -> dict[str, Any]:
    """What `open_store` takes, its paths such as mean the same to Ray's processes."""
    same: dict[str, Callable[[Any], Any]] = {
        "inputs": lambda place: _anywhere(place) if isinstance(place, str | Path) else place,
        "key": lambda place: _anywhere(place) if isinstance(place, str | Path) else place,
        "vocab": VocabView.anywhere,
        "view": VocabView.anywhere,
        "cache": lambda cache: replace(cache, folder=cache.folder and str(_anywhere(cache.folder))),
    }
    return {n: same[n](v) if n in same and v is not None else v for n, v in how.items()}


class StoreSource(ray.data.Datasource):
    """The shards of a store, as Ray's tasks read them; arguments as of `read_store`."""

    def __init__(
        self,
        url: str | Path,
        columns: Sequence[str] | None,
        temperature: float | None,
        how: dict[str, Any],
    ) -> None:
        super().__init__()
        store = open_store(url, **how)
        known = columns_of(store)
        self._columns = known if columns is None else list(columns)
        for name in self._columns:
            if name not in known:
                raise ConfigError(
                    f"columns: {name!r} is none that {url} has; expected some of {', '.join(known)}"
                )
        self._temperature = temperature_of(store, temperature)
        self._records = store.manifest.shards
        self._kept = store.manifest.statistics.kept_ids / max(
            1, store.manifest.identity.corpus.positions
        )
        # So that what is read later is what was opened here; images were checked, and no column is of their pixels.
        rest = {n: v for n, v in how.items() if n != "images"}
        self._asked = pickle.dumps((url, rest | {"digest": store.digest}))

    @property
    def shards(self) -> int:
        """How many there are."""
        return len(self._records)

    def get_name(self) -> str:
        """What Ray calls it."""
        return "SoftLabels"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all blocks, about, as the manifest tells."""
        return sum(self._bytes(shard.positions) for shard in self._records)

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
        """One for each shard, however many Ray asks for."""
        schema = pl.DataFrame(schema={n: SCHEMA[n] for n in self._columns}).to_arrow().schema
        return [
            ray.data.ReadTask(
                partial(_read, self._asked, number, self._columns, self._temperature),
                BlockMetadata(
                    num_rows=shard.positions,
                    size_bytes=self._bytes(shard.positions),
                    input_files=(shard.name,),
                    exec_stats=None,
                ),
                schema=schema,
            )
            for number, shard in enumerate(self._records)
        ]

    def _bytes(self, positions: int) -> int:
        """Of so many lines in memory: 4 a number (8: `row`), and of a list 8 more for where it ends."""
        lists = sum(name in ("ids", "logp") for name in self._columns)
        numbers = len(self._columns) - lists + ("row" in self._columns)
        return int(positions * (4 * numbers + lists * (8 + 4 * self._kept)))


def _read(asked: bytes, number: int, columns: list[str], temperature: float) -> Iterator[pa.Table]:
    """The block of one shard."""
    yield shard_frame(_opened(asked), number, columns, temperature).to_arrow()


@lru_cache(maxsize=OPENED)
def _opened(asked: bytes) -> Store:
    """The store of some arguments, open once in a process."""
    url, how = pickle.loads(asked)  # by `StoreSource`, in this very job
    return open_store(url, **how)
