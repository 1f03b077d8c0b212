"""Tails against dense float64 sums, at the vocabularies and the depths where shortcuts would show."""

import pytest
import torch

from softlabels.estimators import tail as tail_module
from softlabels.estimators.topk import TopK
from softlabels.estimators.topp import TopP


def reference(logits, ids, temperatures):
    """Log-odds `[n, G]` in float64."""
    odds = []
    for t in temperatures:
        z = logits.double() / t
        kept = z.gather(1, ids)
        odds.append(z.scatter(1, ids, -torch.inf).logsumexp(1) - kept.logsumexp(1))
    return torch.stack(odds, 1)


GRIDS = [
    (1.0,),
    (1.0, 2.0, 4.0),
    (0.5, 1.0, 3.0, 7.25),
    (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),  # more halvings than one exp is squared for
    (1.0, 3.0, 6.0, 12.0, 1.5),
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("v", [5000, 50_257])
@pytest.mark.parametrize("scale", [0.0, 3.0, 15.0])
def test_log_odds_to_the_last_float32_digits(grid, v, scale):
    logits = torch.randn(5, v, generator=torch.Generator().manual_seed(v)) * scale - 7.0
    s = TopK(k=20, temperatures=grid).select(logits.clone())
    expected = reference(logits, s.ids, grid)
    assert s.log_odds.dtype == torch.float32
    torch.testing.assert_close(s.log_odds.double(), expected, rtol=2e-7, atol=2e-6)
    torch.testing.assert_close(s.log_norm.double(), logits.double().logsumexp(1), rtol=3e-7, atol=0)


@pytest.mark.parametrize("depth", [50.0, 90.0, 300.0, 20_000.0])
@pytest.mark.parametrize("estimator", ["topk", "topp"])
def test_a_tail_far_below_the_head_keeps_its_digits(depth, estimator):
    """At e^-90 its float32 terms underflow relative to the largest logit; its own sum must not."""
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 6000, generator=g)
    logits[:, :4] += depth
    grid = (1.0, 2.0, 4.0)
    make = {
        "topk": TopK(k=4, temperatures=grid),
        "topp": TopP(k=4, top_p=1.0, min_k=4, temperatures=grid),
    }[estimator]
    s = make.select(logits.clone())
    expected = reference(logits, s.ids, grid)
    assert float(expected.max()) < -depth / 4 + 20
    torch.testing.assert_close(s.log_odds.double(), expected, rtol=2e-7, atol=2e-6)


def test_a_head_of_one_and_a_tail_of_one_id():
    logits = torch.tensor([[3e4, -3e4]])
    s = TopK(k=1, temperatures=(0.5, 1.0, 4.0)).select(logits.clone())
    assert s.log_odds.tolist() == [[-120_000.0, -60_000.0, -15_000.0]]
    assert s.logp.tolist() == [[0.0]]


def test_all_ids_kept_leaves_no_tail():
    s = TopK(k=9, temperatures=(1.0, 3.0)).select(torch.randn(2, 9))
    assert bool((s.log_odds == -torch.inf).all())


def test_some_ids_of_the_candidates_are_tail_of_topp():
    logits = torch.randn(4, 20_000, generator=torch.Generator().manual_seed(2)) * 4
    grid = (0.5, 1.0, 3.0)
    s = TopP(k=40, top_p=0.5, temperatures=grid).select(logits.clone())
    counts = (s.logp > -torch.inf).sum(1)
    assert counts.min() < 40
    for row, n in enumerate(counts.tolist()):
        expected = reference(logits[row : row + 1], s.ids[row : row + 1, :n], grid)
        torch.testing.assert_close(
            s.log_odds[row : row + 1].double(), expected, rtol=2e-7, atol=2e-6
        )


def test_one_exp_serves_temperatures_of_powers_of_two(monkeypatch):
    calls = []
    real = tail_module._exp
    monkeypatch.setattr(tail_module, "_exp", lambda y, t: (calls.append(t), real(y, t))[1])
    logits = torch.randn(1, 100)
    for grid, exps in (
        ((1.0, 2.0, 4.0), [4.0]),
        ((4.0, 1.0), [4.0]),
        ((0.5, 1.0, 3.0, 7.25), [7.25, 3.0, 1.0]),
        ((1.0, 3.0, 1.5, 6.0), [6.0, 1.0]),
        ((1.0, 2.0, 4.0, 8.0, 16.0, 32.0), [32.0, 4.0]),
    ):
        calls.clear()
        TopK(k=5, temperatures=grid).select(logits.clone())
        assert calls == exps
