"""What does keeping the targets cost, over running the teacher alone?

    python tests/benchmarks/capture.py --teacher hf:models/teacher --corpus 'text:data/austen/train/*.txt'
    python tests/benchmarks/capture.py --teacher hf:models/teacher hf:wide --dtype bfloat16 …

Over the same rows, in one process, in turns: the bare teacher (body and head, logits made and dropped), the
teacher with selection, and a whole build without its planning and loading (rows, teacher, selection,
encoding, check, fsync), on a CPU a second time with selection left to torch. Documents are tokenised whole:
give a corpus of about as many rows as --rows, or most of "of which reading" is of rows that are not taught.
The time is the median of the repeats; a ratio is the median of each repeat's own ratio, with the quarters on
both sides of it, since a shared machine's speed drifts; every other repeat runs backwards. CPU seconds are of
all threads. Prints a table for each teacher. With --make-wide FOLDER it writes `wide` from a teacher's folder:
random weights in the shape of Qwen2.5-0.5B, with the tokenizer of that teacher.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import torch

from softlabels.builder.build import Taught, teacher_options
from softlabels.builder.config import BuildConfig
from softlabels.builder.plan import plan_build
from softlabels.builder.teach import batches, teach
from softlabels.core.progress import Silent
from softlabels.corpora import open_corpora
from softlabels.domains import DOMAINS
from softlabels.domains.maker import CorpusPass
from softlabels.estimators import native
from softlabels.making.job import make_store
from softlabels.teachers import TeacherOptions, open_teacher

TARGET = 1.04
"""Of the whole build over the bare teacher."""


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def make_wide(teacher: str, out: Path) -> None:
    """A vocabulary of 151,936 ids; weights are random, which costs as much as any others."""
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(out)
    tokenizer = open_teacher(teacher, TeacherOptions(device="cpu", dtype="float32")).tokenizer
    for name, content in tokenizer.files().items():
        (out / name).write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--teacher",
        nargs="+",
        required=True,
        help="as `softlabels build` takes it; several in turn",
    )
    parser.add_argument("--corpus", help="as `softlabels build` takes it")
    parser.add_argument("--make-wide", type=Path, help="write a wide teacher there, and end")
    parser.add_argument("--dtype", default="auto", help="of the teacher's body")
    parser.add_argument("--head-mib", type=int)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument(
        "--shard-rows", type=int, default=8, help="a whole batch, so that both ways batch alike"
    )
    parser.add_argument("--estimator", default="topk")
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--repeats", type=int, default=5, help="two at least")
    parser.add_argument(
        "--without", nargs="*", default=[], help="ways that are not measured, as the table has them"
    )
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    if args.make_wide is not None:
        make_wide(args.teacher[0], args.make_wide)
        return
    if args.corpus is None:
        parser.error("--corpus is needed")
    results = [measured(spec, args) for spec in args.teacher]
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def measured(spec: str, args: argparse.Namespace) -> dict[str, object]:
    """Of one teacher, printed and for `--json`."""
    config = BuildConfig(
        teacher=spec,
        corpus=(args.corpus,),
        estimator=args.estimator,
        k=args.k,
        temperature=tuple(args.temperature),
        seq_len=args.seq_len,
        shard_rows=args.shard_rows,
        limit_rows=args.rows,
        dtype=args.dtype,
        head_mib=args.head_mib,
    )
    quiet = Silent()
    teacher = open_teacher(config.teacher, teacher_options(config, None))
    estimator = config.make_estimator()
    corpora = open_corpora(config.corpus)
    maker = DOMAINS.load(config.domain).maker
    over = CorpusPass(config=config, corpora=corpora, teacher=teacher)
    rows = [r for _, r in islice(maker.rows(over), args.rows)]
    positions = sum(len(r.positions) for r in rows)

    with tempfile.TemporaryDirectory() as folder:
        stores = iter(Path(folder) / str(i) for i in range(2 * (args.repeats + 2)))
        plan, files = plan_build(config, corpora, teacher, quiet)

        def bare() -> None:
            for batch in batches(rows, config.batch_tokens):
                for _ in teacher.logits(batch):
                    pass

        def selected() -> None:
            teach(
                rows,
                plan.identity,
                estimator,
                teacher,
                start_row=0,
                batch_tokens=config.batch_tokens,
                advance=lambda _: None,
            )

        def built() -> None:
            job = Taught(config, next(stores), teacher=teacher, corpora=corpora)
            make_store(job, plan, files, quiet)

        def built_by_torch() -> None:
            with patch.object(native, "FEWEST_IDS", sys.maxsize):
                built()

        def read() -> None:
            list(islice(maker.rows(over), args.rows))

        ways = {
            "bare teacher": bare,
            "+ selection": selected,
            "whole build": built,
            "whole build, selection by torch": built_by_torch,
            "of which reading": read,
        }
        if native.built().library is None or teacher.record.device != "cpu":
            del ways["whole build, selection by torch"]  # as it is anyway
        ways = {name: work for name, work in ways.items() if name not in args.without}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for repeat in range(args.repeats + 1):
            for name, work in list(ways.items())[:: -1 if repeat % 2 else 1]:
                seconds = timed(work)
                if repeat > 0:  # the first pays for what happens once
                    found[name].append(seconds)
                print(f"{repeat} {name}: {seconds[0]:.3f} s", file=sys.stderr)

    figures = {}
    base = found["bare teacher"]
    record = teacher.record
    threads = torch.get_num_threads()
    print(f"{spec}, {record.dtype} on {record.device}, V={record.vocab_size:,}, {threads} threads")
    print(
        f"| {positions:,} positions | wall µs each | of bare | CPU µs each | of bare | quarters |"
    )
    print("|---|---|---|---|---|---|")
    for name, runs in found.items():
        wall, cpu = (statistics.median(r[i] for r in runs) / positions * 1e6 for i in (0, 1))
        own = [[r[i] / b[i] for r, b in zip(runs, base, strict=True)] for i in (0, 1)]
        ratios = [statistics.median(r) for r in own]
        low, _, high = statistics.quantiles(own[1], n=4, method="inclusive")
        figures[name] = {
            "wall_us": wall,
            "cpu_us": cpu,
            "wall_ratio": ratios[0],
            "cpu_ratio": ratios[1],
            "runs": runs,
        }
        columns = f"{wall:,.0f} | {ratios[0]:.3f} | {cpu:,.0f} | {ratios[1]:.3f}"
        print(f"| {name} | {columns} | {low:.3f} to {high:.3f} |")
    for clock in ("wall", "cpu"):
        reached = figures["whole build"][f"{clock}_ratio"] <= TARGET
        print(f"target {TARGET:g} of bare, {clock}: {'reached' if reached else 'missed'}")
    settings = {k: str(v) for k, v in vars(args).items() if k != "json"}
    about = {"device": record.device, "dtype": record.dtype, "engine": record.engine}
    about |= {"teacher": spec, "threads": threads, "positions": positions}
    return {"settings": settings, **about, "figures": figures}


if __name__ == "__main__":
    main()
