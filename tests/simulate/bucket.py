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
GROUPED = {"data": len("/train-001"), "commits": len("/001"), "claims": len("/00012")}
"""Of a folder with many files, by how many characters of a name they are grouped, some hundreds together."""


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
            entries = self._folders[folder] = _Folder(folder)
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

    def __init__(self, name: str) -> None:
        self._entries: dict[str, Entry] = {}
        self._same = len(name) + GROUPED.get(name, 0)
        self._groups = SortedDict[str, set[str]]()
        """Names, by how they begin."""
        self._begins: list[str] = []
        """What the pages come after, in order."""
        self._pages: list[list[Entry]] = []

    def put(self, entry: Entry) -> None:
        name = entry.name
        if name not in self._entries:
            begin = name[: self._same]
            if (group := self._groups.get(begin)) is None:
                group = self._groups[begin] = set()
            group.add(name)
        self._entries[name] = entry
        for page in map(self._pages.__getitem__, self._with(name)):
            at = bisect_left(page, name, key=_name)
            if at < len(page) and page[at].name == name:
                page[at] = entry
            elif at < PAGE:
                page.insert(at, entry)
                del page[PAGE:]

    def drop(self, name: str) -> None:
        del self._entries[name]
        self._groups[name[: self._same]].remove(name)
        for at in self._with(name):
            del self._begins[at], self._pages[at]

    def page(self, after: str) -> list[Entry]:
        at = bisect_left(self._begins, after)
        if at == len(self._begins) or self._begins[at] != after:
            self._begins.insert(at, after)
            self._pages.insert(at, self._after(after))
        return self._pages[at].copy()

    def _after(self, name: str) -> list[Entry]:
        found: list[str] = []
        for begin in self._groups.irange(minimum=name[: self._same]):
            found += sorted(n for n in self._groups[begin] if n > name)
            if len(found) >= PAGE:
                break
        return [self._entries[n] for n in found[:PAGE]]

    def _with(self, name: str) -> Iterator[int]:
        """Pages on which a file of this name is, or would be, from the last on."""
        at = bisect_left(self._begins, name)
        while at:
            at -= 1
            page = self._pages[at]
            if len(page) == PAGE and page[-1].name < name:
                return  # those that begin sooner end sooner
            yield at


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
        self._then: Callable[[], None] | None = None

    def first(self, seconds: float, then: Callable[[], None]) -> None:
        """Let time pass before the next request, and then have something come to pass."""
        self._answer += seconds
        self._then = then

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
            if self._then is not None:
                self._fate()  # time has passed in which it worked
                then, self._then = self._then, None
                then()
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
