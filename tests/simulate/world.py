"""A world with a clock of its own: thousands of processes in one thread, each of which waits as long as it says.

A process is a greenlet, so it may wait in the midst of any function, of the shipped code, too. Only one runs at a time,
and the clock stands still meanwhile; when it waits the one runs whose time comes next.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush, heappushpop
from itertools import count
from typing import Any

from greenlet import getcurrent, greenlet


class Died(BaseException):
    """The process that meets it is gone: it does nothing more in this world."""


class World:
    """The clock, and who waits for what time."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the world began."""
        self._waiting: list[tuple[float, int, greenlet]] = []
        self._order = count()
        self._hub = getcurrent()

    def start(self, process: Callable[[], Any], *, after: float = 0.0) -> None:
        """Have a process begin."""
        begun = greenlet(process, parent=self._hub)
        heappush(self._waiting, (self.now + after, next(self._order), begun))

    def sleep(self, seconds: float) -> None:
        """Wait, in a process; who comes next runs at once, without a detour by the hub."""
        this = getcurrent()
        self.now, _, following = heappushpop(
            self._waiting, (self.now + seconds, next(self._order), this)
        )
        if following is this:
            return
        if following:
            following.switch()
        else:  # it has not begun; the depth of whoever begins it counts as its own
            self._hub.switch(following)

    def run(self, *, until: Callable[[], bool]) -> None:
        """Until nobody waits any more, or something has come to pass, which is asked whenever a process ends."""
        process: greenlet | None = None
        while process is not None or (self._waiting and not until()):
            if process is None:
                self.now, _, process = heappop(self._waiting)
            process = process.switch()
