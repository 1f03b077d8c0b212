"""Which recipe teaches most? Students trained on a store against students trained on hard labels.

    softlabels demo --out demo-out
    python tests/benchmarks/recipes.py --demo demo-out --seeds 0 1 2
    softlabels states demo-out/train-store --teacher hf:TEACHER --out states
    python tests/benchmarks/recipes.py --demo demo-out --seeds 0 1 2 --teacher-states states    # and full distillation

Each recipe is NAME=STORE:ALPHA (a store folder and the share of the soft loss; alpha 0 is hard labels only).
All recipes of one seed start from the same weights and see the same rows in the same order (the order
depends on the store, so rows are compared between recipes of one store). Every student is tested on the
held-out store. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from softlabels.cli import demo

METRICS = ("nll", "ece", "kl", "agreement")
FULL = "full"
"""Recipe that learns from the teacher's whole distribution."""


def softtrain(*arguments: object) -> str:
    command = [sys.executable, "-m", "trainers", *map(str, arguments), "--json"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def one(
    args: argparse.Namespace, name: str, store: str, alpha: float, seed: int
) -> dict[str, float]:
    states = ("--teacher-states", args.teacher_states) if name == FULL else ()
    run = args.out / f"{name}-seed{seed}"
    start = time.perf_counter()
    softtrain(
        *("run", "--store", store, "--student", f"hf-config:{args.demo / 'student.json'}"),
        *("--out", run, "--alpha", alpha, "--seed", seed, "--steps", args.steps, "--lr", args.lr),
        *("--batch-size", demo.BATCH_SIZE, "--checkpoint-every", args.steps, "--resume"),
        *states,
    )
    seconds = time.perf_counter() - start
    found = json.loads(softtrain("eval", run, "--store", args.demo / "heldout-store"))
    return {**{m: found[m] for m in METRICS}, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--demo", type=Path, required=True, help="folder that `softlabels demo` made"
    )
    parser.add_argument("--out", type=Path, default=Path("recipes-out"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=demo.STEPS)
    parser.add_argument("--lr", type=float, default=demo.LR)
    parser.add_argument(
        "--teacher-states", type=Path, help="adds full distillation, at the demo's alpha"
    )
    parser.add_argument("--recipe", action="append", help="NAME=STORE:ALPHA, repeatable")
    args = parser.parse_args()
    store = args.demo / "train-store"
    recipes = args.recipe or [f"soft+hard={store}:{demo.ALPHA}", f"hard={store}:0"]
    if args.teacher_states:
        recipes.append(f"{FULL}={store}:{demo.ALPHA}")
    results: dict[str, list[dict[str, float]]] = {}
    for seed in args.seeds:
        for recipe in recipes:
            name, _, rest = recipe.partition("=")
            folder, _, alpha = rest.rpartition(":")
            results.setdefault(name, []).append(one(args, name, folder, float(alpha), seed))
            print(f"seed {seed} {name}: {results[name][-1]}", file=sys.stderr)
    print(f"| recipe | seeds | {' | '.join(METRICS)} | s |")
    print(f"|---|---|{'---|' * (len(METRICS) + 1)}")
    for name, runs in results.items():
        cells = []
        for metric in METRICS:
            values = [r[metric] for r in runs]
            sd = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.4f} ± {sd:.4f}")
        seconds = statistics.median(r["seconds"] for r in runs)
        print(f"| {name} | {len(runs)} | {' | '.join(cells)} | {seconds:.0f} |")
    (args.out / "recipes.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
