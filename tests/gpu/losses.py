"""The loss on a store's targets beside the dense one, and Liger's with the teacher's head in memory."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec

import torch

from tests.benchmarks.loss import MIB, peak, ways
from tests.gpu.bench import Bench, Found


def loss(bench: Bench) -> Found:
    """Seconds and peak MiB of loss forward and backward."""
    n = bench.size(4_096, 32)
    args = argparse.Namespace(
        device=str(bench.device),
        width=bench.size(2_048, 16),
        vocab=bench.size(152_064, 997),
        k=bench.size(50, 8),
        chunk_mib=bench.size(256, 1),
    )
    found: Found = {"positions": n, "V": args.vocab, "D": args.width}
    compared = ways(n, args, dense=True)
    compared |= _liger(n, args)
    for name, work in compared.items():
        taken = bench.seconds(work)
        found[name] = {"ms": round(taken * 1e3, 2), "MiB": round(peak(work, bench.device) / MIB)}
    if bench.device.type == "cuda":
        ours, dense = found["ours T=1"]["MiB"], found["dense KL T=1"]["MiB"]
        assert ours < dense, f"{ours} MiB, the dense loss {dense}"
    return found


def _liger(n: int, args: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Liger's, whose teacher is there: its states and head."""
    if args.device == "cpu" or find_spec("liger_kernel") is None:
        return {}
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    g = torch.Generator().manual_seed(3)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g).mul_(0.05).to(args.device)

    hidden, weight = made(n, args.width).requires_grad_(), made(args.vocab, args.width)
    weight.requires_grad_()
    states, head = made(n, args.width), made(args.vocab, args.width)
    labels = torch.zeros(n, dtype=torch.long, device=args.device)
    forward_kl = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0)

    def work() -> None:
        hidden.grad = weight.grad = None
        forward_kl(hidden, weight, states, head, labels).backward()
        torch.cuda.synchronize()

    return {"Liger, teacher's states in memory": work}
