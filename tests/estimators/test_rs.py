import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlabels.errors import ConfigError
from softlabels.estimators import make_estimator
from softlabels.estimators.rs import RandomSampling


def draw(logits, k, uniforms, temperature=1.0):
    s = RandomSampling(k=k, temperatures=(temperature,)).select(logits.clone(), uniforms)
    return s.ids, s.logp.double().exp(), s


def reference(logits, uniforms):
    """Inverse of the cumulative distribution, one draw at a time."""
    total = torch.softmax(logits.double(), 0).cumsum(0)
    dense = torch.zeros(len(logits), dtype=torch.float64)
    for u in uniforms:
        dense[int((total < (1 - u) * total[-1]).sum())] += 1 / len(uniforms)
    return dense


@given(seed=st.integers(0, 2**31), v=st.integers(1, 300), k=st.integers(1, 40))
def test_counts_equal_the_draws_one_by_one(seed, v, k):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, v, generator=g) * 3
    uniforms = torch.rand(3, k, generator=g, dtype=torch.float64)
    ids, weights, s = draw(logits, k, uniforms)  # k may be larger than v
    found = torch.zeros(3, v, dtype=torch.float64).scatter_add_(1, ids, weights)
    for n in range(3):
        torch.testing.assert_close(found[n], reference(logits[n], uniforms[n]), rtol=0, atol=1e-6)
        kept = ids[n][s.logp[n] > -torch.inf]
        assert len(kept.unique()) == len(kept)
    torch.testing.assert_close(
        weights.sum(1), torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_the_mean_is_the_teacher_within_standard_errors():
    v, k, r = 300, 12, 10_000
    g = torch.Generator().manual_seed(4)
    logits = torch.randn(1, v, generator=g) * 3
    uniforms = torch.rand(r, k, generator=g, dtype=torch.float64)
    ids, weights, _ = draw(logits.repeat(r, 1), k, uniforms, temperature=2.0)
    dense = torch.zeros(r, v, dtype=torch.float64).scatter_add_(1, ids, weights)
    p = torch.softmax(logits[0].double() / 2, 0)
    error = (dense.mean(0) - p).abs() / (dense.std(0) / r**0.5)
    assert float(error[p > 1e-3].max()) < 4.5


def test_extreme_numbers_never_hit_an_id_without_mass():
    logits = torch.full((1, 50), -1e4)
    logits[0, 20] = logits[0, 30] = 0.0
    uniforms = torch.tensor([[0.0, 0.5, 1 - 1e-16]], dtype=torch.float64)
    ids, _, s = draw(logits, 3, uniforms)
    assert set(ids[s.logp > -torch.inf].tolist()) <= {20, 30}


def test_two_temperatures_are_refused():
    with pytest.raises(ConfigError, match="'rs' estimator holds one temperature"):
        make_estimator("rs", {"k": 3, "temperatures": (1.0, 2.0)})
