"""A world with a clock of its own: thousands of processes in one thread, each of which waits as long as it says.

A process is a greenlet, so it may wait in the midst of any function, of the shipped code, too. Only one runs at a time,
and the clock stands still meanwhile; when it waits the one runs whose time comes next. Who waits is kept by the part of
a second in which its time comes, and put in order when that begins: so thousands cost no more than a few.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any

from greenlet import getcurrent, greenlet

PARTS = 16
"""Of a second."""

Waiting = tuple[float, int, greenlet]
"""Less the time, less the order, and the process: the last of a sorted list comes first."""


class Died(BaseException):
    """The process that meets it is gone: it does nothing more in this world."""


class World:
    """The clock, and who waits for what time."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the world began."""
        self._part, self._soon = 0, list[Waiting]()
        """The part of a second that has begun, and who waits for it, sorted."""
        self._later: dict[int, list[Waiting]] = {}
        """Who waits for other parts, unsorted."""
        self._parts: list[int] = []
        """These, as a heap."""
        self._order = count()
        self._hub = getcurrent()

    def start(self, process: Callable[[], Any], *, after: float = 0.0) -> None:
        """Have a process begin."""
        self._wait(after, greenlet(process, parent=self._hub))

    def sleep(self, seconds: float) -> None:
        """Wait, in a process; who comes next runs at once, without a detour by the hub."""
        this = getcurrent()
        self._wait(seconds, this)
        following = self._next()
        if following is this:
            return
        if following:
            following.switch()
        else:  # it has not begun; the depth of whoever begins it counts as its own
            self._hub.switch(following)

    def run(self, *, until: Callable[[], bool]) -> None:
        """Until nobody waits any more, or something has come to pass, which is asked whenever a process ends."""
        process: greenlet | None = None
        while process is not None or ((self._soon or self._later) and not until()):
            if process is None:
                process = self._next()
            process = process.switch()

    def _wait(self, seconds: float, process: greenlet) -> None:
        when = self.now + seconds
        waiting, part = (-when, -next(self._order), process), int(when * PARTS)
        if part <= self._part:
            insort(self._soon, waiting)
        elif (others := self._later.get(part)) is not None:
            others.append(waiting)
        else:
            self._later[part] = [waiting]
            heappush(self._parts, part)

    def _next(self) -> greenlet:
        if not self._soon:
            self._part = heappop(self._parts)
            self._soon = sorted(self._later.pop(self._part))
        when, _, process = self._soon.pop()
        self.now = -when
        return process
