"""A world with a clock of its own: thousands of processes in one thread, each of which waits as long as it says.

A process is a greenlet, so it may wait in the midst of any function, of the shipped code, too. Only one runs at a time,
and the clock stands still meanwhile; when it waits the one runs whose time comes next.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
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
        self._wait(after, greenlet(process, parent=self._hub))

    def sleep(self, seconds: float) -> None:
        """Wait, in a process."""
        self._wait(seconds, getcurrent())
        self._hub.switch()

    def run(self, *, until: Callable[[], bool]) -> None:
        """Until nobody waits any more, or something has come to pass."""
        while self._waiting and not until():
            self.now, _, process = heapq.heappop(self._waiting)
            process.switch()

    def _wait(self, seconds: float, process: greenlet) -> None:
        heapq.heappush(self._waiting, (self.now + seconds, next(self._order), process))
