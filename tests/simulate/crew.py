"""Builders of a simulated world: the shipped loop, claims, commit and takeover, over a simulated bucket.

What is made up: the teacher (a shard takes as long as chance says), the bytes of a shard (a few, the same whoever makes
it), and the writer (it writes at once, not on a thread). A builder may die at any request, or while its teacher works;
it may stand still there for longer than a claim lasts, and wake up; its clock is wrong, and runs too fast or too slow.
Another begins some time after one has died.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, overload

import msgspec

from softlabels.core.progress import Silent
from softlabels.core.records import RECORD_LIMIT
from softlabels.errors import StoreError
from softlabels.format.manifest import MANIFEST, Commit, Plan, Statistics
from softlabels.format.shard_records import PlannedShard
from softlabels.making.claims import EXPIRY, Holder
from softlabels.making.commit import is_of
from softlabels.making.place.builder import PlaceBuilder
from softlabels.making.place.claims import PlaceClaims
from softlabels.making.place.commit import commit_name
from softlabels.making.place.finish import (
    AT_ONCE,
    alone_in,
    check_sizes,
    clear_in,
    collected,
    first_pause,
)
from softlabels.making.place.holding import RENEWAL
from softlabels.making.writer import Held
from tests.simulate.bucket import Bucket, SimulatedPlace, Weather
from tests.simulate.world import Died, World

A = TypeVar("A")
R = TypeVar("R")
HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one simulation."""

    builders: int = 100
    shards: int = 10_000
    shard_seconds: float = 60.0
    """What the teacher takes for a shard, on average."""
    deaths_per_hour: float = 0.01
    """Of each builder."""
    stalls_per_hour: float = 0.01
    """Of each builder."""
    stall_seconds: tuple[float, float] = (EXPIRY * 0.5, EXPIRY * 4)
    back_after: float = 120.0
    """Seconds until another builder takes the place of one that died."""
    skew: float = 0.02
    """By how much a builder's clock is too fast or too slow, at most."""
    seed: int = 0
    weather: Weather = field(default_factory=Weather)


class Shards(Sequence[PlannedShard]):
    """The shards of a plan, each made when it is asked for: a list of a million would be the larger part of a world."""

    def __init__(self, shards: int) -> None:
        self._shards = shards

    def __len__(self) -> int:
        return self._shards

    @overload
    def __getitem__(self, index: int) -> PlannedShard: ...
    @overload
    def __getitem__(self, index: slice) -> list[PlannedShard]: ...
    def __getitem__(self, index: int | slice) -> PlannedShard | list[PlannedShard]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._shards))]
        if not 0 <= index < self._shards:
            raise IndexError(index)
        return PlannedShard(
            index=index,
            name=f"data/train-{index:05d}-of-{self._shards:05d}.parquet",
            start_row=index,
            rows=1,
            positions=1,
            document=index,
            offset=0,
            inputs_sha256="0" * 64,
        )


class AtOnce:
    """A writer that writes when it is told to; what it is given is `softlabels.making.writer.Held`."""

    def __init__(self) -> None:
        self._done: tuple[int, Any] | None = None

    @property
    def index(self) -> int | None:
        return None if self._done is None else self._done[0]

    @property
    def has_written(self) -> bool:
        return self._done is not None

    def start(self, claim: Held, write: Callable[[], Any]) -> None:
        assert self._done is None
        with claim:
            self._done = claim.index, write()

    def renew(self) -> None:
        pass

    def finish(self, waiting: Held | None = None) -> tuple[int, Any] | None:
        done, self._done = self._done, None
        return done

    def __enter__(self) -> AtOnce:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Simulation:
    """A world, its bucket, and the builders in it."""

    def __init__(self, settings: Settings, plan: Plan) -> None:
        self.settings, self.plan = settings, plan
        self.world = World()
        self.bucket = Bucket(self.world, settings.weather)
        self.chance = random.Random(settings.seed)
        self.made: Counter[int] = Counter()
        """How often each shard was made, by whomever."""
        self.deaths = self.stalls = self.ended = self.finished = 0
        self.taught_until = 0.0
        """When the last shard was made."""
        self.idle = 0.0
        """Seconds in which builders waited for others."""

    def run(self) -> None:
        """Until the store is finished and every builder has seen it."""
        for number in range(self.settings.builders):
            self._begin(number, after=self.chance.uniform(0.0, 60.0))
        self.world.run(until=lambda: self.ended == self.settings.builders)

    def _begin(self, number: int, *, after: float) -> None:
        builder = _Builder(self, number)
        self.world.start(builder.live, after=after)

    def died(self, number: int) -> None:
        """A builder is gone, and another takes its place."""
        self.deaths += 1
        self._begin(number, after=self.settings.back_after)

    def taught(self, index: int) -> None:
        """A shard was made, and is about to be written."""
        self.made[index] += 1
        self.taught_until = self.world.now

    # -- what must be so --------------------------------------------------------------------------

    def lost(self) -> list[int]:
        """Shards without a record, or whose record is not of what is there."""
        missing = []
        for shard in self.plan.shards:
            there, record = (
                self.bucket.objects.get(name) for name in (shard.name, commit_name(shard.index))
            )
            if there is None or record is None or not self._fits(shard, there.data, record.data):
                missing.append(shard.index)
        return missing

    def _fits(self, shard: PlannedShard, data: bytes, record: bytes) -> bool:
        try:
            commit = msgspec.json.decode(record, type=Commit)
        except msgspec.DecodeError:
            return False
        told = is_of(commit, self.plan, shard) and commit.bytes == len(data)
        return told and data == _bytes_of(shard)


class _Builder:
    """One process, from its beginning to its end."""

    def __init__(self, simulation: Simulation, number: int) -> None:
        chance = simulation.chance
        self._all, self._number, self._chance = simulation, number, chance
        self._place = SimulatedPlace(simulation.bucket, chance, self._fate)
        settings = simulation.settings
        self._offset = chance.uniform(-1e9, 1e9)
        self._rate = 1.0 + chance.uniform(-settings.skew, settings.skew)
        now = simulation.world.now
        self._dies = now + chance.expovariate(max(settings.deaths_per_hour, 1e-12) / HOUR)
        self._stalls = now + chance.expovariate(max(settings.stalls_per_hour, 1e-12) / HOUR)
        self._dead = False
        self.first = 0

    def live(self) -> None:
        try:
            self._build()
        except Died:
            self._all.died(self._number)
        else:
            self._all.ended += 1

    def _build(self) -> None:
        """As `PlaceSite` does."""
        plan, world, place = self._all.plan, self._all.world, self._place
        claims = PlaceClaims(
            place,
            len(plan.shards),
            me=Holder(
                host=f"host-{self._number}", pid=1, token=f"{self._chance.getrandbits(64):x}"
            ),
            clock=lambda: self._offset + self._rate * world.now,
            chance=self._chance,
        )
        if self._is_finished(place) is None:
            writer: Any = AtOnce()
            PlaceBuilder(place, plan, self, Silent(), claims, writer, sleep=self._wait).run()
            alone_in(
                claims,
                "finish",
                lambda: self._is_finished(place),
                lambda lease: self._finish(place, lease.renew),
                pause=first_pause(plan),
                sleep=self._wait,
            )
        claims.close()

    def find(self, sha256: str) -> Any:
        raise AssertionError("shards of a simulation have no dictionary")

    def make(
        self, shard: PlannedShard, advance: Callable[[int], None]
    ) -> Callable[[], tuple[bytes, Statistics, float]]:
        """Take some time for a shard, in steps after which the claim may be renewed.

        The last step passes with the next request, as it would before.
        """
        advance(0)
        seconds = self._all.settings.shard_seconds * self._chance.lognormvariate(-0.02, 0.2)
        step = seconds / (1 + seconds // RENEWAL)
        for _ in range(int(seconds // RENEWAL)):
            self._all.world.sleep(self._place.answered() + step)
            self._fate()
            advance(0)
        self._place.first(step, partial(self._all.taught, shard.index))
        return lambda: (_bytes_of(shard), STATISTICS, seconds)

    def _is_finished(self, place: SimulatedPlace) -> bool | None:
        try:
            place.read(MANIFEST, limit=RECORD_LIMIT)
        except FileNotFoundError:
            return None
        return True

    def _finish(self, place: SimulatedPlace, renew: Callable[[], None]) -> None:
        """As `finish_in`; of the manifest alone there is only a sign."""
        commits, _ = collected(place, self._all.plan, renew, several=self._several)
        check_sizes(place, commits)
        _check(commits, self._all.plan)
        if place.create(MANIFEST, b"{}") is not None:
            self._all.finished += 1
        clear_in(place)

    def _several(self, work: Callable[[A], R], items: Iterable[A], /) -> Iterator[R]:
        """As `in_threads`, with processes of this world."""
        world, left, found = self._all.world, enumerate(items), dict[int, Any]()
        count = 0

        def some() -> None:
            nonlocal count
            for number, item in left:
                count = number + 1
                try:
                    found[number] = work(item)
                except (Died, StoreError, OSError) as error:
                    found[number] = error

        for _ in range(AT_ONCE):
            world.start(some)
        number = 0
        while number == 0 or number < count:
            world.sleep(0.05)
            self._fate()
            while number in found:
                result = found.pop(number)
                if isinstance(result, BaseException):
                    raise result
                yield result
                number += 1

    def _wait(self, seconds: float) -> None:
        self._all.idle += seconds
        self._all.world.sleep(self._place.answered() + seconds)
        self._fate()

    def _fate(self) -> None:
        """Die or stand still, if the time has come; who is dead stays so, whatever it still tries."""
        settings, world = self._all.settings, self._all.world
        if self._dead or world.now >= self._dies:
            self._dead = True
            raise Died
        if world.now >= self._stalls:
            self._all.stalls += 1
            self._stalls = world.now + self._chance.expovariate(settings.stalls_per_hour / HOUR)
            world.sleep(self._chance.uniform(*settings.stall_seconds))
            self._fate()


STATISTICS = Statistics(kept_ids=1, kept_mass=[1.0], teacher_nll=1.0)


def _bytes_of(shard: PlannedShard) -> bytes:
    return b"%d" % shard.index


def _check(commits: Sequence[Commit], plan: Plan) -> None:
    assert [c.index for c in commits] == list(range(len(plan.shards)))


__all__ = ["Settings", "Shards", "Simulation"]
