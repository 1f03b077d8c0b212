import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlabels.core.targets import SoftTargets, gaps_from_logp
from softlabels.errors import ConfigError
from softlabels.estimators import make_estimator
from softlabels.estimators.topp import TopP

GRID = (0.5, 1.0, 2.0)


def targets_of(estimator, logits):
    s = estimator.select(logits.clone())
    t = SoftTargets(
        ids=torch.where(s.logp > -torch.inf, s.ids, s.ids[:, :1]).int().numpy(),
        gaps=gaps_from_logp(s.logp.numpy()),
        log_odds=s.log_odds.numpy(),
        temperatures=estimator.temperatures,
        vocab_size=logits.shape[1],
        estimator="topp",
    )
    t.validate()
    return t


@given(
    seed=st.integers(0, 2**31),
    v=st.integers(2, 300),
    k=st.integers(1, 60),
    low=st.integers(1, 60),
    top_p=st.floats(0.05, 1.0),
    scale=st.sampled_from([0.0, 1.0, 6.0, 30.0]),
)
def test_the_fewest_ids_that_reach_the_mass_and_an_exact_tail(seed, v, k, low, top_p, scale):
    k = min(k, v)
    low = min(low, k)
    logits = torch.randn(4, v, generator=torch.Generator().manual_seed(seed)) * scale
    t = targets_of(TopP(k=k, top_p=top_p, min_k=low, temperatures=GRID), logits)
    p = torch.softmax(logits.double(), 1).sort(1, descending=True).values
    for n, count in enumerate(t.kept.sum(1).tolist()):
        assert low <= count <= k
        if count < k:
            assert float(p[n, :count].sum()) >= top_p - 1e-6
        if count > low:
            assert float(p[n, : count - 1].sum()) <= top_p + 1e-6
    ids = torch.from_numpy(t.ids.copy()).long()
    kept = torch.from_numpy(t.kept)
    for temperature in GRID:
        q = torch.softmax(logits.double() / temperature, 1)
        found = torch.from_numpy(t.probs(temperature)).double()
        torch.testing.assert_close(found, q.gather(1, ids) * kept, rtol=2e-5, atol=1e-30)
        for n in range(4):
            outside = q[n].clone()
            outside[ids[n][kept[n]]] = 0.0
            assert t.tail(temperature)[n] == pytest.approx(
                float(outside.sum()), rel=2e-5, abs=1e-37
            )


def test_a_certain_teacher_costs_one_id_and_an_uncertain_one_all_it_may():
    logits = torch.zeros(2, 100)
    logits[0, 42] = 30.0
    t = targets_of(TopP(k=20, top_p=0.9), logits)
    assert t.kept.sum(1).tolist() == [1, 20]
    assert t.ids[0, 0] == 42


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"k": 5, "top_p": 0.0}, "--top-p 0"),
        ({"k": 5, "top_p": 1.2}, "--top-p 1.2"),
        ({"k": 5, "top_p": float("nan")}, "--top-p nan"),
        ({"k": 5, "top_p": 0.5, "min_k": 6}, "--min-k 6"),
        ({"k": 5, "top_p": 0.5, "min_k": 0}, "--min-k 0"),
        ({"k": 0, "top_p": 0.5}, "--k 0"),
        ({"k": 5, "top_p": 0.5, "temperatures": (2.0,)}, "T=1"),
    ],
)
def test_impossible_parameters_are_refused(parameters, word):
    with pytest.raises(ConfigError, match=word):
        make_estimator("topp", parameters)
