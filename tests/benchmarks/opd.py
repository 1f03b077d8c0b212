"""Does a student write better text after a pass over its own, scored once by its teacher? `sampled_reverse_kl`.

    softlabels demo
    python tests/benchmarks/opd.py --run demo-out/student-store --prompts demo-out/train-store \\
        --teacher hf:TEACHER --out out

For each seed `softtrain opd --judge`: the student writes a text, the teacher scores it, the student takes one pass
over it and writes another text from the same prompts, which the teacher scores. The reverse KL of a text, in nats a
token, is the teacher's loss on it less the student's own; each student is judged by fresh text that nothing learnt
from. As a control the student takes the same pass with the soft loss of the same store (forward KL, on the sampled
ids). What exists is not made again. `result.json` in `--out` has what the table is of.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sentiment import softlabels, softtrain

from softlabels.format.figures import figures_of
from softlabels.store.reader import open_store


def judged(args: argparse.Namespace, run: Path, folder: Path, seed: int) -> float:
    """Have a student write, the teacher score, and say how far they are apart: nats a token."""
    store, corpus = folder / "store", folder / "text.parquet"
    if not corpus.exists():
        folder.mkdir(parents=True, exist_ok=True)
        softtrain(
            *("generate", run, *asked(args), "--batch-size", args.at_a_time),
            *("--seed", seed, "--out", corpus),
        )
    if not (store / "manifest.json").exists():
        what = ("--corpus", f"ids:{corpus}", "--seq-len", 512, "--out", store)
        softlabels("build", "--teacher", args.teacher, *what)
    own = json.loads(softtrain("eval", run, "--store", store, "--bootstrap", 0))
    teacher = figures_of(open_store(store).manifest).teacher_nll
    assert teacher is not None
    return float(teacher - own["nll"])


def asked(args: argparse.Namespace) -> tuple[object, ...]:
    """What text to write."""
    prompts = ("--prompts", args.prompts, "--limit", args.limit)
    return (*prompts, "--n", args.n, "--max-new-tokens", args.tokens)


def one(args: argparse.Namespace, seed: int) -> dict[str, float]:
    """The reverse KL of each student on fresh text of its own, for one seed."""
    folder: Path = args.out / f"seed-{seed}"
    how = ("--lr", args.lr, "--batch-size", args.batch_size, "--epochs", 1, "--seed", seed)
    rounds = json.loads(
        softtrain(
            *("opd", args.run, *asked(args), "--teacher", args.teacher, "--judge"),
            *("--generate-batch-size", args.at_a_time, *how, "--dtype", "float32"),
            *("--out", folder / "opd"),
        )
    )
    before, after = (text["reverse_kl"] for text in rounds["texts"])
    found = {"before": before, "`softtrain opd`": after}
    if not args.control:
        return found
    control = folder / "control"
    if not (control / "student" / "config.json").exists():
        softtrain(
            *("run", "--init", args.run, "--store", folder / "opd" / "round-1" / "store"),
            *("--loss", "forward_kl", "--alpha", 1, *how, "--dtype", "float32"),
            *("--out", control, "--resume"),
        )
    text = folder / "control-text"
    return found | {"control: forward KL": judged(args, control, text, 1000 * seed + 1)}


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
    parser.add_argument("--at-a-time", type=int, default=64, help="texts written at a time")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--batch-size", type=int, default=2, help="rows of 512 tokens")
    parser.add_argument("--control", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    results = {seed: one(args, seed) for seed in args.seeds}
    (args.out / "result.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("| student | reverse KL on fresh text of its own, nats a token | change, by seed |")
    print("|---|---|---|")
    for name in results[args.seeds[0]]:
        values = [r[name] for r in results.values()]
        change = [r[name] - r["before"] for r in results.values()]
        sd = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        by_seed = ", ".join(f"{c:+.3f}" for c in change) if name != "before" else ""
        print(f"| {name} | {statistics.mean(values):.3f}{sd} | {by_seed} |")


if __name__ == "__main__":
    main()
