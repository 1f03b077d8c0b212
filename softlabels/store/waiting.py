"""Waiting for what builders make: patiently while any is at work, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from softlabels.core.progress import duration
from softlabels.errors import UnfinishedError, UnreadableError

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two looks at what is waited for."""
NAP = 0.25
"""Seconds within which a wait ends that is ended."""
SAID_AFTER = 2.0
"""Seconds of waiting after which it is said."""
QUIET = 300.0
"""Seconds between two lines that say it."""
LOOK, RARELY = 10.0, 10
"""Seconds between two looks at who is at work, or so many times as long as one takes: it lists folders."""
PATIENCE = 300.0
"""Seconds without a sign of work after which a wait ends: as long as a claim lasts whose holder is silent."""
T = TypeVar("T")


class WaitEnded(KeyboardInterrupt):
    """A wait was ended by who began it."""


class Work(NamedTuple):
    """What can be seen of builders."""

    alive: bool
    """Whether one is at work."""
    made: int
    """How much they have made; more than at the last look is a sign of work, too."""
    text: str
    """For people: who is at work, and how far they are."""


class Readable(Generic[T]):
    """A look at a file, in which an error of reading means for a while that it is not there yet.

    A read may fail and the next one not, so that such an error is no damage; one that lasts for `PATIENCE` is raised.
    """

    def __init__(self, look: Callable[[], T | None], notice: Callable[[str], None]) -> None:
        self._look, self._notice = look, notice
        self._since: float | None = None

    def __call__(self) -> T | None:
        """What there is; None: nothing that can be read."""
        try:
            found = self._look()
        except UnreadableError as e:
            if self._since is None:
                self._since = time.monotonic()
                self._notice(f"{e}; trying again for up to {duration(PATIENCE)}")
            if time.monotonic() - self._since > PATIENCE:
                raise
            return None
        self._since = None
        return found


class Wait:
    """Waits for one thing after another. Shared between threads, of which one waits.

    Args:
        look: looks who is at work.
        way_out: what to do when nobody is, for the message.
        notice: takes a line for people.
        patience: seconds; None: `PATIENCE`.
    """

    def __init__(
        self,
        look: Callable[[], Work],
        *,
        way_out: str,
        notice: Callable[[str], None],
        patience: float | None = None,
    ) -> None:
        self._look, self._way_out, self.notice = look, way_out, notice
        self._own_patience = patience
        self._ended = False
        self._said: float | None = None
        self.seconds = 0.0
        """Of all waits together."""

    def until(self, found: Callable[[], T | None], what: str) -> T:
        """What is looked for, as soon as it is there.

        Raises:
            UnfinishedError: nobody has been at work on it for long.
            WaitEnded: after `end`.
        """
        begun = alive = time.monotonic()
        pause, due, made = FIRST_PAUSE, begun + SAID_AFTER, -1
        while (value := found()) is None:
            looked = time.monotonic()
            over = looked - alive > self._patience
            if over or looked >= due:
                work, now = self._look(), time.monotonic()
                due = now + max(LOOK, RARELY * (now - looked))
                if work.alive or work.made > made >= 0:
                    alive = now
                elif over:  # as this very look found, however rare looks are
                    break
                made = work.made
                self._say(f"waiting for {what}: {work.text}", now)
            self._sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        self.seconds += time.monotonic() - begun
        if value is None and (value := found()) is None:
            raise UnfinishedError(
                f"{what}: not there, and no builder was at work in the last {duration(self._patience)} (one that still "
                f"loads its teacher does not show); {self._way_out}"
            )
        return value

    def end(self) -> None:
        """End waits, that of now and those to come."""
        self._ended = True

    def go_on(self) -> None:
        """Wait again, after `end`."""
        self._ended = False

    def _sleep(self, seconds: float) -> None:
        """In naps, for `end` may come from a signal's handler, which must not take a lock."""
        until = time.monotonic() + seconds
        while not self._ended and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, NAP))
        if self._ended:
            raise WaitEnded

    def _say(self, line: str, now: float) -> None:
        if self._said is None or now - self._said >= QUIET:
            self._said = now
            self.notice(line)

    @property
    def _patience(self) -> float:
        return PATIENCE if self._own_patience is None else self._own_patience
