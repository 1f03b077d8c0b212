"""What a part's shards hold, counted from the shards themselves.

`pull` writes it into `part.json`, and `verify` compares it: that file is signed by nobody.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from softlabels.format.files import Address
from softlabels.format.identity import CorpusRecord
from softlabels.format.manifest import Statistics
from softlabels.format.part import Part
from softlabels.format.shard import Shard
from softlabels.format.statistics import total


class Counting:
    """Adds up shards, in order."""

    def __init__(self) -> None:
        self._digests = hashlib.sha256()
        self._documents: set[int] = set()
        self._tokens = self._rows = self._positions = 0
        self._statistics: list[tuple[int, Statistics]] = []

    def add(self, content: Shard, statistics: Statistics) -> None:
        """One more shard, and what its file says of itself."""
        for row in content.rows:
            self._digests.update(row.digest())
            self._documents.update(row.documents.tolist())
            self._tokens += row.size
        self._rows += len(content.rows)
        self._positions += content.targets.n
        self._statistics.append((content.targets.n, statistics))

    @property
    def fingerprint(self) -> str:
        """Over the rows' input digests."""
        return self._digests.hexdigest()

    @property
    def statistics(self) -> Statistics:
        """Sums over the shards."""
        return total(self._statistics)

    def corpus(self, whole: CorpusRecord) -> CorpusRecord:
        """The record of a corpus, with what was counted in the place of the whole's."""
        return msgspec.structs.replace(
            whole,
            fingerprint=self.fingerprint,
            documents=len(self._documents),
            rows=self._rows,
            tokens=self._tokens,
            positions=self._positions,
        )

    def differences(self, part: Part, *, where: Path | Address) -> list[str]:
        """A sentence for each figure of a part's record that is not what was counted."""
        problems = []
        claims = (
            ("corpus", part.corpus, self.corpus(part.corpus)),
            ("statistics", part.statistics, self.statistics),
        )
        for name, claimed, counted in claims:
            for field in counted.__struct_fields__:
                said, found = getattr(claimed, field), getattr(counted, field)
                if said != found:
                    problems.append(
                        f"{where}: says {name}.{field} {said}, its shards have {found}; pull the part again"
                    )
        return problems
