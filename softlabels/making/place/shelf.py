"""The shards of a store in a `Place`, as `making/diagnosis.py` judges them: one shard and its record in memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from softlabels.core.records import FILE_LIMIT, RECORD_LIMIT, parse_record
from softlabels.format.containers.parquet import column_bytes
from softlabels.format.dictionaries import Dictionaries
from softlabels.format.encoding import FindDictionary
from softlabels.format.files import Address
from softlabels.format.manifest import Commit, Plan
from softlabels.format.shard_records import PlannedShard
from softlabels.making.finish import has_columns
from softlabels.making.place.commit import commit_name
from softlabels.making.place.plan import Mirror
from softlabels.making.place.quarantine import WITHDRAWN


class Seen(NamedTuple):
    """Versions of the files that a shard was judged by; None: there was none, or the mark of a repair for a shard."""

    record: str | None
    shard: str | None


class PlaceShelf:
    """The shards of a place: a `Shelf`, which holds the files of one."""

    def __init__(self, mirror: Mirror, plan: Plan) -> None:
        self._place = mirror.place
        self.find: FindDictionary = Dictionaries(mirror.folder, plan.identity.teacher.vocab_size)
        self._counts = has_columns(plan.identity)
        self.columns: dict[int, dict[str, int]] = {}
        """Bytes of each column, of the shards that fit the plan, if that is recorded."""
        self._held: dict[str, bytes] = {}

    @property
    def root(self) -> Path | Address:
        """The place."""
        return self._place.root

    def look(self, shard: PlannedShard) -> Seen:
        """Read both files."""
        self._held.clear()
        record = self._fetch(commit_name(shard.index), RECORD_LIMIT)
        version = self._fetch(shard.name, FILE_LIMIT)
        if self._held.get(shard.name) == WITHDRAWN:
            del self._held[shard.name]
            version = None
        return Seen(record, version)

    def _fetch(self, name: str, limit: int) -> str | None:
        try:
            self._held[name], version = self._place.read(name, limit=limit)
        except FileNotFoundError:
            return None
        return version

    def data(self, shard: PlannedShard) -> bytes:
        """The bytes of the shard that was looked at."""
        return self._of(shard.name)

    def record(self, shard: PlannedShard) -> Commit:
        """Its record."""
        name = commit_name(shard.index)
        return parse_record(self._of(name), Commit, where=self.root / name)

    def _of(self, name: str) -> bytes:
        if name not in self._held:
            raise FileNotFoundError(name)
        return self._held[name]

    def fits(self, shard: PlannedShard, data: bytes) -> None:
        """Count the bytes of its columns."""
        if self._counts:
            self.columns[shard.index] = column_bytes(data)

    def all_columns(self, shards: range) -> dict[str, int] | None:
        """Of these together; None: they are not recorded of this plan."""
        if not self._counts:
            return None
        total = Counter[str]()
        for index in shards:
            total.update(self.columns[index])
        return dict(total)
