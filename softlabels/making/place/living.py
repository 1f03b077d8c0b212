"""Whether builders are at work in a `Place`, for who must have it alone: claims are watched, by one clock.

A claim that changes while it is watched is a living builder's; one that stays as it is for `EXPIRY` seconds is a dead
one's, and so is one whose process can be looked at from here and is gone. No clock of another host matters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from softlabels.core.processes import is_alive
from softlabels.errors import StoreError
from softlabels.making.claims import EXPIRY, Holder
from softlabels.making.place import HELD, Place, everything
from softlabels.making.place.names import in_force
from softlabels.making.place.watch import Claim, is_gone, read_claim

LOOK = 20.0
"""Seconds between two looks."""


class Standing:
    """Claims that stand when somebody comes who must have the place alone.

    Raises:
        StoreError: one of them is of a builder on this host, which lives.
    """

    def __init__(self, place: Place, clock: Callable[[], float]) -> None:
        self._place, self._clock = place, clock
        self._dead: dict[str, str] = {}
        self._first, self._began = self._look(), clock()

    def wait(self, sleep: Callable[[float], Any], notice: Callable[[str], None]) -> dict[str, str]:
        """Wait until each of them is known to be dead: their names and versions.

        Raises:
            StoreError: one of them was renewed, or a builder has come since.
        """
        told = False
        while True:
            held = self._look()
            for name, now in held.items():
                if name not in self._first or self._first[name].version != now.version:
                    raise self._at_work(name, now.holder)
            left = EXPIRY - (self._clock() - self._began)
            if not held or left < 0:
                return self._dead | {name: one.version for name, one in held.items()}
            if not told:
                name = min(held)
                notice(
                    f"waiting for up to {left:.0f} s to see whether {_who(held[name].holder)}, who holds {name}, is "
                    "at work"
                )
            told = True
            sleep(min(LOOK, left + 1))

    def check_alone(self, but: str) -> None:
        """Refuse builders that came meanwhile.

        Args:
            but: the claim of who asks.
        """
        for name, now in self._look(but).items():
            raise self._at_work(name, now.holder)

    def _look(self, but: str = "") -> dict[str, Claim]:
        """The claims in force, without those whose processes are gone."""
        held = {}
        for entry in in_force(list(everything(self._place, HELD))):
            if entry.name == but:
                continue
            claim = read_claim(self._place, entry)
            if claim is None:
                continue
            if claim.holder is not None and is_gone(claim.holder):
                self._dead[entry.name] = claim.version
                continue
            if claim.holder is not None and is_alive(claim.holder):
                raise self._at_work(entry.name, claim.holder)
            held[entry.name] = claim
        return held

    def _at_work(self, name: str, holder: Holder | None) -> StoreError:
        return StoreError(
            f"{self._place.root}: a builder is at work on it ({_who(holder)} holds {name}); let it end, or stop it, "
            f"and run the same command again (nothing was changed; a claim counts until {EXPIRY:.0f} s after its last "
            "renewal)"
        )


def _who(holder: Holder | None) -> str:
    return "somebody" if holder is None else f"process {holder.pid} of {holder.host}"
