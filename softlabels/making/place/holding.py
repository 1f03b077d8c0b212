"""A lease in a builder's hands: its claim is made, renewed and let go of. Which one to take, `claims.py` finds."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from softlabels.errors import StoreError
from softlabels.making.claims import Holder
from softlabels.making.place import Place
from softlabels.making.place.names import FREE, claim_content

RENEWAL = 100.0
"""Seconds between renewals, each of which is a request; two may fail."""


@dataclass(eq=False)
class PlaceLease:
    """Shards in this builder's hands."""

    name: str
    shards: range
    version: str | None
    """Of the claim; None: another has taken over."""
    renewed: float
    """When, by this builder's clock."""
    taken_over: bool
    """Whether another held it before."""
    _place: Place
    _clock: Callable[[], float]
    _content: Callable[[int], bytes]
    """Of the claim, when it was renewed so many times."""
    _renewals: int = 0

    def renew(self) -> None:
        """Say that the holder lives; cheap enough for every chunk of logits."""
        if self._clock() - self.renewed >= RENEWAL:
            with suppress(StoreError):  # if it fails for long the claim expires, which is safe
                self.holds()

    def holds(self) -> bool:
        """Renew now; whether the lease is still this builder's: one that stood still may have been taken over from.

        Raises:
            StoreError: the place refuses.
        """
        if self.version is not None:
            self.renewed, self._renewals = self._clock(), self._renewals + 1
            content = self._content(self._renewals)
            self.version = self._place.renew(self.name, content, self.version)
        return self.version is not None

    def release(self) -> None:
        """Let go of a lease that is not finished, unless another has taken over.

        Its claim stays, and says that it is free: so a lease whose claim is made anew was never anybody's.
        """
        if self.version is not None:
            with suppress(StoreError):  # what stays expires
                self._place.swap(self.name, FREE, self.version)


class Claimant:
    """Makes the claims of one builder.

    Args:
        me: what its claims say of it.
        clock: seconds, of this builder alone.
        chance: of this builder; no two of its claims say the same, since a version is of the content.
    """

    def __init__(
        self, place: Place, me: Holder, clock: Callable[[], float], chance: random.Random
    ) -> None:
        self._place, self._me, self._clock, self._chance = place, me, clock, chance

    def create(self, name: str, shards: range) -> PlaceLease | None:
        """Claim what nobody holds, nor ever did; None: somebody does.

        Raises:
            StoreError: the place refuses, here and in `swap`.
        """
        content = self._content()
        version = self._place.create(name, content(0))
        return None if version is None else self._lease(name, shards, version, content, False)

    def swap(self, name: str, shards: range, seen: str) -> PlaceLease | None:
        """Take over a claim that is still of the version that was seen; None: it is not."""
        content = self._content()
        version = self._place.swap(name, content(0), seen)
        return None if version is None else self._lease(name, shards, version, content, True)

    def _lease(
        self,
        name: str,
        shards: range,
        version: str,
        content: Callable[[int], bytes],
        taken_over: bool,
    ) -> PlaceLease:
        return PlaceLease(
            name, shards, version, self._clock(), taken_over, self._place, self._clock, content
        )

    def _content(self) -> Callable[[int], bytes]:
        return partial(claim_content, self._me, f"{self._chance.getrandbits(64):016x}")
