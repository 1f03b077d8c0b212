"""The loader beside others that stream rows for training, each at its best setting, on one core.

    pip install datasets mosaicml-streaming litdata
    python -m tests.benchmarks.loader_peers [--store OPEN] [--rows 1024] [--repeats 5] [--json FILE]

The same rows of the same store (--store: open, `topk` k=50, T=1; else one by a made-up teacher, which takes minutes)
for all, shuffled, in batches of 8, in one process, to the same tensors (compared
before anything is timed). `datasets` reads the open store itself in numpy format, from its Arrow cache or streaming
from Parquet. MosaicML Streaming (MDS) and litdata hold raw arrays as they like them best: local, uncompressed,
ids in 16 bits, values in float16, no hashes. What converts a store for them is not timed. Ways take turns, the time
is CPU seconds of the process, a ratio is the median of each turn's own.
What a rank of ours makes of its core: `loader.py --parts ranks`.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from softlabels.algebra.convert import convert
from softlabels.store.reader import open_store
from tests.benchmarks.loader import make_store
from trainers.data.stream import SoftTargetStream

Row = dict[str, np.ndarray]
COLUMNS = ("input_ids", "label_mask", "ids", "logp", "log_odds_T1")


class Way(NamedTuple):
    """One loader."""

    epoch: Callable[[], Iterable[Any]]
    """A pass over all rows, in batches."""
    files: Path
    """What it reads; its bytes are counted."""
    checked: str
    """Which bytes are compared with a digest as they are read."""


def flat(batch: Any) -> dict[str, np.ndarray]:
    """One of our batches as what `collate` makes of raw rows."""
    t = batch.targets
    return {
        "input_ids": batch.inputs["input_ids"],
        "flat_positions": batch.flat_positions,
        "labels": batch.labels,
        "ids": torch.from_numpy(t.ids),
        "gaps": torch.from_numpy(t.gaps),
        "log_odds": torch.from_numpy(t.log_odds),
    }


def collate(rows: Sequence[Row], k: int) -> dict[str, torch.Tensor]:
    """Raw rows side by side: the tensors that a batch of ours holds, of the same types."""
    width = max(len(r["input_ids"]) for r in rows)
    input_ids = np.zeros((len(rows), width), np.int64)
    mask = np.zeros((len(rows), width), np.bool_)
    for i, r in enumerate(rows):
        n = len(r["input_ids"])
        input_ids[i, :n] = r["input_ids"]
        mask[i, :n] = r["label_mask"]
    at = np.flatnonzero(mask.ravel())
    logp = np.concatenate([r["logp"] for r in rows]).astype(np.float32).reshape(-1, k)
    return {
        "input_ids": torch.from_numpy(input_ids),
        "flat_positions": torch.from_numpy(at),
        "labels": torch.from_numpy(input_ids.ravel()[at + 1]),  # position t predicts token t + 1
        "ids": torch.from_numpy(
            np.concatenate([r["ids"] for r in rows]).astype(np.int32).reshape(-1, k)
        ),
        "gaps": torch.from_numpy(logp.max(1, keepdims=True) - logp),
        "log_odds": torch.from_numpy(
            np.concatenate([r["log_odds_T1"] for r in rows]).astype(np.float32)[:, None]
        ),
    }


def raw(row: dict[str, Any]) -> Row:
    """A row of an open store in the fewest bytes that plain arrays take."""
    kinds = (np.uint16, np.bool_, np.uint16, np.float16, np.float16)
    return {name: np.asarray(row[name], kind) for name, kind in zip(COLUMNS, kinds, strict=True)}


def identity(row: Row) -> Row:
    """What `litdata.optimize` calls for each row."""
    return row


# -- the loaders --------------------------------------------------------------------------------------


def of_stream(store: Path, args: argparse.Namespace) -> Way:
    def epoch() -> Iterator[
        Any
    ]:  # a stream of its own: one that goes on may hold all shards decoded
        stream = SoftTargetStream(
            store, batch_size=args.batch_size, order="store", lanes=1, prefetch=0
        )
        return islice(iter(stream), args.rows // args.batch_size)

    return Way(epoch, store / "data", "all: SHA-256, CRC-32 of pages or streams")


def of_datasets(store: Path, cache: Path, args: argparse.Namespace) -> tuple[Way, Way]:
    import datasets

    datasets.disable_progress_bars()
    files = [str(f) for f in sorted((store / "data").glob("*.parquet"))]
    load = partial(
        datasets.load_dataset, "parquet", data_files=files, split="train", cache_dir=str(cache)
    )
    whole = load().select_columns(list(COLUMNS)).with_format("numpy")
    lazy = load(streaming=True).select_columns(list(COLUMNS)).with_format("numpy")
    lazy = lazy.shuffle(seed=0, buffer_size=256)
    collated = partial(collate, k=args.k)

    def mapped() -> Iterator[Any]:
        order = np.random.default_rng(0).permutation(args.rows)
        for i in range(0, args.rows, args.batch_size):
            found = whole[order[i : i + args.batch_size]]
            yield collated([{c: found[c][r] for c in COLUMNS} for r in range(len(found["ids"]))])

    def streamed() -> Iterator[Any]:
        rows: list[Row] = []
        for row in lazy:
            rows.append(row)
            if len(rows) == args.batch_size:
                yield collated(rows)
                rows = []

    return Way(mapped, cache, "none"), Way(streamed, store / "data", "none")


def of_mds(rows: Sequence[Row], folder: Path, args: argparse.Namespace) -> Way:
    from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    columns = {c: f"ndarray:{rows[0][c].dtype}" for c in COLUMNS if c != "label_mask"}
    columns["label_mask"] = "ndarray:uint8"
    with MDSWriter(out=str(folder), columns=columns, compression=None, hashes=None) as writer:
        for row in rows:
            writer.write(row | {"label_mask": row["label_mask"].view(np.uint8)})
    data = StreamingDataset(
        local=str(folder), shuffle=True, batch_size=args.batch_size, num_canonical_nodes=1
    )
    loader = StreamingDataLoader(
        data, batch_size=args.batch_size, num_workers=0, collate_fn=partial(collate, k=args.k)
    )
    return Way(lambda: iter(loader), folder, "none")


def of_litdata(rows: Sequence[Row], folder: Path, args: argparse.Namespace) -> Way:
    import litdata

    litdata.optimize(
        fn=identity,
        inputs=list(rows),
        output_dir=str(folder),
        chunk_bytes="64MB",
        num_workers=1,
        start_method="fork",
        verbose=False,
    )
    data = litdata.StreamingDataset(str(folder), shuffle=True, drop_last=False)
    loader = litdata.StreamingDataLoader(
        data, batch_size=args.batch_size, num_workers=0, collate_fn=partial(collate, k=args.k)
    )
    return Way(lambda: iter(loader), folder, "none")


# -- measuring ----------------------------------------------------------------------------------------


def tensors(batch: Any) -> dict[str, torch.Tensor]:
    return batch if isinstance(batch, dict) else flat(batch)


def digests(way: Way) -> set[int]:
    """Of every row of a pass, whatever order and batch it came in: its inputs and targets, cut from the batch."""
    found = set()
    for batch in way.epoch():
        t = tensors(batch)
        row_of = t["flat_positions"] // t["input_ids"].shape[1]
        for i, tokens in enumerate(t["input_ids"]):
            mine = row_of == i
            order = t["ids"][mine].argsort(
                1
            )  # of equal log-probabilities the ids may change places
            parts = [tokens, t["labels"][mine], t["log_odds"][mine]]
            parts += [t[name][mine].gather(1, order) for name in ("ids", "gaps")]
            found.add(hash(b"".join(p.contiguous().numpy().tobytes() for p in parts)))
    return found


def same_rows(ways: dict[str, Way], rows: int) -> None:
    """Refuse to time loaders that give other rows, or other tensors, than the stream of the open store."""
    expected = digests(ways["ours, open"])
    if len(expected) != rows:
        raise SystemExit(f"the stream gives {len(expected)} different rows of {rows}")
    for name, way in ways.items():
        if name != "ours, packed" and (got := digests(way)) != expected:  # packed: within its bound
            raise SystemExit(f"{name}: {len(got & expected)} of {rows} rows are the store's")


def weigh(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def speeds(ways: dict[str, Way], tokens: int, repeats: int) -> dict[str, dict[str, float]]:
    """Useful tokens in a second of the core, and how many times ours, open."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            start = time.process_time()
            for _ in way.epoch():
                pass
            if repeat:  # the first pays for what happens once
                taken[name].append(time.process_time() - start)
    base = taken["ours, open"]
    return {
        name: {
            "tokens_per_s": tokens / median(runs),
            "of_ours": median(b / r for b, r in zip(base, runs, strict=True)),
            "least": min(b / r for b, r in zip(base, runs, strict=True)),
            "most": max(b / r for b, r in zip(base, runs, strict=True)),
        }
        for name, runs in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--store", type=Path, help="open, topk k=50, T=1")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--shard-rows", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    args.k = 50
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = args.store or make_store(folder / "open", args, "open")
        stores = {"open": given, "packed": folder / "packed"}
        convert(given, stores["packed"], profile="packed", values="nat16")
        corpus = open_store(stores["open"]).manifest.identity.corpus
        args.rows = corpus.rows // args.batch_size * args.batch_size
        mapped, streamed = of_datasets(stores["open"], folder / "cache", args)
        import datasets

        rows = [
            raw(row)
            for row in datasets.load_dataset(
                "parquet",
                data_files=[str(f) for f in sorted((stores["open"] / "data").glob("*.parquet"))],
                split="train",
                cache_dir=str(folder / "cache"),
            ).with_format("numpy")
        ]
        ways = {
            "ours, open": of_stream(stores["open"], args),
            "ours, packed": of_stream(stores["packed"], args),
            "datasets, Arrow cache": mapped,
            "datasets, streaming": streamed,
            "MDS, raw arrays": of_mds(rows, folder / "mds", args),
            "litdata, raw arrays": of_litdata(rows, folder / "litdata", args),
        }
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        same_rows(ways, args.rows)
        tokens = sum(len(r["input_ids"]) for r in rows)
        figures = speeds(ways, tokens, args.repeats)
        for name, way in ways.items():
            figures[name]["bytes"] = weigh(way.files) / corpus.positions
    show(figures, ways, args)
    if args.json is not None:
        settings = {k: str(v) for k, v in vars(args).items() if k != "json"}
        checked = {name: way.checked for name, way in ways.items()}
        result = {
            "settings": settings,
            "checked": checked,
            "figures": figures,
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def show(
    figures: dict[str, dict[str, float]],
    ways: dict[str, Way],
    args: argparse.Namespace,
) -> None:
    print(f"{args.rows} rows of 256 tokens, k={args.k}, batches of {args.batch_size}\n")
    print(
        "| loader | tokens/s of a core | of ours, open (turns) | bytes/position | bytes checked |"
    )
    print("|---|---|---|---|---|")
    for name, f in figures.items():
        print(
            f"| {name} | {f['tokens_per_s']:,.0f} | {f['of_ours']:.2f} ({f['least']:.2f} to {f['most']:.2f}) | "
            f"{f['bytes']:.1f} | {ways[name].checked} |"
        )


if __name__ == "__main__":
    main()
