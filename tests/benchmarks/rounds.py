"""Two rounds with text that the student made, against as many steps on the books alone, and on hard labels.

    softlabels demo --out demo-out
    python tests/benchmarks/rounds.py --demo demo-out --seeds 0 1 2

Round 0 is the demo's: a student learns from the store of books. In each round after it the student writes sequences,
the teacher judges them, and the student goes on from its weights, half of its rows being its own text (`own`), or with
the books alone (`books`), or with the books' own words (`hard`, which had hard labels only in round 0, too). All have
taken equally many steps of equally many rows. Prints a table on text that nobody read, and on text that the student
of round 0 wrote afterwards; writes JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from softlabels.cli import demo
from tests.benchmarks.sentiment import softlabels, softtrain, spread

ROUNDS, STEPS, LR = 2, 40, 1e-3
SEQUENCES, PROMPT_TOKENS, NEW_TOKENS = 160, 32, 96
K = 12
ALPHAS = {"own": demo.ALPHA, "books": demo.ALPHA, "hard": 0.0}
METRICS = ("nll", "kl", "agreement")


def written(args: argparse.Namespace, run: Path, out: Path, *, seed: int, heldout: bool) -> Path:
    """Store of what a student writes: of samples to learn from, or of the exact top 50 to be measured on."""
    if (out / "manifest.json").exists():
        return out
    text = out.with_suffix(".parquet")
    softtrain(
        *(
            "generate",
            run,
            "--prompts",
            args.demo / ("heldout-store" if heldout else "train-store"),
        ),
        *("--prompt-tokens", PROMPT_TOKENS, "--max-new-tokens", NEW_TOKENS, "--top-p", 0.95),
        *("--limit", 16 if heldout else SEQUENCES, "--seed", seed, "--out", text),
    )
    targets = ("topk", 50) if heldout else ("sampled", K)
    softlabels(
        *("build", "--teacher", f"hf:{args.teacher}", "--corpus", f"ids:{text}", "--out", out),
        *("--estimator", targets[0], "--k", targets[1], "--seq-len", PROMPT_TOKENS + NEW_TOKENS),
        *("--licence", "Apache-2.0"),
    )
    return out


def learn(args: argparse.Namespace, out: Path, alpha: float, *what: object) -> Path:
    softtrain(
        *("run", "--out", out, "--alpha", alpha, "--batch-size", demo.BATCH_SIZE, *what),
        *("--checkpoint-every", 1000, "--resume"),
    )
    return out


def score(run: Path, store: Path) -> dict[str, Any]:
    found = json.loads(softtrain("eval", run, "--store", store))
    return {m: found[m] for m in METRICS}


def one(args: argparse.Namespace, seed: int) -> dict[str, dict[str, Any]]:
    """All arms of a seed, each after each round."""
    books, heldout = args.demo / "train-store", args.demo / "heldout-store"
    first = {
        alpha: learn(
            args,
            args.out / f"round-0-{alpha}-{seed}",
            alpha,
            *("--store", books, "--student", f"hf-config:{args.demo / 'student.json'}"),
            *("--steps", demo.STEPS, "--lr", demo.LR, "--seed", seed),
        )
        for alpha in set(ALPHAS.values())
    }
    own = written(
        args, first[demo.ALPHA], args.out / f"judge-{seed}", seed=1000 + seed, heldout=True
    )
    found: dict[str, dict[str, Any]] = {}
    for arm, alpha in ALPHAS.items():
        run = first[alpha]
        for number in range(ROUNDS + 1):
            if number:
                stores: list[object] = ["--store", books]
                if arm == "own":
                    text = written(
                        args,
                        run,
                        args.out / f"own-{number}-{seed}",
                        seed=10 * seed + number,
                        heldout=False,
                    )
                    stores = ["--store", f"{text}=0.5", "--store", f"{books}=0.5"]
                run = learn(
                    args,
                    args.out / f"round-{number}-{arm}-{seed}",
                    alpha,
                    *stores,
                    *("--init", run, "--steps", STEPS, "--lr", LR, "--seed", 100 * number + seed),
                )
            found[f"{arm}, round {number}"] = {
                "unread": score(run, heldout),
                "written": score(run, own),
            }
        print(f"seed {seed}, {arm}: {found[f'{arm}, round {ROUNDS}']}", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--demo", type=Path, required=True, help="folder `softlabels demo` made")
    parser.add_argument("--out", type=Path, default=Path("rounds-out"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.teacher = demo.teacher_folder()
    runs = [one(args, seed) for seed in args.seeds]
    (args.out / "rounds.json").write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")
    print("| trained on | NLL | KL from teacher | agrees | KL on text the student wrote |")
    print("|---|---|---|---|---|")
    for name in runs[0]:
        cells = [
            spread([r[name]["unread"]["nll"] for r in runs], 1, 3),
            spread([r[name]["unread"]["kl"] for r in runs], 1, 3),
            spread([r[name]["unread"]["agreement"] for r in runs], 100, 1),
            spread([r[name]["written"]["kl"] for r in runs], 1, 3),
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
