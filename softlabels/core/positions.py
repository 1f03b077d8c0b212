"""Which positions of a row get a soft target; the others are hard-label only.

    random:0.25    each position with that chance, from the seed, its row's number and its place
    entropy:0.25   of each row the share at which the teacher is least certain

Both look at one row at a time, so a shard can be made again alone, whatever the batches were.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, InvalidOperation

import numpy as np
import numpy.typing as npt

from softlabels.errors import ConfigError

RULES = ("random", "entropy")
DECIMALS = 12
SMALLEST = Decimal(1).scaleb(-DECIMALS)
OWN_STREAM = np.array([0, 0, 0, 1], np.uint64)
"""Where the counter begins: 2^192 blocks after the estimators' draws, which have the same key."""


@dataclass(frozen=True, kw_only=True)
class PositionRule:
    """A rule and its share."""

    name: str
    """`random` or `entropy`."""
    share: Decimal
    """Of the positions, above 0 and at most 1; decimal, as it was typed, so that 0.07 of 100 is 7."""

    @staticmethod
    def parse(text: str) -> PositionRule:
        """From `RULE:SHARE`; `ConfigError` for anything else."""
        name, _, share = text.partition(":")
        try:
            value = Decimal(share)
        except InvalidOperation:
            value = Decimal(0)
        fits = value.is_finite() and SMALLEST <= value <= 1 and value == round(value, DECIMALS)
        if name not in RULES or not fits:
            raise ConfigError(
                f"--positions {text!r}: expected random:SHARE or entropy:SHARE, the share above 0 and at most 1, of at "
                f"most {DECIMALS} decimals"
            )
        return PositionRule(name=name, share=value)

    def __str__(self) -> str:
        """The one spelling, which a store records: `random:.250` is `random:0.25`."""
        return f"{self.name}:{self.share.normalize():f}"

    def choose(
        self, n: int, *, seed: int, row: int, entropy: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.bool_]:
        """`[n] bool`: which of a row's n positions get a soft target.

        Args:
            row: its number in the store.
            entropy: `[n] float32` of the teacher there; `random` does not look at it.
        """
        if self.name == "random":
            key = np.array([seed, row], np.uint64)
            draws = np.random.Generator(np.random.Philox(key=key, counter=OWN_STREAM)).random(n)
            return draws < float(self.share)
        count = int((self.share * n).to_integral_value(ROUND_CEILING))
        soft = np.zeros(n, np.bool_)
        soft[np.argsort(-entropy, kind="stable")[:count]] = True  # stable: of equals the first
        return soft
