"""Does a student write better text after a pass over its own, scored once by its teacher? `sampled_reverse_kl`.

    softlabels demo
    python tests/benchmarks/opd.py --run demo-out/student-store --prompts demo-out/train-store \\
        --teacher hf:TEACHER --out out

For each seed the student writes a text; the teacher scores it; the student takes one pass over it and writes another
text, from the same prompts, which the teacher scores. The reverse KL of a text, in nats a token, is the teacher's loss
on it less the student's own, so each student is judged by fresh text that nothing learnt from. As a control the student
takes the same pass with the soft loss of the same store (forward KL, on the sampled ids). Steps are skipped where their
result exists. The last line of `--out` is one table; `result.json` has all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from sentiment import softlabels, softtrain

from softlabels.format.figures import figures_of
from softlabels.store.reader import open_store

ARMS = {"own text, sampled_reverse_kl": "sampled_reverse_kl", "own text, forward_kl": "forward_kl"}


def judged(args: argparse.Namespace, run: Path, out: Path, seed: int) -> dict[str, float]:
    """Have a student write, the teacher score, and say how far they are apart on that text."""
    store, corpus = out / "store", out / "text.parquet"
    if not corpus.exists():
        out.mkdir(parents=True, exist_ok=True)
        what = ("--prompts", args.prompts, "--limit", args.limit, "--n", args.n, "--seed", seed)
        softtrain("generate", run, *what, "--max-new-tokens", args.tokens, "--out", corpus)
    if not (store / "manifest.json").exists():
        softlabels(
            *("build", "--teacher", args.teacher, "--corpus", f"ids:{corpus}", "--out", store),
            *("--seq-len", 256, "--dtype", "float32"),
        )
    own = json.loads(softtrain("eval", run, "--store", store, "--bootstrap", 0))
    teacher = figures_of(open_store(store).manifest).teacher_nll
    assert teacher is not None
    return {"teacher": teacher, "student": own["nll"], "reverse_kl": teacher - own["nll"]}


def one(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    folder: Path = args.out / f"seed-{seed}"
    found = {"before": judged(args, args.run, folder / "before", 100 * seed)}
    for name, loss in ARMS.items():
        run = folder / loss
        if not (run / "student" / "config.json").exists():
            softtrain(
                *("run", "--init", args.run, "--store", folder / "before" / "store", "--out", run),
                *("--loss", loss, "--alpha", 1, "--lr", args.lr, "--epochs", 1, "--seed", seed),
                *("--batch-size", 8, "--dtype", "float32", "--resume"),
            )
        found[name] = judged(args, run, folder / f"{loss}-text", 100 * seed + 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="a finished run of softtrain")
    parser.add_argument("--prompts", type=Path, required=True, help="a store")
    parser.add_argument("--teacher", required=True, help="the one that taught it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=int, default=100, help="prompts")
    parser.add_argument("--n", type=int, default=2, help="texts for each")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-4)
    args = parser.parse_args()
    results = {seed: one(args, seed) for seed in args.seeds}
    (args.out / "result.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("| student | reverse KL on fresh text of its own, nats a token | change, by seed |")
    print("|---|---|---|")
    for name in ("before", *ARMS):
        values = [r[name]["reverse_kl"] for r in results.values()]
        change = [
            v - r["before"]["reverse_kl"] for v, r in zip(values, results.values(), strict=True)
        ]
        sd = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        by_seed = ", ".join(f"{c:+.3f}" for c in change) if name != "before" else ""
        print(f"| {name} | {statistics.mean(values):.3f}{sd} | {by_seed} |")


if __name__ == "__main__":
    main()
