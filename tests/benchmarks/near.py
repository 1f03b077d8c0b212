"""Which store serves a student that is near its teacher: int4 students of their own unquantised parent.

    python tests/benchmarks/near.py all --parent MODEL --out out

The steps, each of which is skipped where its result exists:

    stores    a store of `HELDOUT` rows with the parent's states, and of the same `ROWS` rows one store for each arm
    rounded   the parent, and the parent rounded to nearest, on the held-out rows
    cells     for each arm and seed a student that begins as the rounded parent and learns from the store alone
              (`--alpha 1`); `--seeds 0 --arms topk` takes some
    report    the table

KL is of the parent's whole distribution (`softtrain eval --teacher-states`), at every held-out position. All are
float32 on a CPU. A cell is one process of some minutes, and leaves `result.json`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from sentiment import softlabels, softtrain

from softlabels.format.figures import figures_of
from softlabels.store.reader import open_store
from trainers.data.full_teacher import FullTeacher
from trainers.data.tasks import Task
from trainers.evaluation.evaluate import evaluate
from trainers.students import make_student

DATA = Path(__file__).parents[2] / "data" / "austen"
ARMS: dict[str, tuple[object, ...]] = {
    "topk": ("--estimator", "topk", "--k", 50),
    "sampled": ("--estimator", "sampled", "--k", 12),
    "systematic": ("--estimator", "systematic", "--mean-k", 12),
}
GRID = "int4-g64"
LENGTH, ROWS, HELDOUT = 128, 48, 16
STEPS, BATCH, LR = 32, 1, 2e-4


def stores(args: argparse.Namespace) -> None:
    where = ("--teacher", f"hf:{args.parent}", "--dtype", "float32")
    rows = ("--seq-len", LENGTH, "--temperature", 1, "--shard-rows", 16)
    parts = {"heldout": ("heldout/persuasion.txt", HELDOUT, ARMS["topk"])}
    parts |= {arm: ("train/emma.txt", ROWS, how) for arm, how in ARMS.items()}
    for name, (text, count, how) in parts.items():
        out = args.out / "stores" / name
        if not (out / "manifest.json").exists():
            corpus = ("--corpus", f"text:{DATA / text}", "--limit-rows", count)
            softlabels("build", *where, *corpus, *rows, *how, "--out", out)
    heldout, states = args.out / "stores" / "heldout", args.out / "stores" / "heldout-states"
    if not (states / "states.json").exists():
        softlabels("states", heldout, *where, "--out", states)


def rounded(args: argparse.Namespace) -> None:
    path = args.out / "rounded.json"
    if path.exists():
        return
    store = open_store(args.out / "stores" / "heldout")
    teacher = FullTeacher.open(args.out / "stores" / "heldout-states", store)
    found = {}
    for name, query in (("parent", ""), ("rounded", f"?fake-quant={GRID}")):
        student = make_student(f"hf:{args.parent}{query}", seed=0, task=Task.of(store)).eval()
        scores = evaluate(student, store, teacher=teacher)
        found[name] = {"nll": scores.nll, "kl": scores.kl, "agreement": scores.agreement}
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def cells(args: argparse.Namespace) -> None:
    for seed in args.seeds:
        for arm in args.arms:
            cell(args, arm, seed)


def cell(args: argparse.Namespace, arm: str, seed: int) -> None:
    folder: Path = args.out / "cells" / f"{arm}-s{seed}"
    if (folder / "result.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    softtrain(
        *("run", "--store", args.out / "stores" / arm, "--out", folder, "--seed", seed),
        *("--student", f"hf:{args.parent}?fake-quant={GRID}", "--alpha", 1, "--lr", LR),
        *("--steps", STEPS, "--batch-size", BATCH, "--weight-decay", 0, "--dtype", "float32"),
        *("--checkpoint-every", STEPS, "--log-every", 1, "--threads", args.threads),
    )
    states = args.out / "stores" / "heldout-states"
    where = ("--store", args.out / "stores" / "heldout", "--teacher-states", states)
    scores = json.loads(softtrain("eval", folder, *where, "--bootstrap", 0))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    result = {name: scores[name] for name in ("nll", "kl", "agreement")}
    result["seconds"] = sum(json.loads(line)["seconds"] for line in lines)
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for heavy in ("checkpoints", "student"):
        shutil.rmtree(folder / heavy)


def report(args: argparse.Namespace) -> None:
    start = json.loads((args.out / "rounded.json").read_text(encoding="utf-8"))
    print("| student | kept ids | seeds | NLL | KL to the parent | less than rounded |")
    print("|---|---|---|---|---|---|")
    for name, what in (("parent", "the parent, float32"), ("rounded", f"rounded to {GRID}")):
        print(f"| {what} | | | {start[name]['nll']:.4f} | {start[name]['kl']:.4f} | |")
    for arm in ARMS:
        found = sorted((args.out / "cells").glob(f"{arm}-s*/result.json"))
        results = [json.loads(p.read_text(encoding="utf-8")) for p in found]
        if results:
            kept = figures_of(open_store(args.out / "stores" / arm).manifest).kept_ids
            less = [1 - r["kl"] / start["rounded"]["kl"] for r in results]
            print(
                f"| {arm} | {kept:.1f} | {len(results)} | {spread(results, 'nll')} | {spread(results, 'kl')} | "
                f"{statistics.mean(less):.1%} ({min(less):.1%} to {max(less):.1%}) |"
            )


def spread(results: list[dict[str, Any]], name: str) -> str:
    values = [r[name] for r in results]
    error = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=["all", "stores", "rounded", "cells", "report"])
    parser.add_argument("--parent", required=True, help="Folder of SmolLM2-135M, float32.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for step in (stores, rounded, cells, report):
        if args.step in ("all", step.__name__):
            step(args)


if __name__ == "__main__":
    main()
