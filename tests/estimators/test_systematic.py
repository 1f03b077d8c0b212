import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlabels.estimators.rs import RandomSampling
from softlabels.estimators.systematic import Systematic
from softlabels.testing import check_estimator


def draw(logits, k, uniforms, temperature=1.0):
    """Ids, counts of the k draws, and which slots are kept."""
    s = Systematic(k=k, temperatures=(temperature,)).select(logits.clone(), uniforms)
    return s.ids, s.logp.double().exp() * k, s.logp > -torch.inf


def dense(ids, weights, v):
    return torch.zeros(len(ids), v, dtype=torch.float64).scatter_add_(1, ids, weights)


def test_it_keeps_the_contract():
    check_estimator("systematic", k=9)
    check_estimator("systematic", k=70, temperatures=(2.0,))


@given(
    seed=st.integers(0, 2**31),
    v=st.integers(2, 500),
    k=st.integers(1, 400),
    scale=st.sampled_from([0.0, 0.5, 3.0, 12.0]),
    temperature=st.sampled_from([1.0, 2.0]),
)
def test_counts_are_the_probabilities_rounded_up_or_down(seed, v, k, scale, temperature):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, v, generator=g) * scale
    ids, counts, kept = draw(
        logits, k, torch.rand(4, 1, generator=g, dtype=torch.float64), temperature
    )
    for row, mask in zip(ids, kept, strict=True):
        assert len(set(row[mask].tolist())) == int(mask.sum())
        assert row[mask].tolist() == sorted(row[mask].tolist())
    torch.testing.assert_close(
        counts.sum(1), torch.full((4,), float(k)).double(), rtol=1e-5, atol=0
    )
    expected = torch.softmax(logits.double() / temperature, 1) * k
    assert float((dense(ids, counts, v) - expected).abs().max()) < 1 + 1e-3


def test_the_mean_over_all_offsets_is_the_teacher():
    """Averaged over a fine comb of offsets, an id's count errs by at most one offset."""
    v, k, r = 300, 12, 2000
    logits = torch.randn(1, v, generator=torch.Generator().manual_seed(k)) * 3
    offsets = (torch.arange(r, dtype=torch.float64)[:, None] + 0.5) / r
    ids, counts, _ = draw(logits.repeat(r, 1), k, offsets)
    p = torch.softmax(logits[0].double(), 0)
    assert float((dense(ids, counts, v).mean(0) / k - p).abs().max()) <= 1.5 / (k * r) + 1e-6


def test_random_offsets_are_unbiased_within_four_standard_errors_and_vary_less_than_independent_draws():
    v, k, r = 400, 12, 10_000
    logits = torch.randn(1, v, generator=torch.Generator().manual_seed(1)) * 3
    rng = np.random.default_rng(5)
    ids, counts, _ = draw(logits.repeat(r, 1), k, torch.from_numpy(rng.random((r, 1))))
    weights = dense(ids, counts / k, v)
    p = torch.softmax(logits[0].double(), 0)
    spread = weights.std(0)
    matters = (p > 1e-4) & (spread > 1e-6)
    assert int(matters.sum()) > 100
    error = (weights.mean(0) - p).abs() / (spread / r**0.5)
    assert float(error[matters].max()) < 4.5
    s = RandomSampling(k=k).select(logits.repeat(r, 1), torch.from_numpy(rng.random((r, k))))
    independent = dense(s.ids, s.logp.double().exp(), v).var(0)
    assert bool((spread**2 <= independent * 1.15 + 1e-9)[p > 1e-3].all())
    assert float((spread**2).sum()) < 0.7 * float(independent.sum())


def test_it_keeps_few_ids_of_a_certain_position_and_many_of_an_uncertain_one():
    logits = torch.zeros(2, 500)
    logits[0, 9] = 1e4
    ids, counts, kept = draw(logits, 30, torch.tensor([[0.0], [0.999999]], dtype=torch.float64))
    assert kept.sum(1).tolist() == [1, 30]
    assert int(ids[0, 0]) == 9
    assert float(counts[0, 0]) == pytest.approx(30.0)
