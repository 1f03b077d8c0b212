import pytest
import torch

from softlabels.core.targets import SoftTargets, gaps_from_logp
from softlabels.errors import ConfigError
from softlabels.estimators.dense import Dense


def test_every_class_is_kept_at_every_temperature():
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)) * 5
    estimator = Dense(k=10, temperatures=(1.0, 3.0))
    estimator.check_vocab(10)
    s = estimator.select(logits.clone())
    t = SoftTargets(
        ids=s.ids.int().numpy(),
        gaps=gaps_from_logp(s.logp.numpy()),
        log_odds=s.log_odds.numpy(),
        temperatures=(1.0, 3.0),
        vocab_size=10,
        estimator="dense",
    )
    t.validate()
    for temperature in (1.0, 3.0):
        p = torch.softmax(logits.double() / temperature, 1)
        torch.testing.assert_close(
            torch.from_numpy(t.dense(temperature)).double(), p, rtol=1e-5, atol=1e-8
        )
        assert float(t.tail(temperature).max()) == 0.0


def test_another_k_than_all_is_refused():
    with pytest.raises(ConfigError, match="keeps all 10 ids; give --k 10"):
        Dense(k=9).check_vocab(10)
