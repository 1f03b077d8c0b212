"""The shipped protocol in a simulated world: builders die, stand still and wake up late, requests are throttled."""

from __future__ import annotations

import random

import pytest

from tests.simulate.__main__ import report
from tests.simulate.bucket import Bucket, SimulatedPlace, Weather
from tests.simulate.crew import Settings, Simulation
from tests.simulate.plans import plan_of
from tests.simulate.world import World
from tests.store.places import check_place


def simulated(**changes: object) -> Simulation:
    settings = Settings(**changes)  # type: ignore[arg-type]
    simulation = Simulation(settings, plan_of(settings.shards))
    simulation.run()
    return simulation


def test_the_simulated_bucket_is_a_place():
    world, passed = World(), []
    bucket = Bucket(world, Weather(lost=0.2))

    def check() -> None:
        chance = random.Random(0)
        check_place(lambda: SimulatedPlace(bucket, chance, lambda: None), threads=0)
        passed.append(True)

    world.start(check)
    world.run(until=lambda: False)
    assert passed
    assert bucket.lost > 0


def test_deaths_stalls_and_lost_answers_lose_nothing_and_write_nothing_twice():
    world = {"deaths_per_hour": 3.0, "stalls_per_hour": 12.0, "weather": Weather(lost=0.02)}
    simulation = simulated(builders=30, shards=240, seed=3, **world)
    found = report(simulation)
    assert simulation.deaths > 5
    assert simulation.stalls > 5
    assert found["lost"] == found["written_again"] == 0
    assert simulation.finished == 1
    assert found["made_twice"] > 0  # what a takeover from a living builder costs


def test_throttled_requests_are_made_again():
    weather = Weather(capacity=2)
    found = report(simulated(builders=12, shards=60, deaths_per_hour=0.0, weather=weather))
    assert found["throttled"] > 0
    assert found["lost"] == found["written_again"] == 0
    assert (
        found["made_twice"] <= 6
    )  # a renewal that is put off for too long costs work, and nothing else


@pytest.mark.parametrize("seconds", [60.0, 200.0, 600.0])
def test_who_lives_is_not_taken_over_from_however_long_a_shard_takes(seconds):
    world = {"deaths_per_hour": 0.0, "stalls_per_hour": 0.0, "shard_seconds": seconds}
    found = report(simulated(builders=20, shards=200, **world))
    assert found["made_twice"] == 0


def test_a_world_is_the_same_whenever_it_is_made():
    assert report(simulated(builders=9, shards=60)) == report(simulated(builders=9, shards=60))


@pytest.mark.slow
def test_a_shard_takes_few_requests_where_builders_are_many():
    found = report(simulated(builders=100, shards=10_000))
    assert found["lost"] == found["written_again"] == 0
    assert found["requests_per_shard"] <= 5.0


@pytest.mark.slow
def test_where_builders_die_often_the_others_wait_little():
    settings = {"shard_seconds": 300.0, "deaths_per_hour": 0.2, "stalls_per_hour": 0.0}
    found = report(simulated(builders=60, shards=6000, **settings))
    assert found["deaths"] > 60
    assert found["lost"] == found["written_again"] == 0
    assert found["waited"] < 0.03  # more where who has work looks for the dead too seldom
