"""How fast the loader is, how little it holds, and that its batches are the same whoever makes them.

    python tests/benchmarks/loader.py [--rows 512] [--json FILE]

Builds two stores, open and packed, from text that ships with the project and a made-up teacher of a real one's
shape, and reads them on one core: everything from the file's bytes (digest, checksums, decoding) to a batch.
Against it: the same rows as Python lists that are in memory already, put together by `torch.tensor`, as a collate
function over a list-of-records data set does; and the same with reading them from Parquet. In turns, in one
process, in CPU seconds and by the clock; the time is the median, a ratio that of each repeat's own ratio. That is done
in a process whose memory the C library gives back to the kernel, and in one that keeps it, as the command lines do
(`softlabels/core/allocator.py`); of both the share of CPU seconds that were the kernel's. Then: what one of W ranks
makes of its core, with lanes and without; what a training loop waits for (whose steps sleep for a given time); and
digests of global batches for ranks x workers x a stop x a resume elsewhere. Beside other loaders: `loader_peers.py`;
what a resume costs: `resume.py`.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from softlabels.builder.build import build  # noqa: E402
from softlabels.builder.config import BuildConfig  # noqa: E402
from softlabels.core.allocator import keep_memory  # noqa: E402
from softlabels.core.rows import Row  # noqa: E402
from softlabels.corpora.packing import Tokenized  # noqa: E402
from softlabels.store.reader import open_store  # noqa: E402
from tests.fakes import ByteTokenizer, TinyTeacher  # noqa: E402
from tests.trainers.topology import Topology, run  # noqa: E402
from trainers.data.stream import SoftTargetStream  # noqa: E402

VOCAB = 49_152
PARTS = ("speeds", "ranks", "waits", "elasticity")
TARGET = 10.0
"""Of the loader over the collation of lists."""
ONE: dict[str, Any] = {"order": "store", "lanes": 1}
"""Shards one after the other, as the figures of docs/benchmarks.md were measured."""


class Words(ByteTokenizer):
    """Ids of words, by their checksum: as many different ones as the text has."""

    vocab_size = VOCAB

    def encode(self, text: str) -> Tokenized:
        ids = np.array([zlib.crc32(w.encode()) % VOCAB for w in text.split()], np.int32)
        return Tokenized(input_ids=ids, learn=np.ones(len(ids), np.bool_))


class MadeUp(TinyTeacher):
    """Logits that follow from the last two tokens, over a vocabulary some of which is frequent."""

    def __init__(self) -> None:
        super().__init__(vocab_size=300)
        g = torch.Generator().manual_seed(0)
        self.tokenizer = Words()
        self.frequent = -2.0 * torch.log(torch.arange(1, VOCAB + 1) + 10.0)
        self.by_token = torch.randn(64, VOCAB, generator=g) * 2.5
        self.by_one_before = torch.randn(61, VOCAB, generator=g)
        self.record = type(self.record)(
            **{f: getattr(self.record, f) for f in self.record.__struct_fields__}
            | {"vocab_size": VOCAB}
        )

    def logits(self, rows: Sequence[Row]) -> Iterator[torch.Tensor]:
        for row in rows:
            at = torch.from_numpy(row.positions)
            ids = torch.from_numpy(row.input_ids).long()
            before = ids[(at - 1).clamp(min=0)]
            yield self.frequent + self.by_token[ids[at] % 64] + self.by_one_before[before % 61]


def make_store(out: Path, args: argparse.Namespace, profile: str) -> Path:
    config = BuildConfig(
        teacher="fake:made-up",
        corpus=(f"text:{ROOT}/data/austen/train/*.txt",),
        estimator="topk",
        k=50,
        seq_len=256,
        shard_rows=args.shard_rows,
        limit_rows=args.rows,
        profile=profile,
    )
    build(config, out, teacher=MadeUp())
    return out


# -- Python lists -------------------------------------------------------------------------------------


def read_lists(store: Path) -> list[dict[str, Any]]:
    """The rows of an open store as lists of numbers, a list of K for each position."""
    rows = []
    for path in sorted((store / "data").glob("*.parquet")):
        for record in pq.read_table(path, use_threads=False).to_pylist():
            ids, logp, kept = record["ids"], record["logp"], record["kept"]
            ends = np.cumsum(kept).tolist()
            record["ids"] = [ids[e - k : e] for e, k in zip(ends, kept, strict=True)]
            record["logp"] = [logp[e - k : e] for e, k in zip(ends, kept, strict=True)]
            rows.append(record)
    return rows


def collate_lists(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch of them, padded with Python's means."""
    width = max(len(r["input_ids"]) for r in rows)
    most = max(len(r["ids"]) for r in rows)
    k = max(max(r["kept"]) for r in rows)

    def padded(lists: list[list[Any]], fill: Any) -> list[list[Any]]:
        return [x + [fill] * (k - len(x)) for x in lists] + [[fill] * k] * (most - len(lists))

    def wide(name: str, fill: Any, to: int) -> list[list[Any]]:
        return [r[name] + [fill] * (to - len(r[name])) for r in rows]

    return {
        "input_ids": torch.tensor(wide("input_ids", 0, width)),
        "label_mask": torch.tensor(wide("label_mask", False, width)),
        "ids": torch.tensor([padded(r["ids"], 0) for r in rows]),
        "logp": torch.tensor([padded(r["logp"], -float("inf")) for r in rows]),
        "log_odds": torch.tensor(wide("log_odds_T1", 0.0, most)),
    }


# -- measuring ----------------------------------------------------------------------------------------


def in_a_process(work: Callable[..., Any], *arguments: Any, keep: bool) -> Any:
    """What a function gives in a new process, on one core, which keeps memory or does not."""
    with multiprocessing.get_context("spawn").Pool(1, _begin, (keep,)) as pool:
        return pool.apply(work, arguments)


def _begin(keep: bool) -> None:
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if keep and not keep_memory():
        raise SystemExit("this C library cannot be told to keep memory")


def cpu_seconds() -> tuple[float, float]:
    """Of this process: its own, and the kernel's for it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime, used.ru_stime


def speeds(stores: dict[str, Path], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Rows and tokens a second of each way, and how many times as fast as collating lists."""
    lists = read_lists(stores["open"])
    batches = args.rows // args.batch_size

    def streamed(path: Path) -> Callable[[], None]:
        def work() -> None:
            stream = SoftTargetStream(path, batch_size=args.batch_size, prefetch=0, **ONE)
            for _ in islice(stream, batches):
                pass

        return work

    def collated(rows: list[dict[str, Any]]) -> None:
        for i in range(batches):
            collate_lists(rows[i * args.batch_size : (i + 1) * args.batch_size])

    def decoded() -> None:
        store = open_store(stores["open"])
        for i in range(len(store.manifest.shards)):
            store.read_shard(i)

    kept = SoftTargetStream(
        stores["open"], batch_size=args.batch_size, prefetch=0, block_shards=10**6, **ONE
    )
    next(iter(kept))  # decodes all

    def collated_arrays() -> None:
        for _ in islice(iter(kept), batches):
            pass

    ways: dict[str, Callable[[], None]] = {
        "lists: collate only": lambda: collated(lists),
        "lists: read and collate": lambda: collated(read_lists(stores["open"])),
        "stream, open": streamed(stores["open"]),
        "stream, packed": streamed(stores["packed"]),
        "of open: decode only": decoded,
        "of open: collate only": collated_arrays,
    }
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    for repeat in range(args.repeats + 1):
        for name, work in ways.items():
            wall, (user, kernel) = time.perf_counter(), cpu_seconds()
            work()
            if repeat > 0:  # the first pays for what happens once
                own, its = (b - a for a, b in zip((user, kernel), cpu_seconds(), strict=True))
                found[name].append((time.perf_counter() - wall, own + its, its))
    base = found["lists: collate only"]
    rows = batches * args.batch_size
    tokens = sum(len(r["input_ids"]) for r in lists[:rows])
    figures = {}
    for name, runs in found.items():
        wall, cpu, kernel = (median(r[i] for r in runs) for i in (0, 1, 2))
        figures[name] = {
            "rows_per_s": rows / cpu,
            "tokens_per_s": tokens / cpu,
            "tokens_per_s_wall": tokens / wall,
            "kernel": kernel / cpu,
            "times": median(b[1] / r[1] for b, r in zip(base, runs, strict=True)),
            "times_wall": median(b[0] / r[0] for b, r in zip(base, runs, strict=True)),
        }
    return figures


def ranks(store: Path, args: argparse.Namespace) -> dict[str, dict[int, float]]:
    """Useful tokens in a second of the core of one of W ranks, without lanes and with 16."""
    found: dict[str, dict[int, float]] = {"1 lane": {}, "16 lanes": {}}
    for (name, rates), world in product(found.items(), args.ranks):
        runs = []
        for rank in range(args.repeats):
            batch = 8 * 16  # of all ranks
            stream = SoftTargetStream(
                store,
                batch_size=batch,
                order="store",
                lanes=int(name.split()[0]),
                rank=rank % world,
                world_size=world,
                prefetch=0,
            )
            begun, tokens = sum(cpu_seconds()), 0
            for made in islice(iter(stream), args.rows // batch):
                tokens += made.inputs["input_ids"].numel()
            runs.append(tokens / (sum(cpu_seconds()) - begun))
        rates[world] = median(runs)
    return found


def waits(store: Path, args: argparse.Namespace) -> dict[str, float]:
    """Share of steps of a given length that a loop waits for batches, with the stream's own threads."""
    shares, worst = [], 0.0
    for seed in range(args.repeats):
        batches = iter(
            SoftTargetStream(store, batch_size=args.batch_size, seed=seed, block_shards=2, **ONE)
        )
        next(batches)
        waited = total = 0.0
        for _ in range(args.rows // args.batch_size):
            start = time.perf_counter()
            next(batches)
            got = time.perf_counter()
            time.sleep(args.step_ms / 1e3)
            waited, total = waited + got - start, total + time.perf_counter() - start
            worst = max(worst, got - start)
        batches.close()
        shares.append(waited / total)
    return {"share": median(shares), "worst_ms": worst * 1e3}


def elasticity(store: Path) -> list[dict[str, Any]]:
    """Each topology, stopped at a random step and resumed on another, against one that is neither."""
    chance, steps, options = random.Random(0), 12, {"batch_size": 8, "block_shards": 2}
    whole, final = run(store, Topology(1, -1), steps, **options)
    matrix = [Topology(r, w) for r, w in product((1, 2, 4), (0, 1, 3))]
    rows = []
    for first in [*matrix, Topology(2, 1, "spawn")]:
        second = chance.choice([t for t in matrix if t != first])
        stop = chance.randrange(1, steps)
        begun, state = run(store, first, stop, **options)
        rest, end = run(store, second, steps - stop, state, **options)
        same = begun + rest == whole and end == final
        rows.append({"begun_on": str(first), "stopped_after": stop, "resumed_on": str(second)})
        rows[-1] |= {"digest": zlib.crc32("".join(begun + rest).encode()), "same": same}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--shard-rows", type=int, default=256)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--step-ms", type=float, default=100.0, help="of the loop that waits")
    parser.add_argument("--stores", type=Path, help="folder of `open` and `packed`; default: built")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()  # for building the stores: what is measured has processes of its own
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        stores = {
            p: make_store(Path(folder) / p, args, p) if args.stores is None else args.stores / p
            for p in ("open", "packed")
        }
        if "speeds" in args.parts:
            figures["speeds"] = {
                name: in_a_process(speeds, stores, args, keep=keep)
                for name, keep in (("given back", False), ("kept", True))
            }
            for name, found in figures["speeds"].items():
                print(f"memory is {name}\n")
                show_speeds(found, args)
        if "ranks" in args.parts:
            args.shard_rows = args.rows // 64
            many = make_store(Path(folder) / "many", args, "open")
            figures["ranks"] = in_a_process(ranks, many, args, keep=True)
            show_ranks(figures["ranks"])
        if "waits" in args.parts:
            figures["waits"] = {name: waits(path, args) for name, path in stores.items()}
            for name, f in figures["waits"].items():
                print(
                    f"{name}: of steps of {args.step_ms:g} ms, {f['share']:.2%} is waiting for the loader; longest "
                    f"{f['worst_ms']:.1f} ms"
                )
        if "elasticity" in args.parts:
            figures["elasticity"] = elasticity(stores["open"])
            show_elasticity(figures["elasticity"])
    if args.json is not None:
        settings = {k: str(v) for k, v in vars(args).items() if k != "json"}
        result = {"settings": settings, "figures": figures}
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def show_speeds(found: dict[str, dict[str, float]], args: argparse.Namespace) -> None:
    print(f"{args.rows} rows of 256 tokens, k=50; one core, of whose seconds only its own count\n")
    print("| | rows/s | tokens/s | of lists | tokens/s by the clock | of lists | kernel |")
    print("|---|---|---|---|---|---|---|")
    for name, f in found.items():
        print(
            f"| {name} | {f['rows_per_s']:,.0f} | {f['tokens_per_s']:,.0f} | {f['times']:.1f} x | "
            f"{f['tokens_per_s_wall']:,.0f} | {f['times_wall']:.1f} x | {f['kernel']:.0%} |"
        )
    reached = found["stream, open"]["times"] >= TARGET
    print(f"target {TARGET:g} x (stream, open): {'reached' if reached else 'missed'}\n")


def show_ranks(found: dict[str, dict[int, float]]) -> None:
    print("useful tokens/s of one rank's core\n")
    print(f"| ranks | {' | '.join(found)} |\n|---|---|---|")
    for world in next(iter(found.values())):
        print(f"| {world} | {' | '.join(f'{rates[world]:,.0f}' for rates in found.values())} |")
    print()


def show_elasticity(rows: list[dict[str, Any]]) -> None:
    print(
        "| begun on (ranks x workers) | stopped after | resumed on | all batches | as uninterrupted |"
    )
    print("|---|---|---|---|---|")
    for r in rows:
        same = "same" if r["same"] else "OTHER"
        print(
            f"| {r['begun_on']} | {r['stopped_after']} | {r['resumed_on']} | {r['digest']:08x} | {same} |"
        )


if __name__ == "__main__":
    main()
