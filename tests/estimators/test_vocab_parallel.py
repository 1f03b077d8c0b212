"""A vocabulary dealt out to several processes: what is kept is what one process keeps that has all logits."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlabels.capture import BadLogitError, Job, keep_logits
from softlabels.estimators import make_estimator

GRID = (1.0, 2.0, 4.0)
ESTIMATORS = {
    "topk": {"k": 12, "temperatures": GRID},
    "topp": {"k": 12, "top_p": 0.8, "temperatures": GRID},
    "sampled": {"k": 12, "temperatures": (2.0,)},
    "systematic": {"k": 35, "temperatures": (1.0,)},
    "rs": {"k": 35, "temperatures": (1.0,)},
}


@dataclass
class Table:
    """Where threads lay down what the others are to know."""

    size: int
    laid: list = field(default_factory=list)
    sent: int = 0

    def __post_init__(self):
        self.barrier = threading.Barrier(self.size, timeout=60)
        self.laid = [None] * self.size


@dataclass
class Thread:
    table: Table
    rank: int
    first: int
    vocab_size: int

    def gather(self, own):
        self.table.laid[self.rank] = own.clone()
        if self.rank == 0:
            self.table.sent += own.numel() * own.itemsize
        self.table.barrier.wait()
        found = torch.stack(self.table.laid)
        self.table.barrier.wait()
        return found


def dealt(logits, labels, uniforms, job, cuts):
    """What each thread keeps that has the ids between two cuts, and bytes sent by one a position."""
    edges = [0, *cuts, logits.shape[1]]
    table = Table(len(edges) - 1)

    def one(rank):
        part = Thread(table, rank, edges[rank], logits.shape[1])
        own = logits[:, edges[rank] : edges[rank + 1]].clone()
        try:
            return keep_logits(own, labels, uniforms, job, part)
        except BadLogitError as e:
            return e

    with ThreadPoolExecutor(table.size) as pool:
        return list(pool.map(one, range(table.size))), table.sent / len(logits)


def same(found, expected):
    kept = expected.logp > -torch.inf
    # In each position ids may come in another order where logits are equal; here none are.
    assert torch.equal(found.logp > -torch.inf, kept)
    assert torch.equal(found.ids[kept], expected.ids[kept])
    torch.testing.assert_close(found.logp[kept], expected.logp[kept], rtol=0, atol=1e-6)
    for name in ("log_odds", "label_logp", "entropy"):
        a, b = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert torch.equal(found.top, expected.top)
    assert torch.equal(found.impossible, expected.impossible)


@given(
    name=st.sampled_from(sorted(ESTIMATORS)),
    w=st.sampled_from([2, 3, 5]),
    v=st.sampled_from([41, 300, 1000]),
    scale=st.sampled_from([0.5, 3.0, 30.0]),
    masked=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_what_is_kept_is_what_one_process_keeps(name, w, v, scale, masked, seed):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, v, generator=g) * scale
    if masked:
        logits[torch.rand(5, v, generator=g) < 0.2] = -torch.inf
        logits[:, 3] = scale
    labels = torch.randint(-1, v, (5,), generator=g)
    estimator = make_estimator(name, ESTIMATORS[name])
    u = estimator.uniforms
    uniforms = torch.rand(5, u, generator=g, dtype=torch.float64) if u else None
    cuts = np.sort(np.random.default_rng(seed).choice(np.arange(1, v), w - 1, replace=False))
    job = Job(estimator)
    expected = keep_logits(logits.clone(), labels, uniforms, job)
    found, _ = dealt(logits, labels, uniforms, job, cuts.tolist())
    for kept in found:
        same(kept, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "all"])
def test_every_process_refuses_what_one_of_them_sees(bad):
    logits = torch.randn(4, 90, generator=torch.Generator().manual_seed(1))
    logits[2, slice(None) if bad == "all" else 77] = -torch.inf if bad == "all" else bad
    job = Job(make_estimator("topk", ESTIMATORS["topk"]))
    found, _ = dealt(logits, torch.zeros(4, dtype=torch.long), None, job, [30, 60])
    with pytest.raises(BadLogitError) as alone:
        keep_logits(logits.clone(), torch.zeros(4, dtype=torch.long), None, job)
    assert {(type(e), str(e)) for e in found} == {(BadLogitError, str(alone.value))}


@pytest.mark.parametrize(("name", "most"), [("topk", 450), ("sampled", 300), ("systematic", 320)])
def test_what_is_sent_does_not_grow_with_the_vocabulary(name, most):
    sizes = []
    for v in (2_000, 20_000):
        logits = torch.randn(3, v, generator=torch.Generator().manual_seed(v))
        estimator = make_estimator(name, ESTIMATORS[name] | {"k": 50 if name == "topk" else 12})
        uniforms = torch.full((3, 1), 0.3, dtype=torch.float64) if estimator.uniforms else None
        _, sent = dealt(
            logits, torch.zeros(3, dtype=torch.long), uniforms, Job(estimator), [v // 2]
        )
        sizes.append(sent)
    assert sizes[0] == sizes[1] < most
