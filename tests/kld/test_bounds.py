"""What stored numbers leave open, and the bounds that allow for it, against whole distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from softlabels.codecs import make_codec
from softlabels.codecs.summary import held_entropy
from softlabels.core.summary import Summary
from softlabels.core.targets import SoftTargets
from softlabels.format.identity import EncodingRecord
from softlabels.kld.bins import Reference, accepted, divergence, expected_excess, rounded
from softlabels.kld.said import rounding, slack, tail_entropy

CODECS = (
    "nat8",
    "nat16",
    "nat64",
    "float16",
    "float32",
    "companded",
    "companded?finest=16&coarsest=1",
)


def stored(logp: np.ndarray, k: int, values: str) -> tuple[SoftTargets, EncodingRecord]:
    """The k likeliest of `logp [N, V]` and its entropy, as a codec holds them."""
    ids = np.argsort(-logp, 1)[:, :k]
    kept = np.take_along_axis(logp, ids, 1)
    rest = np.exp(np.delete(np.sort(logp, 1), np.s_[-k:], 1)).sum(1)
    odds = np.log(rest / np.exp(kept).sum(1))[:, None]
    exact = SoftTargets(
        ids=ids.astype(np.int32),
        gaps=(kept[:, :1] - kept).astype(np.float32),
        log_odds=odds.astype(np.float32),
        temperatures=(1.0,),
        vocab_size=logp.shape[1],
        estimator="topk",
    )
    codec = make_codec(values)
    numbers = codec.to_numbers(exact, None)
    scores = codec.scores(numbers.values)
    entropy = held_entropy((-np.exp(logp) * logp).sum(1).astype(np.float32)).astype(np.float32)
    return SoftTargets(
        ids=exact.ids,
        gaps=scores.max(1, keepdims=True) - scores,
        log_odds=codec.odds(numbers.odds),
        temperatures=(1.0,),
        vocab_size=logp.shape[1],
        estimator="topk",
        summary=Summary(
            label_logp=np.zeros(len(logp), np.float32),
            entropy=entropy,
            top=ids[:, 0].astype(np.int32),
        ),
    ), EncodingRecord(
        profile="packed",
        container="parquet",
        values=values,
        relative_error=codec.relative_error,
        absolute_error=codec.absolute_error(sample=False),
    )


def distributions(seed: int, sharp: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities `[8, 60]` of two that are near."""
    g = np.random.default_rng(seed)
    z = sharp * g.normal(size=(8, 60))
    both = (z, z + noise * g.normal(size=z.shape))
    p, q = (x - np.logaddexp.reduce(x, 1, keepdims=True) for x in both)
    return p, q


@pytest.mark.parametrize("values", CODECS)
@given(
    seed=st.integers(0, 2**32 - 1),
    sharp=st.sampled_from([0.1, 1.0, 4.0, 12.0]),
    noise=st.sampled_from([0.0, 0.003, 0.1, 2.0]),
    k=st.integers(1, 59),
)
@example(seed=938, sharp=12.0, noise=0.0, k=50)  # a gap of 36.6 nats, rounded three times
def test_the_true_numbers_are_within_the_bounds(values, seed, sharp, noise, k):
    logp, logq = distributions(seed, sharp, noise)
    targets, encoding = stored(logp, k, values)
    others = np.take_along_axis(logp, np.argsort(-logp, 1)[:, k:], 1)
    tail = np.logaddexp.reduce(others, 1)
    bins = np.column_stack([np.take_along_axis(logp, targets.ids, 1), tail])
    off = slack(targets, encoding)
    held = targets.log_bins(1.0)
    assert (np.abs(held - bins) <= off).all()
    inside = others - tail[:, None]
    assert (tail_entropy(held, off, targets) <= -(np.exp(inside) * inside).sum(1) + 1e-9).all()

    beyond = np.take_along_axis(logq, np.argsort(-logp, 1)[:, k:], 1)
    q = np.column_stack([np.take_along_axis(logq, targets.ids, 1), np.logaddexp.reduce(beyond, 1)])
    true = (np.exp(bins) * (bins - q)).sum(1)
    least, most = (x.numpy() for x in rounded(*map(torch.from_numpy, (held, q, off))))
    assert (least <= true + 1e-12).all()
    assert (true <= most + 1e-12).all()

    nothing = torch.zeros(len(q), dtype=torch.int64)
    kept = torch.ones(targets.ids.shape, dtype=torch.bool)
    reference = Reference(
        ids=torch.from_numpy(targets.ids.astype(np.int64)),
        kept=kept,
        log_p=torch.from_numpy(held),
        slack=torch.from_numpy(off),
        rounding=torch.from_numpy(rounding(targets, encoding)),
        label=nothing,
        top=nothing,
    )
    low, high = (x.numpy() for x in accepted(reference, torch.from_numpy(q), logp.shape[1]))
    share = np.exp(np.minimum(logp, logq)).sum(1)
    assert (low <= share + 1e-12).all()
    assert (share <= high + 1e-12).all()


@pytest.mark.parametrize("values", ["nat8", "companded?finest=32&coarsest=2"])
def test_rounding_adds_what_is_expected_of_it(values):
    """Of many positions that are equal to the candidate's: all of their KL is rounding."""
    g = np.random.default_rng(0)
    z = 2 * g.normal(size=(4000, 60))
    logp = z - np.logaddexp.reduce(z, 1, keepdims=True)
    targets, encoding = stored(logp, 40, values)
    tail = np.log1p(-np.exp(np.take_along_axis(logp, targets.ids, 1)).sum(1))
    q = torch.from_numpy(np.column_stack([np.take_along_axis(logp, targets.ids, 1), tail]))
    held = torch.from_numpy(targets.log_bins(1.0))
    off = torch.from_numpy(rounding(targets, encoding))
    found, expected = divergence(held, q), expected_excess(held, off)
    assert float(found.mean()) > 1e-4
    assert float(found.mean()) == pytest.approx(float(expected.mean()), rel=0.15)


def test_an_impossible_kept_id_makes_every_bound_infinite():
    p = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]], dtype=torch.float64).log()
    q = torch.tensor([[0.6, 0.0, 0.4], [0.6, 0.2, 0.2]], dtype=torch.float64).log()
    least, most = rounded(p, q, torch.full_like(p, 0.01))
    assert torch.isinf(least).tolist() == [True, False]
    assert torch.isinf(most).tolist() == [True, False]
