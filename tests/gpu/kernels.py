"""Head, selection and the check for finite logits, at the vocabularies of real teachers."""

from __future__ import annotations

import pytest
import torch

from softlabels.capture import BadLogitError, Job, Kept, keep_logits
from softlabels.estimators import Estimator, make_estimator
from softlabels.teachers.head_product import HeadProduct
from tests.gpu.bench import Bench, Found

ESTIMATORS = {
    "topk k=50, T=1,2,4": ("topk", {"k": 50, "temperatures": (1.0, 2.0, 4.0)}),
    "topp 0.9, k=50": ("topp", {"k": 50, "top_p": 0.9}),
    "sampled k=12": ("sampled", {"k": 12}),
    "systematic k=35": ("systematic", {"k": 35}),
    "rs k=35": ("rs", {"k": 35}),
}
SAME = 0.999
"""Of the kept ids; the others are ties within rounding, or draws at a tooth."""
CLOSE = 1e-4
"""Nats."""


def selection(bench: Bench) -> Found:
    """Microseconds a position of each estimator, and whether it keeps what it keeps on a CPU."""
    found: Found = {}
    for v in (bench.size(49_152, 997), bench.size(152_064, 2_003)):
        n = bench.size(2_048, 64)
        logits = _logits(n, v).to(bench.device)
        few = logits[: bench.size(128, 32)].cpu()
        for name, (kind, parameters) in ESTIMATORS.items():
            estimator = make_estimator(kind, parameters)
            uniforms = _uniforms(estimator, n)
            labels, job = torch.zeros(n, dtype=torch.long), Job(estimator)

            def select(job=job, uniforms=uniforms, logits=logits, labels=labels) -> Kept:
                return keep_logits(logits.clone(), labels, uniforms, job)

            copied = bench.seconds(lambda logits=logits: logits.clone())
            taken = bench.seconds(select) - copied
            m = len(few)
            here = keep_logits(
                few.clone(),
                labels[:m],
                None if uniforms is None else uniforms[:m],
                job,
            )
            found[f"{name}, V={v}"] = {
                "us": round(taken / n * 1e6, 2),
                **_compare(here, select(), m),
            }
    return found


def _compare(here: Kept, there: Kept, m: int) -> Found:
    """Positions from 0 to m, kept on a CPU and on the device; raises `AssertionError` if they differ."""
    same = worst = 0.0
    for i in range(m):
        a = dict(zip(here.ids[i].tolist(), here.logp[i].tolist(), strict=True))
        b = dict(zip(there.ids[i].tolist(), there.logp[i].tolist(), strict=True))
        both = a.keys() & b.keys()
        same += len(both) / max(len(a), len(b)) / m
        if a.keys() == b.keys():
            worst = max([worst, *(abs(a[k] - b[k]) for k in both if a[k] > -1e30)])
    odds = here.log_odds - there.log_odds[:m].cpu()
    odds = odds[odds.isfinite()]
    apart = float(odds.abs().max()) if odds.numel() else 0.0
    assert same >= SAME, f"of the ids that a CPU keeps only {same:.4%} are kept"
    assert max(worst, apart) <= CLOSE, f"{max(worst, apart):.2g} nats from what a CPU finds"
    return {"same ids": round(same, 5), "nats apart": max(worst, apart)}


def head(bench: Bench) -> Found:
    """The head's product in float32, and from bfloat16 weights with sums in float32, as builds on CUDA take it."""
    found: Found = {}
    n, d = bench.size(2_048, 16), bench.size(4_096, 32)
    for v in (bench.size(49_152, 997), bench.size(152_064, 2_003)):
        g = torch.Generator().manual_seed(v)
        weight = (torch.randn(v, d, generator=g) * d**-0.5).bfloat16().to(bench.device)
        states = torch.randn(n, d, generator=g).bfloat16().to(bench.device)
        full = HeadProduct(weight.float(), None, halves=False)
        ways = {"float32": lambda states=states, full=full: full(states)}
        if bench.device.type == "cuda":
            own = HeadProduct.of(weight, None)
            assert own.halves, "a teacher of bfloat16 weights takes them as they are"
            ways["bfloat16, sums in float32"] = lambda states=states, own=own: own(states)
        exact = states[:8].double().cpu() @ weight.double().cpu().T
        for name, way in ways.items():
            apart = float((way()[:8].double().cpu() - exact).abs().max())
            taken = bench.seconds(way)
            found[f"{name}, V={v}"] = {"us": round(taken / n * 1e6, 2), "apart": apart}
            assert apart < 1e-3, f"{name}: {apart:.2g} from float64"
    return found


def not_finite(bench: Bench) -> Found:
    """NaN and +inf are refused, -inf is probability 0."""
    job = Job(make_estimator("topk", {"k": 5}))
    labels = torch.zeros(4, dtype=torch.long)
    logits = _logits(4, 300).to(bench.device)
    for bad in (float("nan"), float("inf")):
        broken = logits.clone()
        broken[2, 7] = bad
        with pytest.raises(BadLogitError, match="position 2"):
            keep_logits(broken, labels, None, job)
    logits[1, 100:] = -torch.inf
    kept = keep_logits(logits, labels, None, job)
    assert kept.impossible.tolist() == [0, 200, 0, 0]
    return {"refused": ["nan", "inf"]}


def _logits(n: int, v: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(n + v)
    return torch.randn(n, v, generator=g) * 3


def _uniforms(estimator: Estimator, n: int) -> torch.Tensor | None:
    if not estimator.uniforms:
        return None
    g = torch.Generator().manual_seed(n)
    return torch.rand(n, estimator.uniforms, generator=g, dtype=torch.float64)
