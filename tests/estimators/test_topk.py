import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlabels.core.targets import SoftTargets, gaps_from_logp
from softlabels.errors import ConfigError
from softlabels.estimators import make_estimator
from softlabels.estimators.topk import TopK


def targets_of(estimator, logits, uniforms=None):
    s = estimator.select(logits.clone(), uniforms)
    return SoftTargets(
        ids=s.ids.int().numpy(),
        gaps=gaps_from_logp(s.logp.numpy()),
        log_odds=s.log_odds.numpy(),
        temperatures=estimator.temperatures,
        vocab_size=logits.shape[1],
        estimator="topk",
    )


@given(
    seed=st.integers(0, 2**31),
    v=st.integers(2, 400),
    k=st.integers(1, 400),
    scale=st.sampled_from([0.0, 1.0, 8.0, 40.0]),
)
def test_equals_a_float64_softmax_at_every_temperature(seed, v, k, scale):
    k = min(k, v)
    logits = torch.randn(3, v, generator=torch.Generator().manual_seed(seed)) * scale
    grid = (0.5, 1.0, 2.0, 4.0)
    t = targets_of(TopK(k=k, temperatures=grid), logits)
    t.validate()
    for temperature in grid:
        p = torch.softmax(logits.double() / temperature, dim=1)
        kept = p.gather(1, torch.from_numpy(t.ids).long())
        torch.testing.assert_close(
            torch.from_numpy(t.probs(temperature)).double(), kept, rtol=2e-5, atol=1e-30
        )
        # The tail as a sum of its own terms, not 1 - kept: relative precision even where it is tiny.
        tail = p.scatter(1, torch.from_numpy(t.ids).long(), 0.0).sum(1)
        torch.testing.assert_close(
            torch.from_numpy(t.tail(temperature)).double(), tail, rtol=2e-5, atol=1e-37
        )


def test_a_tail_of_1e9th_and_a_head_of_1e9th_keep_their_digits():
    v = 50_000
    peaked = torch.zeros(1, v)
    peaked[0, 7] = 32.0
    t = targets_of(TopK(k=1), peaked)
    tail = (v - 1) * torch.exp(torch.tensor(-32.0, dtype=torch.float64))
    assert t.tail(1.0)[0] == pytest.approx(float(tail / (1 + tail)), rel=1e-5)
    flat = torch.zeros(1, v)
    t = targets_of(TopK(k=1), flat)
    assert t.probs(1.0)[0, 0] == pytest.approx(1 / v, rel=1e-5)


def test_a_peaked_teacher_gives_no_nan():
    logits = torch.zeros(2, 100)
    logits[:, 3] = 1e4
    t = targets_of(TopK(k=5, temperatures=(1.0, 4.0)), logits)
    t.validate()
    assert t.probs(4.0)[0, 0] == 1.0
    assert t.tail(1.0)[0] == 0.0


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"k": 0}, "--k 0"),
        ({"k": 3, "temperatures": (2.0,)}, "T=1"),
        ({"k": 3, "temperatures": ()}, "--temperature"),
        ({"k": 3, "temperatures": (1.0, 1.0)}, "twice"),
        ({"k": 3, "temperatures": (1.0, -2.0)}, "-2"),
        ({"k": 3, "temperatures": (1.0, float("nan"))}, "nan"),
    ],
)
def test_impossible_parameters_are_refused(parameters, word):
    with pytest.raises(ConfigError, match=word):
        make_estimator("topk", parameters)


def test_more_ids_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="only 10"):
        TopK(k=11).check_vocab(10)
