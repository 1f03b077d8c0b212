"""Task after task, and teachers of several minds: continual students, and a student of three teachers.

    python tests/benchmarks/sentiment.py data teacher student --vader hutto_ICWSM_2014 --minilm MODEL --out out
    python tests/benchmarks/continual.py all --vader hutto_ICWSM_2014 --minilm MODEL --out out

The steps, each of which is skipped where its result exists:

    domains    a store of `TRAIN` sentences, and one of `HELDOUT` others, from each of VADER's tweets, film reviews and
               product reviews; the teacher of the first two is that of sentiment.py, which knew no product reviews,
               that of the third is the same one, fine-tuned further on the product reviews that are left
    continual  for each seed a student learns tweets, then film reviews, then product reviews, each run from the last
               one's weights (`--init`): from the store with replay (a share `REPLAY` of the rows from the stores
               before), from the store alone, and with hard labels and replay
    teachers   three teachers, each fine-tuned on a third of the labelled sentences, as three teams with data of
               their own would have; their average as one teacher (`--teacher` three times)
    ensemble   for each seed a student of the three together, one of the first alone, one of hard labels
    report     both tables
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import sentiment

SOURCES = {
    "tweets": "tweets_GroundTruth.txt",
    "films": "movieReviewSnippets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
}
"""In the order in which they are learnt."""
SPECIAL = "products"
"""Whose teacher is another."""
TRAIN, HELDOUT = 1500, 500
REPLAY = 0.3
STEPS, ENSEMBLE_STEPS = 100, 400
ARMS = {"store, replay": (0.9, True), "store": (0.9, False), "hard, replay": (0.0, True)}
"""Alpha, and whether rows of the earlier tasks are replayed."""
THIRD = 2000


def build(out: Path, corpora: list[Path], teachers: list[str]) -> None:
    if (out / "manifest.json").exists():
        return
    sentiment.softlabels(
        *(
            "build",
            *(f"--teacher={t}" for t in teachers),
            *(f"--corpus=jsonl:{c}" for c in corpora),
        ),
        *("--domain", "sequence-classification", "--estimator", "dense", "--k", 2),
        *("--temperature", 1, "--temperature", 2, "--seq-len", sentiment.TOKENS, "--truncate"),
        *("--shard-rows", 512, "--out", out),
    )


def domains(args: argparse.Namespace) -> None:
    known = {
        r["text"] for r in sentiment.read(args, "labelled")
    }  # the teacher has seen their labels
    for name, file in SOURCES.items():
        teacher = args.out / "teacher"
        texts: dict[str, float] = {}
        for line in (args.vader / file).read_text(encoding="latin-1").splitlines():
            _, score, text = line.split("\t", 2)
            if text.strip() and abs(float(score)) > sentiment.NEUTRAL:
                texts[text] = float(score)
        records = [{"text": t, "label": sentiment.CLASSES[s > 0]} for t, s in texts.items()]
        random.Random(0).shuffle(records)
        heldout = [r for r in records if r["text"] not in known][:HELDOUT]
        train = [r for r in records if r not in heldout][:TRAIN]
        if name == SPECIAL:
            others = [r for r in records if r not in heldout and r not in train]
            teacher = specialist(args, teacher, others)
        for part, some in (("heldout", heldout), ("train", train)):
            path = write(args.out / f"{name}-{part}.jsonl", some)
            build(args.out / f"{name}-{part}", [path], [f"hf:{teacher}"])


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def specialist(args: argparse.Namespace, start: Path, records: list[dict[str, Any]]) -> Path:
    """A teacher, fine-tuned further on sentences that its student does not see."""
    out: Path = args.out / "specialist"
    if not (out / "teacher" / "tokenizer.json").exists():
        out.mkdir(exist_ok=True)
        write(out / "labelled.jsonl", records)
        sentiment.teacher(argparse.Namespace(out=out, minilm=start))
    return out / "teacher"


def accuracy(run: Path, store: Path) -> dict[str, float]:
    """Of a run's student, kept beside it."""
    kept = run / f"{store.name}.json"
    if not kept.exists():
        kept.write_text(sentiment.softtrain("eval", run, "--store", store), encoding="utf-8")
    found: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def learn(args: argparse.Namespace, run: Path, stores: list[str], alpha: float, **how: Any) -> None:
    if (run / "student" / "config.json").exists():
        return
    flags = [f"--{name}={value}" for name, value in how.items()]
    sentiment.softtrain(
        *("run", *(f"--store={s}" for s in stores), "--out", run, "--alpha", alpha, *flags),
        *("--temperature", 2.0 if alpha else 1.0, "--lr", sentiment.STUDENT_LR),
        *("--weight-decay", 0.01, "--beta2", 0.999, "--batch-size", sentiment.STUDENT_BATCH),
        *("--dtype", "bfloat16", "--threads", 1, "--checkpoint-every", 100, "--resume"),
    )


def continual(args: argparse.Namespace) -> None:
    names = list(SOURCES)
    for seed in args.seeds:
        for arm, (alpha, replay) in ARMS.items():
            before: Path | None = None
            for i, name in enumerate(names):
                run = args.out / "continual" / f"{arm.replace(', ', '-')}-{seed}-{i}"
                run.parent.mkdir(exist_ok=True)
                stores = [str(args.out / f"{name}-train")]
                if replay and i:
                    olds = names[:i]
                    shares = [(name, 1 - REPLAY), *((old, REPLAY / i) for old in olds)]
                    stores = [f"{args.out / f'{n}-train'}={share:g}" for n, share in shares]
                start = (
                    {"student": f"hf:{args.out / 'student'}"}
                    if before is None
                    else {"init": str(before)}
                )
                learn(args, run, stores, alpha, seed=seed, steps=STEPS, **start)
                for one in names if i == len(names) - 1 else [name]:
                    accuracy(run, args.out / f"{one}-heldout")
                before = run
            print(f"continual: {arm}, seed {seed}", file=sys.stderr)


def teachers(args: argparse.Namespace) -> None:
    for i in range(3):
        out = args.out / f"third-{i}"
        if (out / "teacher" / "tokenizer.json").exists():
            continue
        out.mkdir(exist_ok=True)
        lines = (args.out / "labelled.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (out / "labelled.jsonl").write_text(
            "".join(lines[i * THIRD : (i + 1) * THIRD]), encoding="utf-8"
        )
        sentiment.teacher(argparse.Namespace(out=out, minilm=args.minilm))


def ensemble(args: argparse.Namespace) -> None:
    corpora = [args.out / "labelled.jsonl", args.out / "bare.jsonl"]
    specs = [f"hf:{args.out / f'third-{i}' / 'teacher'}" for i in range(3)]
    heldout = args.out / "heldout.jsonl"
    for name, members in (("three", specs), ("one", specs[:1])):
        build(args.out / f"{name}-train", corpora, members)
        build(args.out / f"{name}-heldout", [heldout], members)
    build(args.out / "labelled-only", corpora[:1], specs[:1])
    for seed in args.seeds:
        for arm, store, alpha in (
            ("three", "three-train", 0.9),
            ("one", "one-train", 0.9),
            ("hard", "labelled-only", 0.0),
        ):
            run = args.out / "ensemble" / f"{arm}-{seed}"
            run.parent.mkdir(exist_ok=True)
            student = f"hf:{args.out / 'student'}"
            learn(
                args,
                run,
                [str(args.out / store)],
                alpha,
                seed=seed,
                steps=ENSEMBLE_STEPS,
                student=student,
            )
            accuracy(run, args.out / "three-heldout")
            print(f"ensemble: {arm}, seed {seed}", file=sys.stderr)


def teacher_accuracy(store: Path) -> float:
    import numpy as np

    from softlabels.store.reader import open_store

    rows = list(open_store(store))
    said = np.array([int(r.targets.dense(1.0)[0].argmax()) for r in rows])
    return float((said == np.array([int(r.row.labels[0]) for r in rows])).mean())


def report(args: argparse.Namespace) -> None:
    names = list(SOURCES)
    print("| learnt in order | " + " | ".join(names) + " | mean | forgotten |")
    print("|---" * (len(names) + 3) + "|")
    own = [teacher_accuracy(args.out / f"{n}-heldout") for n in names]
    cells = [f"{100 * a:.1f}" for a in [*own, statistics.mean(own)]]
    print(f"| the teacher | {' | '.join(cells)} | |")
    for arm in ARMS:
        final: dict[str, list[float]] = {n: [] for n in names}
        means, lost = [], []
        for seed in args.seeds:
            runs = [
                args.out / "continual" / f"{arm.replace(', ', '-')}-{seed}-{i}"
                for i in range(len(names))
            ]
            at_end = {n: accuracy(runs[-1], args.out / f"{n}-heldout")["accuracy"] for n in names}
            learnt = {
                n: accuracy(runs[i], args.out / f"{n}-heldout")["accuracy"]
                for i, n in enumerate(names)
            }
            for n in names:
                final[n].append(at_end[n])
            means.append(statistics.mean(at_end.values()))
            lost.append(statistics.mean(learnt[n] - at_end[n] for n in names[:-1]))
        columns = [*(final[n] for n in names), means, lost]
        print(f"| {arm} | {' | '.join(sentiment.spread(c, 100, 1) for c in columns)} |")
    if (args.out / "ensemble").exists():
        report_ensemble(args)


def report_ensemble(args: argparse.Namespace) -> None:
    print()
    print("| | accuracy | NLL |")
    print("|---|---|---|")
    for name in ("one", "three"):
        said = 100 * teacher_accuracy(args.out / f"{name}-heldout")
        print(f"| the teacher{'s' * (name == 'three')}: {name} | {said:.1f} | |")
    for arm in ("three", "one", "hard"):
        found = [
            accuracy(args.out / "ensemble" / f"{arm}-{s}", args.out / "three-heldout")
            for s in args.seeds
        ]
        columns = [
            sentiment.spread([f["accuracy"] for f in found], 100, 1),
            sentiment.spread([f["nll"] for f in found], 1, 3),
        ]
        print(f"| student: {arm} | {' | '.join(columns)} |")


STEPS_OF = {
    "domains": domains,
    "continual": continual,
    "teachers": teachers,
    "ensemble": ensemble,
    "report": report,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", nargs="+", choices=[*STEPS_OF, "all"])
    parser.add_argument("--vader", type=Path, required=True, help="folder hutto_ICWSM_2014")
    parser.add_argument("--minilm", type=Path, required=True, help="the model's folder")
    parser.add_argument("--out", type=Path, default=Path("sentiment-out"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, do in STEPS_OF.items():
        if name in args.step or "all" in args.step:
            do(args)


if __name__ == "__main__":
    main()
