"""How many positions at a time should a teacher's head compute on a CPU?

    OMP_NUM_THREADS=1 python tests/benchmarks/head_chunks.py

CPU microseconds a position, of the float32 product with a head of V ids and D numbers, and of selecting the top 50 with
tails at three temperatures from it, for budgets of `--head-mib`. A product packs the whole head once a chunk, which few
positions then share. Least of the repeats. Prints a table.
"""

from __future__ import annotations

import argparse
import time

import torch

from softlabels.capture import Job, keep_logits
from softlabels.estimators import make_estimator

SHAPES = {"SmolLM2-135M": (49_152, 576), "Qwen2.5-0.5B": (151_936, 896)}
BUDGETS = (16, 64, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--positions", type=int, default=440)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    job = Job(make_estimator("topk", {"k": 50, "temperatures": (1.0, 2.0, 4.0)}))
    print("| | MiB | positions at a time | product, CPU µs each | selection |")
    print("|---|---|---|---|---|")
    for name, (v, d) in SHAPES.items():
        head, hidden = torch.randn(v, d) * 0.05, torch.randn(args.positions, d)
        labels = torch.zeros(args.positions, dtype=torch.int64)
        best = {mib: (float("inf"), float("inf")) for mib in BUDGETS}
        for _ in range(args.repeats):
            for mib in BUDGETS:
                found = seconds(head, hidden, labels, job, mib * 2**20 // (4 * v))
                best[mib] = min(best[mib][0], found[0]), min(best[mib][1], found[1])
        for mib, pair in best.items():
            product, selection = (s / args.positions * 1e6 for s in pair)
            print(
                f"| {name} | {mib} | {mib * 2**20 // (4 * v)} | {product:,.0f} | {selection:,.0f} |"
            )


def seconds(
    head: torch.Tensor, hidden: torch.Tensor, labels: torch.Tensor, job: Job, each: int
) -> tuple[float, float]:
    """Of all positions: the products, and what is kept of them."""
    product = selection = 0.0
    for states, own in zip(hidden.split(each), labels.split(each), strict=True):
        begun = time.process_time()
        logits = states @ head.T
        made = time.process_time()
        keep_logits(logits, own, None, job)
        product, selection = product + made - begun, selection + time.process_time() - made
    return product, selection


if __name__ == "__main__":
    main()
