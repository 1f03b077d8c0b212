"""Which shards a builder takes first, where a scheduler has numbered the builders.

Builder I of N takes the I-th N-th of a plan's shards, in order, so it reads its part of the corpus from front to back
while others read theirs; then it helps with what is left. It is a preference and no more: claims say who makes a shard
(`claims.py`), so numbers that are missing, given twice, or of another N cost speed alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from softlabels.errors import ConfigError


@dataclass(frozen=True)
class Share:
    """Of builder `index` of `builders`, counted from 0."""

    index: int
    builders: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """From `I/N`.

        Raises:
            ConfigError: it is no such text.
        """
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
        if match is None or int(match[1]) >= int(match[2]):
            raise ConfigError(
                f"--shards {text}: expected I/N, this builder's number of N, counted from 0, e.g. 0/4 to 3/4"
            )
        return cls(int(match[1]), int(match[2]))

    def of(self, shards: int) -> range:
        """The indices of its shards."""
        return range(
            self.index * shards // self.builders, (self.index + 1) * shards // self.builders
        )
