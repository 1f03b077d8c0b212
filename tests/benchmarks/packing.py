"""Rows of 2k to 32k tokens, and short rows packed or padded: what memory and time a step takes.

    OMP_NUM_THREADS=1 python tests/benchmarks/packing.py --json packing.json

First table, one row of S tokens, of one document or of `--documents`, each in a process of its own: peak memory above
what stood before the step, of the body alone (its forward and backward) and of the whole step with `distil_loss`; what
float32 logits of positions x vocabulary and their gradient would take beside the body; and how many positions the
largest tensor holds that has the vocabulary for a dimension, over every operation of forward and backward: logits of
all positions would make it S. (With several documents transformers make a mask of S x S on a CPU: the body's own.)

Second table, for each `--pack`, the same rows of some `--tokens` four ways: padded to the longest, in micro-batches of
`--pack` tokens by length (`softtrain run --batch-tokens`), packed into rows of `--pack` tokens, and end to end in one
row. The loss is the same in all four; tokens are counted without padding. `--lengths` without a number leaves the first
table out.

The body is a llama of one layer and width 64, of no use to anybody: what grows here is what a bigger one has, too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from softlabels.core.rows import Row
from softlabels.core.targets import SoftTargets
from softlabels.format.shard import StoredRow
from trainers import DistillLoss, distil_loss
from trainers.data.batch import collate
from trainers.data.microbatches import batches_of_tokens, grouped_by_tokens
from trainers.data.packing import collate_packed

LOSS = DistillLoss(temperature=1.0, alpha=0.9)


def model_of(args: argparse.Namespace) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2**16,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config).train()


def row_of(index: int, size: int, args: argparse.Namespace, documents: int = 1) -> StoredRow:
    """A row with targets of K ids at every position but the last."""
    draw = np.random.default_rng(index)
    mask = np.ones(size, np.bool_)
    mask[-1] = False
    row = Row(
        input_ids=draw.integers(0, args.vocab, size, dtype=np.int32),
        label_mask=mask,
        segment_lengths=np.full(documents, size // documents, np.int32),
        documents=np.arange(documents, dtype=np.int64),
    )
    n = size - 1
    start = draw.integers(0, args.vocab - args.k, (n, 1))
    gaps = np.sort(draw.exponential(2.0, (n, args.k)).astype(np.float32), axis=1)
    targets = SoftTargets(
        ids=(start + np.arange(args.k)).astype(np.int32),
        gaps=gaps - gaps[:, :1],
        log_odds=np.full((n, 1), -2.0, np.float32),
        temperatures=(1.0,),
        vocab_size=args.vocab,
        estimator="topk",
    )
    return StoredRow(index=index, row=row, targets=targets)


def peak_kib() -> int:
    """The most memory that this process has had, KiB (Linux)."""
    line = next(
        x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")
    )
    return int(line.split()[1])


def reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak_kib()


class WidestOverVocabulary(TorchDispatchMode):
    """Of every tensor that an operation makes, and that has the vocabulary for a dimension, the most positions."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab, self.positions = vocab, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and self.vocab in t.shape:
                self.positions = max(self.positions, t.numel() // self.vocab)
        return out


def measure(args: argparse.Namespace) -> dict[str, float]:
    """One step on one row, in this process: MiB above what stood before, and seconds."""
    batch = collate([row_of(0, args.length, args, args.documents)])
    model = model_of(args)
    warm = collate([row_of(1, 64, args)])
    distil_loss(model, warm, LOSS).loss.backward()
    before = reset_peak()
    start = time.perf_counter()
    if args.measure == "body":
        model.model(**batch.inputs, use_cache=False).last_hidden_state.sum().backward()
        widest = 0
    else:
        with WidestOverVocabulary(args.vocab) as seen:
            distil_loss(model, batch, LOSS).loss.backward()
        widest = seen.positions
        assert widest > 0, "the head was seen"
    seconds = time.perf_counter() - start
    return {"mib": (peak_kib() - before) / 1024, "seconds": seconds, "widest": widest}


def apart(args: argparse.Namespace, what: str, length: int, documents: int) -> dict[str, float]:
    """`measure`, in a process of its own."""
    given = ["--measure", what, "--length", length, "--documents", documents]
    given += ["--vocab", args.vocab, "--k", args.k]
    done = subprocess.run(
        [sys.executable, __file__, *map(str, given)], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def memory(args: argparse.Namespace) -> list[dict[str, float]]:
    print(
        "| tokens | documents | body, MiB | step, MiB | the loss adds | logits would add |", end=""
    )
    print(" positions x vocabulary at once | s |\n|---|---|---|---|---|---|---|---|")
    found = []
    for documents in (1, args.documents):
        for length in args.lengths:
            body, step = (apart(args, what, length, documents) for what in ("body", "step"))
            logits = 2 * 4 * length * args.vocab / 2**20
            print(
                f"| {length:,} | {documents} | {body['mib']:,.0f} | {step['mib']:,.0f} | "
                f"{step['mib'] - body['mib']:,.0f} | {logits:,.0f} | {step['widest']:,} | "
                f"{step['seconds']:.1f} |",
                flush=True,
            )
            line = {"tokens": length, "documents": documents, "logits_mib": logits}
            found.append({**line, "body_mib": body["mib"], "step_mib": step["mib"], **step})
    return found


def layouts(args: argparse.Namespace, pack: int) -> list[dict[str, Any]]:
    """Short rows, a few long: median time of a step, tokens counted without padding."""
    draw = np.random.default_rng(0)
    rows: list[StoredRow] = []
    while (tokens := sum(r.row.size for r in rows)) < args.tokens:
        size = float(np.clip(draw.lognormal(np.log(pack / 16), 0.8), 8, pack))
        rows.append(row_of(len(rows), int(size), args))
    padded = collate(rows)
    ways = {
        "padded": [padded],
        f"by {pack:,} tokens": list(batches_of_tokens(padded, grouped_by_tokens(padded, pack))),
        f"packed into {pack:,}": [collate_packed(rows, most=pack)],
        "end to end": [collate_packed(rows)],
    }
    loss = replace(LOSS, totals=LOSS.count(padded))
    model = model_of(args)
    print(f"\n{len(rows)} rows of {tokens:,} tokens, the longest {max(r.row.size for r in rows):,}")
    print("\n| rows | places | padding | loss | s | tokens/s |\n|---|---|---|---|---|---|")
    found = []
    for name, batches in ways.items():
        times = []
        for _ in range(args.repeats + 1):
            start, value = time.perf_counter(), 0.0
            for batch in batches:
                out = distil_loss(model, batch, loss)
                out.loss.backward()
                value += out.loss.item()
            times.append(time.perf_counter() - start)
        seconds = float(np.median(times[1:]))
        places = sum(batch.inputs["input_ids"].numel() for batch in batches)
        print(
            f"| {name} | {places:,} | {1 - tokens / places:.0%} | {value:.5f} | "
            f"{seconds:.2f} | {tokens / seconds:,.0f} |",
            flush=True,
        )
        line = {"pack": pack, "rows": name, "places": places, "loss": value}
        found.append({**line, "seconds": seconds, "tokens_per_second": tokens / seconds})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="*", default=[2048, 8192, 32768])
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32_768, help="of the second table's rows")
    parser.add_argument("--pack", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=["body", "step"], help="One row, in this process.")
    parser.add_argument("--length", type=int)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    found = {"memory": memory(args), "layouts": [r for p in args.pack for r in layouts(args, p)]}
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
