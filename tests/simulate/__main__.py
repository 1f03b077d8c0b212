"""`python -m tests.simulate`: how many requests a shard takes, and what deaths, stalls and throttling cost.

python -m tests.simulate --builders 10000 --shards 1000000
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import time
from dataclasses import fields

from tests.simulate.crew import Settings, Simulation
from tests.simulate.plans import plan_of

HUGE_PAGES = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Has glibc ask for huge pages: in small ones, gigabytes of small objects cost twice the time."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description=__doc__)
    numbers = {f.name: f.default for f in fields(Settings) if isinstance(f.default, int | float)}
    for name, default in numbers.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default, metavar="N")
    settings = Settings(**vars(parser.parse_args()))
    begun = time.perf_counter()
    gc.disable()  # it would look at millions of objects again and again, of which none is ever garbage
    simulation = Simulation(settings, plan_of(settings.shards))
    simulation.run()
    took = time.perf_counter() - begun
    found = report(simulation)
    found["seconds_here"] = round(took, 1)
    found["cpu_seconds_here"] = round(time.process_time(), 1)
    found["MiB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(found, indent=2))
    return int(bool(found["lost"] or found["written_again"]))


def report(simulation: Simulation) -> dict[str, object]:
    """What came of it."""
    settings, bucket = simulation.settings, simulation.bucket
    requests = bucket.requests
    ideal = settings.shards * settings.shard_seconds / settings.builders
    return {
        "builders": settings.builders,
        "shards": settings.shards,
        "deaths": simulation.deaths,
        "stalls": simulation.stalls,
        "throttled": bucket.throttled,
        "answers_lost": bucket.lost,
        "lost": len(simulation.lost()),
        "written_again": len(bucket.changed),
        "made_twice": sum(n - 1 for n in simulation.made.values()),
        "requests_per_shard": round(requests.total() / settings.shards, 3),
        "requests": {k: round(n / settings.shards, 4) for k, n in requests.most_common()},
        "hours": round(simulation.taught_until / 3600, 3),
        "hours_if_nobody_waited_or_died": round(ideal / 3600, 3),
        "waited": round(simulation.idle / (settings.shards * settings.shard_seconds), 4),
    }


if __name__ == "__main__":
    if sys.platform == "linux" and not HUGE_PAGES.items() <= os.environ.items():
        again = [sys.executable, "-m", "tests.simulate", *sys.argv[1:]]
        os.execve(sys.executable, again, os.environ | HUGE_PAGES)
    code = main()
    sys.stdout.flush()
    os._exit(code)  # millions of objects are given back at once, which takes ten seconds one by one
