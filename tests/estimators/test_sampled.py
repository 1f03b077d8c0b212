import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlabels.errors import ConfigError
from softlabels.estimators import make_estimator
from softlabels.estimators.sampled import Sampled


def draw(logits, k, uniforms, temperature=1.0):
    s = Sampled(k=k, temperatures=(temperature,)).select(logits.clone(), uniforms)
    return s.ids, s.logp.double().exp(), s


@given(
    seed=st.integers(0, 2**31),
    v=st.integers(2, 500),
    k=st.integers(1, 500),
    scale=st.sampled_from([0.0, 0.5, 3.0, 12.0]),
)
def test_k_distinct_ids_whose_weights_sum_to_one(seed, v, k, scale):
    k = min(k, v)
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, v, generator=g) * scale
    ids, weights, s = draw(logits, k, torch.rand(4, generator=g, dtype=torch.float64))
    kept = s.logp > -torch.inf
    for row, mask in zip(ids, kept, strict=True):
        assert len(set(row[mask].tolist())) == int(mask.sum())
    # A slot is given up only where rounding put two teeth on one id.
    assert (~kept).sum() <= 1
    torch.testing.assert_close(
        weights.sum(1), torch.ones(4, dtype=torch.float64), rtol=1e-5, atol=0
    )
    assert bool(((ids >= 0) & (ids < v)).all())
    assert bool((s.log_odds == -torch.inf).all())


@pytest.mark.parametrize(
    ("k", "temperature", "scale"), [(12, 1.0, 3.0), (3, 1.0, 6.0), (8, 2.0, 4.0), (1, 1.0, 2.0)]
)
def test_the_mean_over_all_offsets_is_the_teacher(k, temperature, scale):
    """Unbiased: averaged over a fine comb of offsets, every id's weight is its probability.

    Each id is kept on an interval of offsets of length p/tau, so R equally spaced offsets err by at most
    one offset: tau/R, and tau <= 1/(number of sampled ids).
    """
    v, r = 300, 2000
    logits = torch.randn(1, v, generator=torch.Generator().manual_seed(k)) * scale
    offsets = (torch.arange(r, dtype=torch.float64) + 0.5) / r
    ids, weights, _ = draw(logits.repeat(r, 1), k, offsets, temperature)
    mean = torch.zeros(v, dtype=torch.float64).scatter_add_(0, ids.flatten(), weights.flatten()) / r
    p = torch.softmax(logits[0].double() / temperature, 0)
    tau = weights.min()
    assert float((mean - p).abs().max()) <= 1.5 * float(tau) / r + 1e-6


def test_random_offsets_are_unbiased_within_four_standard_errors():
    v, k, r = 400, 12, 10_000
    logits = torch.randn(1, v, generator=torch.Generator().manual_seed(1)) * 3
    u = torch.from_numpy(np.random.default_rng(5).random(r))
    ids, weights, _ = draw(logits.repeat(r, 1), k, u)
    dense = torch.zeros(r, v, dtype=torch.float64).scatter_add_(1, ids, weights)
    p = torch.softmax(logits[0].double(), 0)
    random = dense.std(0) > 1e-6
    error = (dense.mean(0) - p).abs()
    assert int((random & (p > 1e-4)).sum()) > 100
    assert float((error / (dense.std(0) / r**0.5))[random & (p > 1e-4)].max()) < 4.5
    assert float(error[~random & (p > 1e-2)].max()) < 1e-6  # the head: the same value in every draw


def test_less_squared_error_than_drawing_with_replacement():
    v, r = 2000, 400
    logits = torch.randn(1, v, generator=torch.Generator().manual_seed(2)) * 3
    p = torch.softmax(logits[0].double(), 0)
    g = torch.Generator().manual_seed(3)
    draws = torch.multinomial(p, r * 20, replacement=True, generator=g).view(r, 20)
    counts = torch.zeros(r, v, dtype=torch.float64).scatter_add_(
        1, draws, torch.ones(r, 20, dtype=torch.float64)
    )
    k = round(float((counts > 0).sum(1).double().mean()))
    replaced = ((counts / 20 - p) ** 2).sum(1).mean()
    ids, weights, _ = draw(logits.repeat(r, 1), k, torch.rand(r, dtype=torch.float64, generator=g))
    dense = torch.zeros(r, v, dtype=torch.float64).scatter_add_(1, ids, weights)
    assert ((dense - p) ** 2).sum(1).mean() < 0.8 * replaced


def test_the_head_is_kept_at_its_own_value_and_the_tail_at_tau():
    logits = torch.tensor([[3.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    p = torch.softmax(logits[0].double(), 0)
    ids, weights, _ = draw(logits, 4, torch.tensor([0.3], dtype=torch.float64))
    assert ids[0, :2].tolist() == [0, 1]
    torch.testing.assert_close(weights[0, :2], p[:2], rtol=1e-6, atol=0)
    torch.testing.assert_close(weights[0, 2:], (p[2:].sum() / 2).repeat(2), rtol=1e-6, atol=0)


def test_peaked_and_flat_rows_stay_finite():
    logits = torch.zeros(3, 100)
    logits[0, 9] = 1e4  # every other probability underflows, even in float64
    logits[1, 9] = 60.0
    ids, weights, s = draw(logits, 6, torch.rand(3, dtype=torch.float64))
    assert bool(s.logp.isfinite().all())
    assert int(ids[0, 0]) == 9
    torch.testing.assert_close(
        weights.sum(1), torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_all_ids_kept_is_the_distribution_itself():
    logits = torch.randn(5, 16)
    ids, weights, _ = draw(logits, 16, torch.rand(5, dtype=torch.float64))
    dense = torch.zeros(5, 16, dtype=torch.float64).scatter_add_(1, ids, weights)
    torch.testing.assert_close(dense, torch.softmax(logits.double(), 1), rtol=1e-5, atol=1e-7)


def test_two_temperatures_are_refused():
    with pytest.raises(ConfigError, match="one temperature"):
        make_estimator("sampled", {"k": 3, "temperatures": (1.0, 2.0)})
