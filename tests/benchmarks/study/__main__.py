"""How much of full distillation does each kind of store keep, and for how many bytes?

    python -m tests.benchmarks.study --out study-out --minutes 110
    python -m tests.benchmarks.study --out study-out --text rust=/usr/share/doc/rust-doc/html …
    python -m tests.benchmarks.study --out study-small --small-vocabulary --epochs 4 --texts rust …

A folder is of one vocabulary, one number of epochs and of lanes, one rate of learning.

Every arm of a text and seed starts from the same weights and reads the same rows in the same order (--order corpus).
Cells are trained until the time is up; the same command goes on. After each run the tables (study.md), the curves
(study.html) and all figures (study.json) of what there is are written.

The gain is counted from the best epoch of hard labels to full distillation, the teacher's whole softmax at each
position (--teacher-states), in nats a token of held-out text. Bytes are of packed stores without a dictionary and
without the columns that only inspection needs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import product
from pathlib import Path

from softlabels.cli.demo import teacher_folder
from tests.benchmarks.study.arms import ARMS, FULL, HARD
from tests.benchmarks.study.cells import SEQ_LEN, Cell, Study, done, train
from tests.benchmarks.study.page import shares, tables, write_page
from tests.benchmarks.study.predict import lines
from tests.benchmarks.study.small_vocabulary import small_teacher
from tests.benchmarks.study.texts import AUSTEN, rust


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """What is asked for: all arms of a seed before the next seed, hard labels and full distillation first."""
    found = []
    for seed, text, student in product(args.seeds, args.texts, args.students):
        for temperature, alpha in product(args.temperatures, args.alphas):
            for arm in ARMS:
                if args.arms and arm.name not in {*args.arms, HARD.name, FULL.name}:
                    continue
                anchor = arm.hard or (arm.full and alpha != 1.0)
                at = Cell(
                    text=text,
                    student=student,
                    arm=arm.name,
                    temperature=1.0 if arm.hard else temperature,
                    alpha=1.0 if anchor else alpha,
                    seed=seed,
                )
                if at not in found:
                    found.append(at)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="default: the demo's, SmolLM2-135M")
    parser.add_argument("--text", action="append", default=[], metavar="rust=FOLDER")
    parser.add_argument("--texts", nargs="+", default=None, help="default: austen and those given")
    parser.add_argument("--arms", nargs="+", default=[], help=", ".join(a.name for a in ARMS))
    parser.add_argument("--students", nargs="+", default=["middle"], help="far, middle, near")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0])
    parser.add_argument("--alphas", type=float, nargs="+", default=[1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--small-vocabulary", action="store_true", help="the text's ids; one text")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lanes", type=int, default=8, help="of the order of rows")
    parser.add_argument(
        "--rate", type=float, default=1.0, help="of learning, in parts of the usual"
    )
    parser.add_argument("--rows", type=int, default=300, help="of 256 tokens, to learn from")
    parser.add_argument("--heldout-rows", type=int, default=60)
    parser.add_argument("--dense", action="store_true", help="KL over the whole vocabulary, too")
    parser.add_argument("--minutes", type=float, default=110, help="begin no cell after these")
    args = parser.parse_args()
    texts = {"austen": AUSTEN}
    for spec in args.text:
        name, _, folder = spec.partition("=")
        if name != "rust":
            parser.error(f"--text {spec}: expected rust=FOLDER")
        texts[name] = rust(Path(folder), args.out / "rust" / "text")
    args.texts = args.texts or list(texts)
    teacher = args.teacher or teacher_folder()
    if args.small_vocabulary:
        if len(args.texts) > 1:
            parser.error("--small-vocabulary: give one of --texts")
        tokens = {"train": args.rows * SEQ_LEN, "heldout": args.heldout_rows * SEQ_LEN}
        teacher = small_teacher(teacher, texts[args.texts[0]], tokens, args.out / "teacher")
    study = Study(
        out=args.out.resolve(),
        teacher=teacher.resolve(),
        texts=texts,
        rows=args.rows,
        heldout_rows=args.heldout_rows,
        epochs=args.epochs,
        lanes=args.lanes,
        rate=args.rate,
        dense=args.dense,
    )
    begin = time.monotonic()
    cells = cells_of(args)
    for i, cell in enumerate(cells):
        if done(study, cell) is not None:
            continue
        if time.monotonic() - begin > 60 * args.minutes:
            print(f"{len(cells) - i} cells are left: run the same command again", file=sys.stderr)
            break
        found = train(study, cell)
        print(
            f"{i + 1}/{len(cells)} {cell.path}: NLL {found['found']['nll']:.4f}, "
            f"{found['seconds']:.0f} s",
            file=sys.stderr,
        )
    results = [json.loads(p.read_text(encoding="utf-8")) for p in study.out.rglob("result.json")]
    (study.out / "study.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    said = f"{tables(results)}\n{lines(shares(results), study.out)}"
    (study.out / "study.md").write_text(said, encoding="utf-8")
    write_page(results, study.out / "study.html")
    print(said)


if __name__ == "__main__":
    main()
