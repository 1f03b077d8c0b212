"""What builders cost beside each other: CPU seconds a shard of one and of eight, what a joiner reads, who seeks.

    python -m tests.benchmarks.builders [--tokens 4000000] [--builders 1 8] [--json FILE]

The corpus is made-up JSON lines, a token is a byte, and the teacher answers at once with the same for every position.
So what is measured is all else: reading the corpus, packing it, encoding, checking and publishing shards, and the
protocol. Builders are processes that have made a small store already, and begin together on a plan that is there.
There may be more of them than cores, so work is compared by CPU seconds: of builders that did nothing in vain each
would do as much a second, on a core of its own, as one alone.

The joiner comes to the same store when nine of ten shards are done and another builder is at work: what it read
(`rchar` of /proc/self/io) from its start until the teacher is shown the first row.

The loop is a builder's own work, of shards that cost nothing: they are links to one file. So many shards are in a plan
(which needs not fit in a file here), of which the first 480 are still to be made.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace as record_replace

from softlabels.builder.build import build
from softlabels.builder.plan import plan_build
from softlabels.capture import Job, Kept
from softlabels.core.progress import Silent
from softlabels.core.records import read_record, sha256_of
from softlabels.core.rows import Location
from softlabels.corpora import Document, open_corpora
from softlabels.corpora.files import JsonLines
from softlabels.format.manifest import PLAN, Commit, Plan, Statistics
from softlabels.making.builder import Builder
from softlabels.making.claims import Claims
from softlabels.making.commit import Reused
from softlabels.making.job import begin
from softlabels.making.leases import cut
from softlabels.making.plan import read_plan
from softlabels.making.share import Share
from tests.fakes import TinyTeacher, build_tiny, config_of
from tests.fakes import write_corpus as write_text

FORK = multiprocessing.get_context("fork")
K = 4


class AtOnce(TinyTeacher):
    """The same four ids at every position; notes when it is first asked."""

    asked: float | None = None
    read = 0

    def selected(self, rows: Sequence[Any], job: Job, uniforms: Any) -> Iterator[Kept]:
        if self.asked is None:
            self.asked, self.read = cpu(), characters_read()
        n = sum(r.n for r in rows)
        yield Kept(
            ids=torch.arange(K).expand(n, K),
            logp=torch.full((n, K), -1.5),
            log_odds=torch.full((n, 1), -2.0),
            label_logp=torch.full((n,), -3.0),
            impossible=torch.zeros(n, dtype=torch.int64),
            entropy=torch.full((n,), 2.0) if job.summarise else None,
            top=torch.zeros(n, dtype=torch.int64) if job.summarise else None,
        )


class Watched(JsonLines):
    """Counts how often it is begun elsewhere than at its beginning, and the documents that it gives."""

    seeks = given = 0

    def documents_from(self, location: Location) -> Iterator[Document]:
        self.seeks += location != Location()
        for document in super().documents_from(location):
            self.given += 1
            yield document


def cpu() -> float:
    """Seconds of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def characters_read() -> int:
    """Bytes that this process has read, from wherever."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def write_corpus(folder: Path, tokens: int) -> str:
    """Documents of 40 to 1,500 letters in four files."""
    rng = random.Random(0)
    words = [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 10)))
        for _ in range(4000)
    ]
    folder.mkdir()
    for part in range(4):
        left = tokens // 4
        with (folder / f"{part}.jsonl").open("w") as out:
            while left > 0:
                text = " ".join(rng.choices(words, k=rng.randrange(8, 250)))
                out.write(json.dumps({"text": text}) + "\n")
                left -= len(text) + 1
    return f"{folder}/*.jsonl"


def work(out: Path, config: Any, share: Share | None, start: Any, results: Any) -> None:
    """One builder, in a process of its own."""
    torch.set_num_threads(1)
    (corpus,) = config.corpus
    watched = Watched(corpus.partition(":")[2])
    teacher = AtOnce()
    maker = "softlabels.domains.causal_lm.corpus"
    __import__(maker, fromlist=["MAKER"]).MAKER.open = lambda _: [watched]
    with tempfile.TemporaryDirectory() as folder:  # what happens once in a process
        build(replace(config, limit_rows=32), folder + "/warm", teacher=AtOnce())
    watched.seeks = watched.given = 0
    start.wait()
    begun, read, at = cpu(), characters_read(), time.monotonic()
    build(config, out, teacher=teacher, reporter=Silent(), share=share)
    results.put(
        {
            "cpu": cpu() - begun,
            "seconds": time.monotonic() - at,
            "seeks": watched.seeks,
            "documents": watched.given,
            "taught": teacher.asked is not None,
            "joined_cpu": None if teacher.asked is None else teacher.asked - begun,
            "joined_bytes": teacher.read - read,
        }
    )


def crew(out: Path, config: Any, shares: Sequence[Share | None]) -> list[dict[str, Any]]:
    """Builders that begin together, until all have ended."""
    start, results = FORK.Barrier(len(shares)), FORK.SimpleQueue()
    children = [
        FORK.Process(target=work, args=(out, config, share, start, results)) for share in shares
    ]
    for child in children:
        child.start()
    found = [results.get() for _ in children]
    for child in children:
        child.join()
    assert [c.exitcode for c in children] == [0] * len(children)
    return found


def planned(out: Path, config: Any) -> float:
    """Plan the store; CPU seconds."""
    begun = cpu()
    plan, files = plan_build(config, open_corpora(config.corpus), AtOnce(), Silent())
    begin(out, plan, files, Silent())
    return cpu() - begun


def joiner(out: Path, config: Any) -> dict[str, Any]:
    """One more builder, when the last tenth of the shards is left, and another holds a lease of it."""
    shards = read_plan(out).shards
    (out / "manifest.json").unlink()
    for shard in shards[-(len(shards) // 10) :]:
        (out / shard.name).unlink()
        (out / f"commits/{shard.index:05d}.json").unlink()
    claims = Claims(out)
    claim = claims.take([cut(len(shards))[-1].start])
    assert claim is not None
    start, results = FORK.Barrier(1), FORK.SimpleQueue()
    child = FORK.Process(target=work, args=(out, config, None, start, results))
    child.start()
    while len(list((out / "commits").iterdir())) < len(shards) - 1:
        claim.renew()
        time.sleep(0.5)
    claim.release()
    found: dict[str, Any] = results.get()
    child.join()
    claims.close()
    return found


class Linked:
    """A job whose shards are one file."""

    command, stage = "build", "teach"

    def __init__(self, store: Path, file: Path, statistics: Statistics) -> None:
        self.store = store
        self._reused = Reused(
            file=file,
            sha256=sha256_of(file),
            size=file.stat().st_size,
            statistics=statistics,
            seconds=0.0,
        )

    def shard(self, plan: Plan, index: int, advance: Any) -> Reused:
        return self._reused


def own_work(folder: Path, shards: int, left: int = 480) -> dict[str, Any]:
    """CPU milliseconds of a builder for each shard of a plan of so many, beside what a shard costs."""
    small = folder / "small"
    if not small.exists():
        build_tiny(small, write_text(folder / "text"), limit_rows=8, shard_rows=8)
    one, store = read_plan(small), folder / f"loop-{shards}"
    statistics = read_record(small / "commits/00000.json", Commit).statistics
    like = one.shards[0]
    plan = record_replace(
        one,
        shards=[
            record_replace(
                like, index=i, start_row=8 * i, name=f"data/train-{i:05d}-of-{shards:05d}.parquet"
            )
            for i in range(shards)
        ],
    )
    (store / "commits").mkdir(parents=True)
    for i in range(left, shards):
        os.close(os.open(store / f"commits/{i:05d}.json", os.O_CREAT | os.O_WRONLY))
    job = Linked(store, small / like.name, statistics)
    begun, at = cpu(), time.monotonic()
    builder = Builder(job, plan, Silent(), None)
    builder._collect()
    ready = cpu()
    with closing(Claims(store)) as claims, builder._writer:
        builder._make_all(claims)
    return {
        "shards": shards,
        "ready_cpu": ready - begun,
        "ms_a_shard": 1e3 * (cpu() - ready) / left,
        "seconds": time.monotonic() - at,
    }


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All that the tables show."""
    if not args.builders:
        return {"loop": [own_work(folder, n) for n in args.shards]}
    spec = f"jsonl:{write_corpus(folder / 'corpus', args.tokens)}"
    config = config_of(
        spec, seq_len=512, shard_rows=args.shard_rows, k=K, temperature=(1.0,), batch_tokens=2**14
    )
    crews = []
    for numbered in (False, True):
        for n in args.builders:
            if numbered and n == 1:
                continue
            out = folder / f"store-{n}-{numbered}"
            planning = planned(out, config)
            before = os.times()
            found = crew(out, config, [Share(i, n) if numbered else None for i in range(n)])
            plan = read_plan(out)
            corpus = plan.identity.corpus
            crews.append(
                {
                    "builders": n,
                    "numbered": numbered,
                    "shards": len(plan.shards),
                    "tokens": corpus.tokens,
                    "planning_cpu": planning,
                    "cpu": sum(f["cpu"] for f in found),
                    "seconds": max(f["seconds"] for f in found),
                    "begun": sorted(round(f["joined_cpu"], 3) for f in found if f["taught"]),
                    "seeks": sorted(f["seeks"] for f in found),
                    "documents_read": sum(f["documents"] for f in found) / corpus.documents,
                    "commands": os.times().elapsed - before.elapsed,
                }
            )
            print(json.dumps(crews[-1]), flush=True)
    one = next(c for c in crews if c["builders"] == 1)
    for c in crews:
        c["ms_a_shard"] = 1e3 * c["cpu"] / c["shards"]
        c["times_one"] = c["builders"] * one["ms_a_shard"] / c["ms_a_shard"]
    joined = joiner(out, config)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    return {
        "loop": [
            own_work(folder, n) for n in args.shards
        ],  # after all forks: torch has threads then
        "crews": crews,
        "joiner": joined | {"store_bytes": size, "plan_bytes": (out / PLAN).stat().st_size},
    }


def table(found: dict[str, Any]) -> str:
    """Of Markdown."""
    lines = [
        "| shards in the plan | CPU s until the first claim | CPU ms of its own a shard |",
        "|---|---|---|",
        *(
            f"| {n['shards']:,} | {n['ready_cpu']:.2f} | {n['ms_a_shard']:.1f} |"
            for n in found["loop"]
        ),
        "",
    ]
    if "crews" not in found:
        return "\n".join(lines)
    lines += [
        "| builders | CPU ms a shard | times the work of one, a core each | seeks, of all | corpus read |",
        "|---|---|---|---|---|",
    ]
    for c in found["crews"]:
        name = f"{c['builders']}{', numbered' if c['numbered'] else ''}"
        lines.append(
            f"| {name} | {c['ms_a_shard']:.1f} | {c['times_one']:.2f} | {sum(c['seeks'])} | "
            f"{c['documents_read']:.3f} times |"
        )
    j = found["joiner"]
    lines.append(
        f"\nA joiner read {j['joined_bytes'] / 1e6:.2f} MB of a store of {j['store_bytes'] / 1e6:.1f} MB "
        f"(its plan has {j['plan_bytes'] / 1e6:.2f}) in {j['joined_cpu']:.2f} CPU seconds, before its first row"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=4_000_000)
    parser.add_argument("--shard-rows", type=int, default=16)
    parser.add_argument(
        "--builders", type=int, nargs="*", default=[1, 8], help="none: the loop alone"
    )
    parser.add_argument("--shards", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        found = measure(args, folder)
    finally:
        shutil.rmtree(folder)
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
