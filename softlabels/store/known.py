"""The names of a store's files, of which there may be millions: eight bytes of memory for each."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice

import numpy as np

from softlabels.core.rows import Int64

AT_ONCE = 2**16
"""Names that are compared at a time."""


class KnownNames:
    """Names, each as a digest: two of a million are taken for one another once in 30 million such stores."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._digests = array("q")
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        """One more; the same may come again."""
        self._digests.append(_digest(name))

    def strangers(self, names: Iterable[str]) -> Iterator[str]:
        """Those of some names that were not added. Whoever asks adds no more."""
        known = np.unique(np.frombuffer(self._digests, np.int64))
        source = iter(names)
        while some := list(islice(source, AT_ONCE)):
            digests = np.fromiter(map(_digest, some), np.int64, len(some))
            for i in np.flatnonzero(~_within(digests, known)):
                yield some[i]

    def repeated(self) -> int:
        """How many were added more than once."""
        digests = np.frombuffer(self._digests, np.int64)
        return len(digests) - len(np.unique(digests))


def _within(some: Int64, known: Int64) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    if not len(known):
        return np.zeros(len(some), bool)
    at = np.minimum(np.searchsorted(known, some), len(known) - 1)
    return np.asarray(known[at] == some)


def _digest(name: str) -> int:
    data = name.encode(errors="surrogateescape")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little", signed=True)
