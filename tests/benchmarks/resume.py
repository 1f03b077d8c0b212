"""What resuming costs in the largest store that can exist: opening it, finding the place, decoding there.

    python -m tests.benchmarks.resume [--rows 1000000000] [--json FILE]

Readers refuse a plan of more than 16 MiB, so a store has no more shards than fit in one. That many are made here:
one packed shard of a tiny teacher under as many names, as hard links, with a manifest that a reader cannot tell
from one of a build. Rows are short (8 tokens), as those of short texts or image views are; a shard has as many as
make --rows in all. Each resume is a process of its own, from a random place; the time of each of its parts is the
median of --repeats, in CPU seconds and by the clock, and the peak is that of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from softlabels.core.records import RECORD_LIMIT, canonical, read_record, seal
from softlabels.format.manifest import Plan, content_digest, load_manifest
from softlabels.store.reader import open_store
from tests.fakes import build_tiny
from trainers.data.stream import SoftTargetStream

TOKENS = 8


def make_store(out: Path, rows: int) -> Path:
    """A packed store of one shard, of bytes of Austen and a tiny teacher."""
    build_tiny(
        out,
        f"text:{Path(__file__).parents[2]}/data/austen/train/*.txt",
        estimator="sampled",
        k=12,
        seq_len=TOKENS,
        limit_rows=rows,
        shard_rows=rows,
        profile="packed",
        dictionary="none",
        temperature=(1.0,),
    )
    return out


def most_shards(plan: Plan, rows: int) -> int:
    """How many shards like those of a plan the largest plan of so many rows holds."""
    like = msgspec.structs.replace(  # numbers as long as they will be, give or take a digit
        plan.shards[-1], start_row=rows - 1, rows=10**4, positions=10**5, document=10**4, offset=100
    )

    def size(n: int) -> int:
        last = msgspec.structs.replace(
            like, index=n - 1, name=f"data/train-{n - 1:05d}-of-{n:05d}.parquet"
        )
        each = len(canonical({"shards": [last, last]})) - len(canonical({"shards": [last]}))
        return len(canonical(msgspec.structs.replace(plan, shards=[last]))) + (n - 1) * each

    low, high = 1, RECORD_LIMIT
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= RECORD_LIMIT else (low, middle - 1)
    return low


def make_largest(folder: Path, rows: int) -> Path:
    """A store of as many shards as can be, with as many rows in each as make `rows`."""
    small = make_store(folder / "small", rows=1)
    shards = most_shards(read_record(small / "plan.json", Plan), rows)
    each = -(-rows // shards)
    store = make_store(folder / "largest", rows=each)
    manifest = load_manifest(store)
    (shard,) = manifest.shards
    names = [f"data/train-{i:05d}-of-{shards:05d}.parquet" for i in range(shards)]
    for name in names:
        os.link(store / shard.name, store / name)
    (store / shard.name).unlink()
    records = [
        msgspec.structs.replace(shard, name=name, start_row=i * each)
        for i, name in enumerate(names)
    ]
    corpus = manifest.identity.corpus
    identity = msgspec.structs.replace(
        manifest.identity,
        corpus=msgspec.structs.replace(
            corpus,
            rows=corpus.rows * shards,
            tokens=corpus.tokens * shards,
            positions=corpus.positions * shards,
        ),
    )
    largest = msgspec.structs.replace(
        manifest,
        identity=identity,
        shards=records,
        content_digest=content_digest(identity, records),
    )
    (store / "manifest.json").write_bytes(canonical(seal(largest)))
    return store


def resume(store: Path, position: int, batch_size: int) -> dict[str, float]:
    """Seconds of each part of a resume, in this process."""
    marks = [now()]
    opened = open_store(store)
    marks.append(now())
    stream = SoftTargetStream(opened, batch_size=batch_size, order="store", lanes=1, prefetch=0)
    stream.load_state_dict(stream.state_dict() | {"position": position})
    stream._reader.lanes.order.take(position, batch_size)
    marks.append(now())
    next(iter(stream))
    marks.append(now())
    taken: dict[str, float] = {
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    }
    for part, i, j in (("open", 0, 1), ("order", 1, 2), ("first batch", 2, 3), ("all", 0, 3)):
        taken[part] = marks[j][0] - marks[i][0]
        taken[f"{part}, by the clock"] = marks[j][1] - marks[i][1]
    return taken


def now() -> tuple[float, float]:
    """CPU seconds and the clock's."""
    return time.process_time(), time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10**9)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("STORE", "POSITION"), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(resume(Path(args.one[0]), int(args.one[1]), args.batch_size)))
        return
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        store = make_largest(Path(name), args.rows)
        manifest = load_manifest(store)
        size = (store / "manifest.json").stat().st_size
        runs = [
            one_process(store, chance.randrange(2 * manifest.rows), args.batch_size)
            for _ in range(args.repeats)
        ]
    found = {part: median(r[part] for r in runs) for part in runs[0]}
    shards = len(manifest.shards)
    print(
        f"{manifest.rows:,} rows of {TOKENS} tokens in {shards:,} shards, the most that a plan holds; "
        f"manifest: {size / 2**20:.1f} MiB"
    )
    print("| | opening | order | first batch | all, s | peak MiB |\n|---|---|---|---|---|---|")
    for name, suffix in (("CPU", ""), ("by the clock", ", by the clock")):
        cells = [f"{found[p + suffix]:.2f}" for p in ("open", "order", "first batch", "all")]
        print(f"| {name} | {' | '.join(cells)} | {found['peak MiB']:,.0f} |")
    if args.json is not None:
        facts = {"rows": manifest.rows, "shards": shards, "manifest_bytes": size}
        args.json.write_text(json.dumps(facts | {"median": found, "runs": runs}, indent=2) + "\n")


def one_process(store: Path, position: int, batch_size: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.resume", "--batch-size", str(batch_size)]
    done = subprocess.run(
        [*command, "--one", str(store), str(position)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
