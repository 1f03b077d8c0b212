"""An encoder and decoder's store against hard labels: words put back in order, on Jane Austen's novels.

    python tests/benchmarks/seq2seq.py all --out out

A source is a stretch of a sentence with its words shuffled, its target the stretch as she wrote it. The steps, each of
which is skipped where its result exists, so that a run may be cut and gone on with:

    pairs     stretches of 4 to 8 words, of the five novels in data/austen/train and of *Persuasion*
    teacher   a T5 with a tokenizer of 1,000 pieces, both trained here on the pairs of the five novels
    stores    its opinion of some of these pairs, and of pairs of *Persuasion*, which it never saw
    train     for each seed `softtrain run` with and without the soft targets
    report    NLL and accuracy on *Persuasion*
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from torch import nn

from softlabels.core.rows import side_by_side

NOVELS = Path(__file__).parents[2] / "data" / "austen"
SHORTEST, LONGEST = 4, 8
"""Words of a stretch."""
MARKS = ["<pad>", "</s>", "<unk>"]
PIECES = 1000
WIDTH, LAYERS = 96, 2
BATCH, LR = 48, 3e-3
"""Of the teacher, with a short warm-up and linear decay."""
ROWS, HELDOUT = 16000, 400
STUDENT, STUDENT_STEPS, STUDENT_BATCH, STUDENT_LR = "new:400k", 1500, 32, 3e-3
RECIPES = {"store": 0.9, "hard": 0.0}
"""Alpha."""


def tool(module: str, *arguments: object) -> Any:
    command = [sys.executable, "-m", module, *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def stretches(folder: str) -> list[str]:
    found = []
    for path in sorted((NOVELS / folder).glob("*.txt")):
        for sentence in re.split(r"(?<=[.!?;])\s+", path.read_text(encoding="utf-8")):
            words = sentence.split()
            cuts = range(0, len(words), LONGEST)
            found += [" ".join(words[i : i + LONGEST]) for i in cuts]
    return [s for s in found if len(s.split()) >= SHORTEST]


def pairs(args: argparse.Namespace) -> None:
    for folder in ("train", "heldout"):
        shuffle = random.Random(0)
        texts = stretches(folder)
        shuffle.shuffle(texts)
        with (args.out / f"{folder}.jsonl").open("w", encoding="utf-8") as f:
            for text in texts:
                words = text.split()
                shuffle.shuffle(words)
                f.write(json.dumps({"source": " ".join(words), "target": text}) + "\n")


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make_tokenizer(texts: list[str]) -> Any:
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.train_from_iterator(
        texts, tokenizers.trainers.BpeTrainer(vocab_size=PIECES, special_tokens=MARKS)
    )
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", MARKS.index("</s>"))]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def teacher(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    records = read(args.out / "train.jsonl")
    tokenizer = make_tokenizer([r["target"] for r in records])
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=32,
            d_ff=4 * WIDTH,
            num_layers=LAYERS,
            num_heads=WIDTH // 32,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    ).train()
    parameters = sum(p.numel() for p in model.parameters())
    print(f"teacher: {parameters:,} parameters, {len(records):,} pairs", file=sys.stderr)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
    steps = args.steps
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min((i + 1) / 50, (steps - i) / (steps - 50))
    )
    order, start, recent = random.Random(1), time.perf_counter(), []
    for step in range(steps):
        batch = order.sample(records, BATCH)
        source, target = (tokenizer([r[n] for r in batch])["input_ids"] for n in batch[0])
        ids, labels = (torch.from_numpy(side_by_side(x)) for x in (source, target))
        loss = model(
            input_ids=ids,
            attention_mask=(ids != 0).long(),
            labels=labels.masked_fill(labels == 0, -100),
        ).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        decay.step()
        recent.append(loss.item())
        if step % 50 == 49:
            seconds = time.perf_counter() - start
            mean = statistics.mean(recent[-50:])
            print(f"teacher: step {step + 1}, loss {mean:.3f}, {seconds:.0f} s", file=sys.stderr)
    model.save_pretrained(args.out / "teacher")
    tokenizer.save_pretrained(args.out / "teacher")


def stores(args: argparse.Namespace) -> None:
    sampled = ("--estimator", "sampled", "--k", 12, "--profile", "packed")
    exact = ("--estimator", "topk", "--k", 50)
    for name, text, rows, kept in (
        ("store", "train", ROWS, sampled),
        ("store-heldout", "heldout", HELDOUT, exact),
    ):
        tool(
            *("softlabels", "build", "--teacher", f"hf:{args.out / 'teacher'}", "--domain"),
            *("seq2seq", "--corpus", f"jsonl:{args.out / text}.jsonl", "--limit-rows", rows),
            *(*kept, "--seq-len", 64, "--shard-rows", 2000, "--dtype", "float32"),
            *("--out", args.out / name),
        )


def train(args: argparse.Namespace) -> None:
    for seed in args.seeds:
        for recipe, alpha in RECIPES.items():
            run = args.out / f"{recipe}-seed{seed}"
            if (run / "evaluation.json").exists():
                continue
            start = time.perf_counter()
            tool(
                *("trainers", "run", "--store", args.out / "store", "--student", STUDENT),
                *("--out", run, "--seed", seed, "--alpha", alpha, "--lr", STUDENT_LR),
                *("--batch-size", STUDENT_BATCH, "--steps", STUDENT_STEPS, "--dtype", "float32"),
                *("--threads", 1, "--checkpoint-every", STUDENT_STEPS, "--resume"),
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
    "pairs": (pairs, "heldout.jsonl"),
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
    parser.add_argument("--out", type=Path, default=Path("seq2seq-out"))
    parser.add_argument("--steps", type=int, default=1500, help="of the teacher")
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
