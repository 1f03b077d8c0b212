"""How many ids of a sample are others where an engine rounds logits otherwise, and could another rule keep more?

    python tests/benchmarks/tooth.py

Logits of V ids, and the same with normal errors of 8e-6 nats, as between two engines in float32. With the same uniform
numbers, the share of drawn ids that differ: of `sampled` k=12, and the share of the weight that they have; of its comb
over a line whose ends are rounded to a grid; of priority sampling (Duffield, Lund and Thorup, J. ACM 54(6), 2007),
which has a uniform number for each id. Beside them the least that is possible of any rule with these inclusion
probabilities: half of the distance between those of both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softlabels.estimators import Selection
from softlabels.estimators.sampled import Sampled

V, POSITIONS, ROUNDS, K, ERROR, GRID = 49_152, 48, 6, 12, 8e-6, 1e-3


def inclusion(p: Tensor) -> Tensor:
    """Probabilities `[n, V]` with which `sampled` keeps each id: `min(1, p / tau)`."""
    ordered = p.sort(1, descending=True).values
    beyond = 1 - ordered.cumsum(1) + ordered
    tau = beyond[:, :K] / (K - torch.arange(K))
    fits = ordered[:, :K] <= tau
    fits[:, -1] = True
    return (p / tau.gather(1, fits.int().argmax(1, keepdim=True))).clamp(max=1)


def on_a_grid(included: Tensor, uniforms: Tensor) -> Tensor:
    """Ids that the comb's teeth fall on, `[n, K]`, -1 beyond the line's end."""
    ends = (included.where(included < 1, 0.0).cumsum(1) / GRID).round() * GRID
    teeth = torch.arange(K)[None] + uniforms
    return torch.where(teeth < ends[:, -1:].round(), torch.searchsorted(ends, teeth), -1)


def moved(a: Tensor, b: Tensor) -> float:
    """Share of the ids `[n, K]` of one that the other has not."""
    same = sum(len(set(x) & set(y)) for x, y in zip(a.tolist(), b.tolist(), strict=True))
    return 1 - same / a.numel()


def heavy(a: Selection, b: Selection) -> float:
    """Share of the weight of one that is at ids that the other has not."""
    lost = torch.ones_like(a.ids, dtype=torch.bool)
    for at in range(a.ids.shape[1]):
        lost[:, at] = ~(b.ids == a.ids[:, at : at + 1]).any(1)
    weights = a.logp.double().exp()
    return float((weights * lost).sum() / weights.sum())


def main() -> None:
    torch.manual_seed(0)
    print(
        "| logits' deviation | comb | of its weight | comb on a grid | narrower ids | priority | least |"
    )
    print("|---|---|---|---|---|---|---|")
    for deviation in (2.0, 3.5):
        found = torch.zeros(6, dtype=torch.float64)
        for _ in range(ROUNDS):
            both = [torch.randn(POSITIONS, V) * deviation]
            both.append(both[0] + torch.randn(POSITIONS, V) * ERROR)
            uniforms = torch.rand(POSITIONS, 1, dtype=torch.float64)
            combs = [Sampled(k=K).select(z.clone(), uniforms) for z in both]
            p = [z.double().softmax(1) for z in both]
            kept = [inclusion(q) for q in p]
            grids = [on_a_grid(q, uniforms) for q in kept]
            there = (grids[0] >= 0) & (grids[1] >= 0)
            own = torch.rand(POSITIONS, V, dtype=torch.float64).clamp_min(1e-300)
            first = [(q / own).topk(K, 1).indices for q in p]
            found += torch.tensor(
                [
                    moved(*(c.ids for c in combs)),
                    heavy(*combs),
                    (grids[0] != grids[1])[there].double().mean(),
                    kept[0][kept[0] < GRID].sum() / POSITIONS / K,
                    moved(*first),
                    (kept[0] - kept[1]).abs().sum(1).mean() / 2 / K,
                ]
            )
        shares = " | ".join(f"{100 * share:.4f} %" for share in (found / ROUNDS).tolist())
        print(f"| {deviation:g} | {shares} |")


if __name__ == "__main__":
    main()
