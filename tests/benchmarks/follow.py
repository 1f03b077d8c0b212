"""How much earlier a student begins that follows a store, and how long it waits: `python -m tests.benchmarks.follow`.

Builders with a teacher that sleeps make one store, each a process of its own. When each shard was recorded says when a
student that goes forward in blocks of eight could have read it. A student is as fast as it takes an epoch in a given
share of the time that the builders took; its first epoch is played through on those times.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from pathlib import Path

import torch

from softlabels.making.commit import commit_path
from softlabels.making.plan import read_plan
from tests.fakes import TinyTeacher, build_tiny

BLOCK = 8
"""Shards, as the order has them by default."""


class Sleeping(TinyTeacher):
    """A teacher that takes its time for each batch."""

    def __init__(self, pause: float) -> None:
        super().__init__()
        self.pause = pause

    def logits(self, rows):
        time.sleep(self.pause)
        yield from super().logits(rows)


def work(out: Path, corpus: str, pause: float, seed: int) -> None:
    """One builder."""
    torch.set_num_threads(1)
    random.seed(seed)
    build_tiny(out, corpus, teacher=Sleeping(pause), shard_rows=1, batch_tokens=64)


def recorded(folder: Path, builders: int, shards: int, pause: float) -> list[float]:
    """When each shard of a store was recorded, in seconds from the first record on less one shard's."""
    out = folder / "store"
    words = " ".join(str(random.randrange(10**6)) for _ in range(9 * shards))
    (folder / "words.txt").write_text(words)
    crew = [
        multiprocessing.get_context("fork").Process(
            target=work, args=(out, f"text:{folder}/words.txt", pause, seed)
        )
        for seed in range(builders)
    ]
    for builder in crew:
        builder.start()
    for builder in crew:
        builder.join()
        assert builder.exitcode == 0
    times = [commit_path(out, s).stat().st_mtime for s in read_plan(out).shards]
    begun = min(times) - pause
    return [t - begun for t in times]


def played(times: list[float], share: float) -> dict[str, float]:
    """The first epoch of a student that takes an epoch in a share of the builders' time, in shares of that time."""
    whole = max(times)
    blocks = [times[i : i + BLOCK] for i in range(0, len(times), BLOCK)]
    now = waited = 0.0
    for block in blocks:
        there = max(block)
        waited += max(0.0, there - now)
        now = max(now, there) + share * whole * len(block) / len(times)
    begins = max(blocks[0])
    return {
        "begins": begins / whole,
        "waits": (waited - begins) / whole,
        "ends": now / whole,
        "ends_after_build": 1 + share,
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--builders", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--shards", type=int, default=320)
    parser.add_argument("--pause", type=float, default=0.15)
    parser.add_argument("--repeat", type=int, default=1)
    args = parser.parse_args()
    for builders in args.builders:
        for _ in range(args.repeat):
            with tempfile.TemporaryDirectory() as folder:
                times = recorded(Path(folder), builders, args.shards, args.pause)
            for share in (0.25, 0.5, 1.0):
                found = {k: round(v, 3) for k, v in played(times, share).items()}
                about = {
                    "builders": builders,
                    "shards": len(times),
                    "seconds": round(max(times), 1),
                }
                print(json.dumps(about | {"epoch": share} | found), flush=True)


if __name__ == "__main__":
    main()
