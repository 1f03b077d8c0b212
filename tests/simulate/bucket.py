"""A simulated bucket with the semantics of S3: each request is one moment, conditions are obeyed, answers take time.

Requests may be throttled (503, asked again after a pause, as the client does), and an answer may be lost after the
request was carried out. Who dies does so before a request or after it, and nobody tells it which.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple, TypeVar

from sortedcontainers import SortedDict

from softlabels.errors import IntegrityError
from softlabels.format.files import Address
from softlabels.making.place import HELD, PAGE, Entry
from tests.simulate.world import Died, World

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How a service, and those who use it, behave."""

    latency: float = 0.05
    """Seconds of a request, on average."""
    capacity: int = 3500
    """Requests a second that are answered; others are throttled."""
    lost: float = 1e-4
    """Share of answers that are lost."""


class Held(NamedTuple):
    """An object."""

    data: bytes
    entry: Entry
    """As listings have it."""


class Bucket:
    """All objects, for all builders."""

    def __init__(self, world: World, weather: Weather) -> None:
        self.world, self.weather = world, weather
        self.objects: dict[str, Held] = {}
        self.requests: Counter[str] = Counter()
        """Of each kind, those that were throttled included."""
        self.throttled = self.lost = 0
        self.changed: list[str] = []
        """Names of what was to stay as it was, and was written to again, or removed."""
        self._folders: dict[str, _Folder] = {}
        self._second, self._used = -1, 0
        self._versions = count()

    def admits(self) -> bool:
        """Whether one request more is answered in this second."""
        second = int(self.world.now)
        if second != self._second:
            self._second, self._used = second, 0
        self._used += 1
        return self._used <= self.weather.capacity

    def put(self, name: str, data: bytes) -> str:
        """Write an object."""
        folder = name.rpartition("/")[0]
        if (entries := self._folders.get(folder)) is None:
            entries = self._folders[folder] = _Folder()
        if name in self.objects and folder != HELD:
            self.changed.append(name)
        version = f'"{next(self._versions)}"'
        entry = Entry(name, version, len(data), self.world.now)
        entries.put(entry)
        self.objects[name] = Held(data, entry)
        return version

    def drop(self, name: str) -> None:
        """Remove an object, if it is there."""
        if self.objects.pop(name, None) is not None:
            folder = name.rpartition("/")[0]
            self._folders[folder].drop(name)
            if folder != HELD:
                self.changed.append(name)

    def page(self, folder: str, after: str) -> list[Entry]:
        """The first entries of a folder after a name."""
        entries = self._folders.get(folder)
        return [] if entries is None else entries.page(after)


class _Folder:
    """The entries of a folder, and the pages that were asked for, which are kept as they would be asked for again."""

    def __init__(self) -> None:
        self._entries = SortedDict()
        """By name."""
        self._begins: list[str] = []
        """What the pages come after, in order."""
        self._pages: list[list[Entry]] = []

    def put(self, entry: Entry) -> None:
        self._entries[entry.name] = entry
        for page in self._with(entry.name):
            at = bisect_left(page, entry.name, key=_name)
            if at < len(page) and page[at].name == entry.name:
                page[at] = entry
            elif at < PAGE:
                page.insert(at, entry)
                del page[PAGE:]

    def drop(self, name: str) -> None:
        del self._entries[name]
        for page in self._with(name):
            at = bisect_left(page, name, key=_name)
            if at < len(page) and page[at].name == name:
                del page[at]
                if len(page) == PAGE - 1:
                    page += self._after(page[-1].name, 1)

    def page(self, after: str) -> list[Entry]:
        at = bisect_left(self._begins, after)
        if at == len(self._begins) or self._begins[at] != after:
            self._begins.insert(at, after)
            self._pages.insert(at, self._after(after, PAGE))
        return self._pages[at].copy()

    def _after(self, name: str, most: int) -> list[Entry]:
        begin = self._entries.bisect_right(name)
        return list(self._entries.values()[begin : begin + most])

    def _with(self, name: str) -> Iterator[list[Entry]]:
        """Pages on which a file of this name is, or would be."""
        at = bisect_left(self._begins, name)
        while at:
            at -= 1
            page = self._pages[at]
            if len(page) == PAGE and page[-1].name < name:
                return  # those that begin sooner end sooner
            yield page


def _name(entry: Entry) -> str:
    return entry.name


class SimulatedPlace:
    """One builder's way to the bucket: a `Place`.

    Args:
        fate: called before and after each request; raises `Died` when its time has come, or waits.
    """

    root = Address("sim://bucket")

    def __init__(self, bucket: Bucket, chance: random.Random, fate: Callable[[], None]) -> None:
        self._bucket, self._chance, self._fate = bucket, chance, fate
        self._answer = 0.0
        """Seconds that answers took: they pass before the next request, or with whatever else takes time."""

    def answered(self) -> float:
        """How long answers were under way, for whoever lets that time pass; once."""
        seconds, self._answer = self._answer, 0.0
        return seconds

    def create(self, name: str, data: bytes) -> str | None:
        """PUT, if there is none."""

        def put() -> str | None:
            return None if name in self._bucket.objects else self._bucket.put(name, data)

        return self._done(f"create {name.partition('/')[0]}", name, data, put)

    def read(self, name: str, *, limit: int) -> tuple[bytes, str]:
        """GET."""
        found, _ = self._request(
            f"read {name.partition('/')[0]}", lambda: self._bucket.objects.get(name)
        )
        if found is None:
            raise FileNotFoundError(name)
        if len(found.data) > limit:
            raise IntegrityError(f"{name}: {len(found.data)} bytes, expected at most {limit}")
        return found.data, found.entry.version

    def list(self, folder: str, *, after: str = "") -> list[Entry]:
        """One page of names."""
        return self._request(f"list {folder}", lambda: self._bucket.page(folder, after))[0]

    def renew(self, name: str, data: bytes, version: str) -> str | None:
        """PUT, if it is still of a version."""
        return self._swap("renew", name, data, version)

    def swap(self, name: str, data: bytes, version: str) -> str | None:
        """PUT, if it is still of a version."""
        return self._swap("swap", name, data, version)

    def remove(self, *names: str) -> None:
        """DELETE, of a thousand at a time."""
        for begin in range(0, len(names), PAGE):
            self._request("remove", lambda some=names[begin : begin + PAGE]: self._drop(some))

    def _drop(self, names: tuple[str, ...]) -> None:
        for name in names:
            self._bucket.drop(name)

    def _swap(self, verb: str, name: str, data: bytes, version: str) -> str | None:
        def put() -> str | None:
            found = self._bucket.objects.get(name)
            if found is None or found.entry.version != version:
                return None
            return self._bucket.put(name, data)

        return self._done(verb, name, data, put)

    def _done(self, verb: str, name: str, data: bytes, put: Callable[[], str | None]) -> str | None:
        """As the client of a bucket: what was asked twice, and refused, may have been done at the first try."""
        version, repeated = self._request(verb, put)
        if version is None and repeated:
            found, _ = self._request("read again", lambda: self._bucket.objects.get(name))
            return found.entry.version if found is not None and found.data == data else None
        return version

    def _request(self, verb: str, act: Callable[[], T]) -> tuple[T, bool]:
        """What comes of a request, and whether it was made more than once."""
        bucket, pause, repeated = self._bucket, 0.1, False
        while True:
            self._fate()
            bucket.requests[verb] += 1
            bucket.world.sleep(
                self.answered() + self._chance.expovariate(2 / bucket.weather.latency)
            )
            if bucket.admits():
                result = act()
                self._answer += self._chance.expovariate(2 / bucket.weather.latency)
                self._fate()
                if self._chance.random() >= bucket.weather.lost:
                    return result, repeated
                bucket.lost += 1
            else:
                bucket.throttled += 1
            repeated = True
            bucket.world.sleep(pause * self._chance.uniform(0.5, 1.0))
            pause = min(2 * pause, 5.0)


__all__ = ["Bucket", "Died", "Held", "SimulatedPlace", "Weather"]
