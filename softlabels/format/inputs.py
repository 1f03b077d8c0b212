"""Inputs of rows, found by their digest in a store that holds them.

A store may hold targets alone, with the digests of what they are of (`softlabels subset --drop-inputs`): for people
who have the text themselves. A digest names inputs to the bit, so rows that are found are the right ones, and one
that is not found is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from threading import Lock

import numpy as np

from softlabels.core.rows import InputRow
from softlabels.errors import IntegrityError, PairingError
from softlabels.format.encoding import input_digests
from softlabels.format.files import Recorded, StoreFiles
from softlabels.format.manifest import Manifest
from softlabels.format.pages import starts_of
from softlabels.format.shard import Shard

CACHED_SHARDS = 4
"""Whose rows are held; not their targets."""


class Inputs:
    """The rows of a store, by digest. May be shared between threads.

    Args:
        read_shard: decodes one of its shards.
        check: refuses a row that does not fit the targets.

    Every shard is read once, for its digests: 24 bytes a row are held.

    Raises:
        IntegrityError: a shard is damaged.
    """

    def __init__(
        self,
        files: StoreFiles,
        manifest: Manifest,
        read_shard: Callable[[int], Shard],
        check: Callable[..., None],
    ) -> None:
        self.path, self._files, self._manifest, self._check = files.root, files, manifest, check
        data = b"".join(self._digests(i) for i in range(len(manifest.shards)))
        names = np.frombuffer(data, np.dtype("S16"))
        self._order = np.argsort(names, kind="stable")
        self._names = names[self._order]
        self._starts = starts_of(manifest.shards)
        self._rows_of = lru_cache(CACHED_SHARDS)(lambda shard: read_shard(shard).rows)
        self._lock = Lock()

    def _digests(self, index: int) -> bytes:
        record, identity = self._manifest.shards[index], self._manifest.identity
        file = self.path / record.name
        data = self._files.checked(Recorded(record.name, record.sha256, record.bytes))
        return input_digests(data, identity, rows=record.rows, where=str(file))

    def rows(self, named: Sequence[InputRow], *, where: str) -> list[InputRow]:
        """The rows that have these digests.

        Raises:
            PairingError: there is none: names `where` and the digest.
            IntegrityError: it has another number of positions than there are targets, or an id beyond their V.
        """
        digests = [row.digest() for row in named]
        wanted = np.frombuffer(b"".join(digests), np.dtype("S16"))
        at = np.minimum(np.searchsorted(self._names, wanted), len(self._names) - 1)
        missing = np.flatnonzero(self._names[at] != wanted)
        if len(missing):
            raise PairingError(
                f"{where}: {len(missing)} of {len(named)} rows of a shard are not in --inputs {self.path} (the "
                f"first has the input digest {digests[int(missing[0])].hex()}); give the store that the targets were "
                "taken from, or one of the same text, tokenizer and row length"
            )
        with self._lock:
            found = [self._row(int(r)) for r in self._order[at]]
        for row, name, digest in zip(found, named, digests, strict=True):
            if row.n != name.n:
                raise IntegrityError(
                    f"{where}: the row of input digest {digest.hex()} has targets at {name.n} positions, its inputs at "
                    f"{row.n}; copy the store again from its source"
                )
            self._check(row, where=f"{where}: the row of input digest {digest.hex()}")
        return found

    def _row(self, number: int) -> InputRow:
        shard, place = self._starts.find(number)
        return self._rows_of(shard)[place]
