"""What every estimator says of the whole distribution, against dense float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlabels.estimators import make_estimator, tiles
from softlabels.estimators.entropy import whole

GRIDS = {"topk": (0.5, 1.0, 2.0, 3.0, 4.0), "topp": (1.0, 2.0), "dense": (1.0,)}


def select(name, logits, k, grid=None):
    parameters = {"k": k, "temperatures": grid or GRIDS.get(name, (1.0,))}
    if name == "topp":
        parameters["top_p"] = 0.7
    estimator = make_estimator(name, parameters)
    uniforms = torch.rand(len(logits), estimator.uniforms, dtype=torch.float64)
    return estimator, estimator.select(logits.clone(), uniforms if estimator.uniforms else None)


@given(
    name=st.sampled_from(["topk", "topp", "dense", "sampled", "rs", "systematic"]),
    n=st.integers(1, 9),
    v=st.sampled_from([3, 40, 500]),
    scale=st.sampled_from([0.0, 1.0, 8.0, 60.0]),
    shift=st.sampled_from([0.0, -1e3, 3e3]),
    seed=st.integers(0, 2**32),
)
def test_it_equals_the_dense_one_of_every_estimator(name, n, v, scale, shift, seed):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, v, generator=g) * scale + shift
    estimator, found = select(name, logits, v if name == "dense" else min(v, 7))
    assert estimator.gives_whole
    seen = found.whole
    p = torch.log_softmax(logits.double(), dim=1)
    reference = -(p.exp() * p).sum(1)
    slack = 4e-6 + 3e-7 * (abs(shift) + scale)  # of float32 logits
    np.testing.assert_allclose(seen.entropy, reference, rtol=2e-6, atol=slack)
    label = torch.randint(0, v, (n, 1), generator=g)
    logp = seen.logp(logits.gather(1, label)[:, 0])
    np.testing.assert_allclose(logp, p.gather(1, label)[:, 0], rtol=1e-6, atol=slack)
    assert (logits.gather(1, seen.top[:, None])[:, 0] == logits.amax(1)).all()
    alone = whole(logits)
    np.testing.assert_allclose(alone.entropy, reference, rtol=2e-6, atol=slack)
    np.testing.assert_allclose(alone.log_mass, seen.log_mass, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["topk", "topp", "dense", "sampled", "rs", "systematic"])
def test_an_id_that_a_model_masks_has_no_part_in_it(name):
    """finfo.min is finite, and zero times what it overflows to is not."""
    logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(0)) + 30
    logits[1, 17] = torch.finfo(torch.float32).min
    _, found = select(name, logits, 200 if name == "dense" else 5)
    p = torch.softmax(logits.double(), dim=1)
    reference = torch.special.entr(p).sum(1)
    np.testing.assert_allclose(found.whole.entropy, reference, rtol=2e-6)


@pytest.mark.parametrize("name", ["topk", "sampled", "rs"])
def test_a_certain_teacher_keeps_its_digits(name):
    logits = torch.full((2, 300), -25.0)
    logits[:, 5] = 0.0
    _, found = select(name, logits, 3)
    rest = 299 * np.exp(-25.0)
    np.testing.assert_allclose(found.whole.entropy, 26 * rest, rtol=1e-5)
    logp = found.whole.logp(torch.tensor([-25.0, 0.0]))
    np.testing.assert_allclose(logp, [-25, -rest], rtol=1e-5)


@pytest.mark.parametrize("name", ["sampled", "rs"])
def test_a_sample_at_another_temperature_leaves_it_to_whoever_asks(name):
    estimator, found = select(name, torch.randn(2, 50), 4, (2.0,))
    assert not estimator.gives_whole
    assert found.whole is None


def test_it_does_not_depend_on_how_rows_are_taken_together(monkeypatch):
    logits = torch.randn(37, 400, generator=torch.Generator().manual_seed(3)) * 4
    _, together = select("topk", logits, 6)
    monkeypatch.setattr(tiles, "CACHED", 4 * 400)  # one row at a time
    _, alone = select("topk", logits, 6)
    torch.testing.assert_close(together.whole.entropy, alone.whole.entropy, rtol=1e-7, atol=0)
    torch.testing.assert_close(together.log_odds, alone.log_odds, rtol=1e-6, atol=1e-6)
