"""What does the loss cost, in memory and time, against dense KL and against hard labels only?

    OMP_NUM_THREADS=1 python tests/benchmarks/loss.py --json loss.json

Three comparisons, in turns, medians of the repeats (a ratio is the median of each repeat's own):

- memory: peak above the inputs of loss forward + backward at N rows (ours) and --dense-rows (ours and dense: PyTorch's
  log_softmax and kl_div on given dense teacher log-probabilities, which count as an input), each in a process of
  its own, after a small one that warms the libraries;
- time: the same two at --dense-rows, in one process; on a busy machine trust the CPU seconds, which are of all threads;
- step: a whole training step (body, head, AdamW) of a small Llama with soft targets at T=1, at T=2, against hard labels
  only (alpha 0, the same chunked head).

On Linux the peak is VmHWM, reset before the work; on a GPU, --device cuda, what PyTorch allocated.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softlabels.core.targets import SoftTargets
from trainers.data.batch import Batch
from trainers.loss.head import Head
from trainers.loss.losses import DistillLoss

MIB = 2**20
GRID = (1.0, 2.0)


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak(work: Callable[[], object], device: torch.device) -> float:
    """Bytes above what there was, at the highest."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return float(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


def targets_of(n: int, v: int, k: int, seed: int = 0) -> SoftTargets:
    rng = np.random.default_rng(seed)
    ids = (rng.integers(v // k, size=(n, k)) + np.arange(k) * (v // k)).astype(np.int32)
    gaps = np.cumsum(rng.exponential(0.2, (n, k)), axis=1).astype(np.float32)
    odds = rng.normal(-2.0, 1.0, (n, len(GRID))).astype(np.float32)
    return SoftTargets(
        ids=ids,
        gaps=gaps - gaps[:, :1],
        log_odds=odds,
        temperatures=GRID,
        vocab_size=v,
        estimator="topk",
    )


def problem(n: int, args: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor, Batch]:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, args.width, generator=g).to(device).requires_grad_()
    weight = (torch.randn(args.vocab, args.width, generator=g) * 0.05).to(device).requires_grad_()
    batch = Batch(
        rows=(0,),
        inputs={},
        width=n,
        flat_positions=torch.arange(n),
        labels=torch.randint(args.vocab, (n,), generator=g),
        targets=targets_of(n, args.vocab, args.k),
    ).to(device)
    return hidden, weight, batch


def ways(n: int, args: argparse.Namespace, *, dense: bool) -> dict[str, Callable[[], None]]:
    device = torch.device(args.device)
    hidden, weight, batch = problem(n, args, device)

    def ours(t: float, alpha: float) -> Callable[[], None]:
        loss = DistillLoss(alpha=alpha, temperature=t, chunk_bytes=args.chunk_mib * MIB)

        def work() -> None:
            hidden.grad = weight.grad = None
            loss(hidden, Head(weight=weight), batch).loss.backward()
            sync(device)

        return work

    found = {"ours T=1": ours(1.0, 1.0), "ours T=2 + hard": ours(2.0, 0.5)}
    if not dense:
        return found
    g = torch.Generator().manual_seed(1)
    log_p = torch.log_softmax(torch.randn(n, args.vocab, generator=g).to(device), dim=1)

    def dense_kl() -> None:
        hidden.grad = weight.grad = None
        log_q = torch.log_softmax(hidden @ weight.T, dim=1)
        torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean").backward()
        sync(device)

    return {"dense KL T=1": dense_kl, **found}


def memory_of_one(args: argparse.Namespace) -> None:
    """In a process of its own: one way, its peak in bytes."""
    small = argparse.Namespace(**{**vars(args), "vocab": 64, "k": 4})
    for work in ways(8, small, dense=True).values():
        work()
    work = ways(args.rows, args, dense="dense" in args.one)[args.one]
    print(json.dumps(peak(work, torch.device(args.device))))


def memory(args: argparse.Namespace, name: str, rows: int) -> float:
    command = [sys.executable, __file__, "--one", name, "--rows", str(rows)]
    for flag in ("width", "vocab", "k", "chunk_mib", "device"):
        command += [f"--{flag.replace('_', '-')}", str(getattr(args, flag))]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def in_turns(
    found: dict[str, Callable[[], None]], repeats: int, base: str
) -> dict[str, dict[str, Any]]:
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for repeat in range(repeats + 1):
        for name, work in found.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            if repeat > 0:  # the first pays for what happens once
                runs[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        print(f"turn {repeat} of {repeats}", file=sys.stderr)
    figures: dict[str, dict[str, Any]] = {}
    for name, mine in runs.items():
        figures[name] = {"runs": mine}
        for i, clock in enumerate(("wall", "cpu")):
            pairs = zip(mine, runs[base], strict=True)
            figures[name][clock] = statistics.median(run[i] for run in mine)
            figures[name][f"{clock}_ratio"] = statistics.median(a[i] / b[i] for a, b in pairs)
    return figures


def print_times(title: str, against: str, figures: dict[str, dict[str, Any]]) -> None:
    print(f"\n| {title} | wall s | of {against} | CPU s | of {against} |\n|---|---|---|---|---|")
    for name, f in figures.items():
        wall, cpu = (f"{f[c]:.3f} | {f[c + '_ratio']:.3f}" for c in ("wall", "cpu"))
        print(f"| {name} | {wall} | {cpu} |", flush=True)


def step_ways(args: argparse.Namespace) -> dict[str, Callable[[], None]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    device = torch.device(args.device)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=args.vocab,
            hidden_size=args.width,
            intermediate_size=args.width * 8 // 3,
            num_hidden_layers=args.layers,
            num_attention_heads=args.width // 64,
            num_key_value_heads=args.width // 64,
            tie_word_embeddings=True,
        )
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
    _, _, batch = problem(args.step_rows, args, device)
    ids = torch.randint(args.vocab, (4, args.step_rows // 4), device=device)
    batch = replace(batch, input_ids=ids)

    def step(t: float, alpha: float) -> Callable[[], None]:
        loss = DistillLoss(alpha=alpha, temperature=t, chunk_bytes=args.chunk_mib * MIB)

        def work() -> None:
            hidden = model.model(input_ids=batch.inputs["input_ids"]).last_hidden_state
            loss(hidden, Head(weight=model.lm_head.weight), batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            sync(device)

        return work

    return {
        "hard only": step(1.0, 0.0),
        "soft T=1": step(1.0, 1.0),
        "soft + hard T=1": step(1.0, 0.5),
        "soft T=2 + hard T=1": step(2.0, 0.5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--dense-rows", type=int, default=1024)
    parser.add_argument("--step-rows", type=int, default=512, help="positions of the whole step")
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--chunk-mib", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        memory_of_one(args)
        return
    n, d, v, k = args.rows, args.width, args.vocab, args.k
    kept = 4 * (n * d + v * d + n * (k + 1))
    bound = args.chunk_mib * MIB + 1.25 * kept
    names = ("ours T=1", "ours T=2 + hard")
    peaks = {f"{name}, N={n}": memory(args, name, n) for name in names}
    for name in ("dense KL T=1", *names):
        peaks[f"{name}, N={args.dense_rows}"] = memory(args, name, args.dense_rows)
    # Dense: what grows with N is V wide; the gradients of the head do not grow.
    dense = peaks[f"dense KL T=1, N={args.dense_rows}"]
    head = 4 * v * d
    scaled = head + (dense - head) * n / args.dense_rows
    print(f"| peak above the inputs | MiB | bound {bound / MIB:,.0f} MiB at N={n} |\n|---|---|---|")
    for name, value in peaks.items():
        met = ("met" if value <= bound else "missed") if name.endswith(f"N={n}") else ""
        print(f"| {name} | {value / MIB:,.0f} | {met} |")
    worst = max(peaks[f"{name}, N={n}"] for name in names)
    print(
        f"| dense KL, scaled to N={n} | {scaled / MIB:,.0f} | {scaled / worst:.1f} times ours (8) |",
        flush=True,
    )
    times = in_turns(ways(args.dense_rows, args, dense=True), args.repeats, "dense KL T=1")
    print_times(f"loss forward + backward, N={args.dense_rows}", "dense (0.8)", times)
    steps = in_turns(step_ways(args), args.repeats, "hard only")
    print_times(f"training step, {args.step_rows} positions", "hard only (1.05, 1.12)", steps)
    if args.json is not None:
        about = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": args.device,
        }
        settings = {name: str(value) for name, value in vars(args).items() if name != "json"}
        figures = {"peaks": peaks, "dense_scaled": scaled, "bound": bound}
        result = {"settings": settings, **about, **figures, "times": times, "steps": steps}
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
