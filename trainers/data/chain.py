"""One digest over the shards at a store's beginning: what a run by plan has learnt from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from softlabels.errors import RunError
from softlabels.store.reader import Store


class Chain:
    """sha256 over the sha256s of a store's first shards; asked for ever more of them, it reads each record once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._count, self._sum = 0, hashlib.sha256()

    def state(self, shards: int) -> dict[str, Any]:
        """Plain data that names the first shards."""
        return {"shards": shards, "sha256": self.digest(shards)}

    def digest(self, shards: int) -> str:
        """Of so many, from the first on."""
        if shards < self._count:
            self._count, self._sum = 0, hashlib.sha256()
        for index in range(self._count, shards):
            self._sum.update(bytes.fromhex(self._store.record(index).sha256))
            self._count = index + 1  # not later: a record that cannot be read is asked for again
        return self._sum.hexdigest()

    def check(self, state: Any, shards: int) -> None:
        """Refuse a store whose first shards, so many, are not those of a state.

        Raises:
            RunError: they are others, or it is no state of so many.
        """
        named = state if isinstance(state, Mapping) else {}
        count, sha256 = named.get("shards"), named.get("sha256")
        if type(count) is not int or not isinstance(sha256, str):
            raise RunError(
                f"the saved stream says learnt = {state!r}, expected shards and sha256; resume from another checkpoint"
            )
        if count != shards or self.digest(shards) != sha256:
            raise RunError(
                f"{self._store.path}: its first {shards:,} shards are not those that the run has learnt from, which "
                f"names {count:,}: it is another store, or one of them was made again and is not the same; begin "
                "again in another --out"
            )
