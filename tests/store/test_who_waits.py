"""A builder that finds nothing free, and waits: what it finds later, and after how long, by a clock of its own."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable

import pytest

from softlabels.making.claims import EXPIRY, Holder
from softlabels.making.leases import cut
from softlabels.making.place import PAGE, Entry
from softlabels.making.place.blocks import BLOCK
from softlabels.making.place.builder import LONGEST_PAUSE
from softlabels.making.place.claims import PlaceClaims
from softlabels.making.place.finish import alone_in
from softlabels.making.place.holding import RENEWAL, PlaceLease
from softlabels.making.place.names import (
    FINISH,
    FREE,
    FULL,
    claim_content,
    claim_name,
    done_name,
    mark_name,
)
from tests.store.memory_place import MemoryPlace

ME, GONE, ALIVE = (Holder(host=h, pid=1, token=h) for h in ("me", "gone", "alive"))


class World:
    """A bucket with the claims of a plan, of which some are renewed, and one builder."""

    def __init__(self, shards: int, seed: int) -> None:
        self.now = 0.0
        self.place = _Sorted(self)
        self.leases = cut(shards)
        self.blocks = range(-(-len(self.leases) // BLOCK))
        self.renewals = 0
        self.living: list[int] = []
        self.chance = random.Random(seed)
        self.claims = PlaceClaims(
            self.place, shards, me=ME, clock=lambda: self.now, chance=random.Random(seed + 1)
        )

    def put(self, number: int, content: bytes, *, done: bool) -> None:
        self.place.put(claim_name(self.leases[number].start), content)
        if done:
            self.place.put(done_name(self.leases[number].start), b"{}")

    def hold(self, numbers: Iterable[int], holder: Holder) -> None:
        for n in numbers:
            self.put(n, claim_content(holder, f"s{n}", self.renewals), done=False)

    def sleep(self, seconds: float) -> None:
        """Let time pass, in which the living renew their claims."""
        self.now += seconds
        if self.now >= (self.renewals + 1) * RENEWAL:
            self.renewals = int(self.now / RENEWAL)
            self.hold(self.living, ALIVE)

    def taken(self, within: float) -> PlaceLease | None:
        """What the builder takes; it pauses as the loop does."""
        pause = 15.0
        while self.now < within:
            if lease := self.claims.take():
                return lease
            self.sleep(pause * self.chance.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)
        return None


class _Sorted(MemoryPlace):
    """Lists many files fast, and says when each was written."""

    names: tuple[str, ...] = ()

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.modified = world, dict[str, float]()

    def _put(self, name: str, data: bytes) -> str:
        self.modified[name] = self.world.now + 1e9  # a clock of its own
        return super()._put(name, data)

    def list(self, folder: str, *, after: str = "") -> list[Entry]:
        if len(self.names) != len(self.files):
            self.names = tuple(sorted(self.files))
        begin = bisect_right(self.names, after)
        page = [n for n in self.names[begin : begin + PAGE] if n.startswith(f"{folder}/")]
        return [Entry(n, self.files[n][1], len(self.files[n][0]), self.modified[n]) for n in page]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("free", [True, False])
def test_small_leases_are_found_beside_a_large_one_that_another_has_in_hand(seed, free):
    world = World(20_000, seed)
    small = [n for n, lease in enumerate(world.leases) if len(lease) == 1][::7][:40]
    world.living = [300]
    for n in range(len(world.leases)):
        there = claim_content(GONE, f"s{n}", 0)
        world.put(n, FREE if free and n in small else there, done=n not in {300, *small})
    world.hold(world.living, ALIVE)
    for block in world.blocks:
        world.place.put(mark_name(block, FULL), b"claimed\n")
    lease = world.taken(within=EXPIRY * (2 if free else 4))
    assert lease is not None
    assert world.leases.index(lease.shards) in small


def test_who_comes_late_finds_at_once_what_is_free_behind_blocks_that_nobody_marked():
    world = World(100_000, seed=0)
    world.hold([14 * BLOCK - 1], ALIVE)
    for n in range(14 * BLOCK - 1):
        world.put(n, claim_content(ALIVE, f"s{n}", 0), done=True)
    assert world.claims.take() is not None


@pytest.mark.parametrize("seed", range(3))
def test_a_dead_claim_does_not_starve_behind_living_ones(seed):
    world = World(100_000, seed)
    dead = 12 * BLOCK + 77
    world.living = [block * BLOCK + i * 30 for block in range(12) for i in range(6)]
    for n in range(len(world.leases)):
        there = claim_content(GONE, f"s{n}", 0)
        world.put(n, there, done=n not in {dead, *world.living})
    world.hold(world.living, ALIVE)
    for block in world.blocks:
        world.place.put(mark_name(block, FULL), b"claimed\n")
        if block > 12:
            world.place.put(mark_name(block), b"done\n")
    lease = world.taken(within=5 * EXPIRY)
    assert lease is not None
    assert lease.shards == world.leases[dead]


@pytest.mark.parametrize("seed", range(3))
def test_who_has_work_finds_a_dead_claim_in_a_block_that_others_had_in_hand(seed):
    world = World(100_000, seed)
    dead, living = 77, 99
    for n in range(BLOCK):
        world.put(n, claim_content(GONE, f"s{n}", 0), done=n not in {dead, living})
    world.living = [living]
    world.hold(world.living, ALIVE)
    world.place.put(mark_name(0, FULL), b"claimed\n")
    taken = []
    while world.leases[dead] not in taken:
        lease = world.claims.take()
        assert lease is not None
        assert len(taken) < 200, "it was left until nothing else is"
        taken.append(lease.shards)
        world.sleep(EXPIRY / 2)
        world.claims.finish(lease, b"{}")
    assert world.leases[living] not in taken
    looks = len(world.place.requests) - sum(r.startswith("create") for r in world.place.requests)
    assert looks < 2 * len(taken)


@pytest.mark.parametrize("many", [3, 30])
def test_who_goes_on_alone_waits_for_no_dead_claim_while_there_is_work(many):
    world = World(200, seed=0)
    dead = range(3, 3 + many)
    for n in range(5 + many):
        world.put(n, claim_content(GONE, f"s{n}", 0), done=n not in dead)
    world.sleep(1000.0)
    taken = []
    while len(taken) < len(world.leases) - 5:
        lease = world.claims.take()
        assert lease is not None, f"{len(taken)} leases were taken"
        taken.append(world.leases.index(lease.shards))
        world.sleep(60.0)
        world.claims.finish(lease, b"{}")
    assert set(dead) < set(taken)
    assert world.claims.take() is None
    assert world.claims.done


def test_more_files_of_others_than_a_page_has_do_not_hide_a_block():
    world = World(10, seed=0)
    for i in range(PAGE):
        world.place.put(f"claims/00000000.bak{i}", b"theirs")
    for _ in range(10):
        lease = world.claims.take()
        assert lease is not None
        world.claims.finish(lease, b"{}")
    assert world.taken(within=EXPIRY) is None
    assert world.claims.done


def test_a_process_of_this_host_that_dies_after_its_claim_was_read_is_found_soon(monkeypatch):
    def gone(holder: Holder) -> bool:
        return world.now > 0 and holder.token == "alive"

    monkeypatch.setattr("softlabels.making.place.watch.is_gone", gone)
    world = World(1, seed=0)
    beside = Holder(host=ME.host, pid=2, token="alive")
    world.hold([0], beside)
    assert world.claims.take() is None
    assert world.taken(within=LONGEST_PAUSE) is not None


def test_a_manifest_is_seen_though_who_made_it_died_before_it_let_go():
    world = World(1, seed=0)
    world.place.put(f"claims/{FINISH}.json", claim_content(ALIVE, "s", 0))

    def done() -> str | None:
        return "manifest" if world.now > 20 else None

    assert alone_in(world.claims, FINISH, done, lambda _: None, sleep=world.sleep) == "manifest"
    assert world.now < EXPIRY
