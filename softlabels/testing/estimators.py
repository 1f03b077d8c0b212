"""The contract of `softlabels.estimators.Estimator`, against a dense float64 softmax."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softlabels.core.targets import SoftTargets, gaps_from_logp
from softlabels.estimators import ESTIMATORS, Estimator, Selection, make_estimator

RELATIVE = 1e-4
DRAWS, SIGMAS, FEW = 20_000, 5.0, 40
"""Draws over which a sample's weights are averaged, standard errors that they may be off, and ids drawn from."""


def check_estimator(spec: str, *, vocab_size: int = 300, **flags: Any) -> None:
    """Check a registered estimator: what it declares, selects and says of the whole distribution.

    Args:
        spec: as `--estimator` takes it, e.g. `topk` or `mine?sharpness=2`.
        vocab_size: V.
        **flags: what flags say: `k` (default 5), `temperatures` (default 1), `top_p`, …

    Raises:
        AssertionError: says which part of the contract is broken.
        ConfigError: there is no such estimator, or it refuses what is asked of it.
    """
    flags = {"k": 5, "temperatures": (1.0,)} | flags
    spelled = ESTIMATORS.spelled(spec, **flags)
    estimator = make_estimator(spec, flags)
    assert make_estimator(spelled, flags) == estimator, (
        f"{spec}: is recorded as {spelled}, which makes another estimator; have it compare by its fields"
    )
    assert isinstance(estimator.k, int), f"{spec}: k is {estimator.k!r}, expected a whole number"
    estimator.check_vocab(vocab_size)
    for name, logits in _logits(vocab_size):
        where = f"{spec} on {name} logits"
        uniforms = _uniforms(estimator, len(logits))
        found = estimator.select(logits.clone(), uniforms)
        _check_shapes(estimator, found, logits, where)
        _check_alone(estimator, found, logits, uniforms, where)
        targets = targets_of(spelled, estimator, logits, uniforms)
        targets.validate(where=where)
        if estimator.keeps.sample:
            _check_weights(targets, found, logits, where)
        else:
            _check_probabilities(targets, logits, where)
        _check_whole(estimator, found, logits, where)
    if estimator.keeps.sample:
        _check_unbiased(spec, estimator)


def targets_of(
    name: str, estimator: Estimator, logits: Tensor, uniforms: Tensor | None = None
) -> SoftTargets:
    """What a build makes of a selection from `logits [n, V]`."""
    found = estimator.select(logits.clone(), uniforms)
    return SoftTargets(
        ids=found.ids.to(torch.int32).numpy(),
        gaps=gaps_from_logp(found.logp.numpy()),
        log_odds=found.log_odds.numpy(),
        temperatures=tuple(estimator.temperatures),
        vocab_size=logits.shape[1],
        estimator=name,
        declared=estimator.keeps,
    )


def _logits(v: int) -> Iterator[tuple[str, Tensor]]:
    """`[n, V]` of kinds that are met: any scale, ties, certainty, ids that a model masks."""
    noise = torch.randn(6, v, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 8.0, 40.0):
        yield f"normal times {scale:g}", noise * scale
    yield "equal", torch.zeros(2, v)
    certain = noise.clone()
    certain[:, v // 2] = 1e4
    yield "certain", certain
    masked = noise.clone()
    masked[:, ::7] = torch.finfo(torch.float32).min
    yield "partly masked", masked


def _uniforms(estimator: Estimator, n: int, seed: int = 1) -> Tensor | None:
    if not estimator.uniforms:
        return None
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, estimator.uniforms, generator=g, dtype=torch.float64)


def _check_shapes(estimator: Estimator, found: Selection, logits: Tensor, where: str) -> None:
    n, v = logits.shape
    k, grid = found.ids.shape[1], len(estimator.temperatures)
    assert found.ids.dtype == torch.int64, f"{where}: ids are {found.ids.dtype}, expected int64"
    assert k <= estimator.k, f"{where}: gives {k} ids, its k says at most {estimator.k}"
    for name, shape in (
        ("ids", (n, k)),
        ("logp", (n, k)),
        ("log_odds", (n, grid)),
        ("log_norm", (n,)),
    ):
        value = getattr(found, name)
        assert tuple(value.shape) == shape, f"{where}: {name} is {tuple(value.shape)}, not {shape}"
        assert name == "ids" or value.dtype == torch.float32, f"{where}: {name} is {value.dtype}"
    assert 0 <= int(found.ids.min()) <= int(found.ids.max()) < v, (
        f"{where}: an id outside 0..{v - 1}"
    )
    assert not (found.logp.isnan() | found.logp.isposinf()).any(), f"{where}: logp is NaN or +inf"
    expected = torch.logsumexp(logits.double() / found.reference, 1)
    _close(found.log_norm, expected, where, f"log_norm at reference T={found.reference:g}")


def _check_alone(
    estimator: Estimator, found: Selection, logits: Tensor, uniforms: Tensor | None, where: str
) -> None:
    """A position's selection depends on nothing but its own logits and uniforms: chunks are cut anywhere."""
    for i in range(len(logits)):
        u = None if uniforms is None else uniforms[i : i + 1]
        alone = estimator.select(logits[i : i + 1].clone(), u)
        kept = found.logp[i] > -torch.inf
        same = torch.equal(alone.ids[0][alone.logp[0] > -torch.inf], found.ids[i][kept])
        assert same, f"{where}: position {i} keeps other ids alone than beside others"
        _close(alone.logp[0], found.logp[i], where, f"logp of position {i} alone")


def _check_probabilities(t: SoftTargets, logits: Tensor, where: str) -> None:
    keeps, ids, kept = t.keeps, torch.from_numpy(t.ids).long(), torch.from_numpy(t.kept)
    inside = torch.zeros(logits.shape, dtype=torch.bool).scatter_(1, ids, kept)
    for i, temperature in enumerate(t.temperatures):
        p = torch.softmax(logits.double() / temperature, 1)
        at = f"at T={temperature:g}"
        if keeps.tail or bool(inside.all()):
            expected = torch.where(kept, p.gather(1, ids), 0.0)
            _close(torch.from_numpy(t.probs(temperature)), expected, where, f"probabilities {at}")
            outside = torch.where(inside, 0.0, p).sum(1)
            _close(torch.from_numpy(t.tail(temperature)), outside, where, f"tail {at}")
        if not keeps.tail:
            assert np.isneginf(t.log_odds[:, i]).all(), (
                f"{where}: declares no tail, and has one {at}"
            )
    if keeps.largest:
        least = logits.masked_fill(~inside, torch.inf).amin(1)
        most = logits.masked_fill(inside, -torch.inf).amax(1)
        assert bool((least >= most).all()), (
            f"{where}: declares `largest`, and leaves out a likelier id"
        )


def _check_weights(t: SoftTargets, found: Selection, logits: Tensor, where: str) -> None:
    assert np.isneginf(t.log_odds).all(), f"{where}: is a sample, and has a tail"
    weights = found.logp.double().exp()
    _close(weights.sum(1), torch.ones(len(weights)).double(), where, "sum of the weights")
    if t.keeps.sure:
        p = torch.softmax(logits.double() / t.temperatures[0], 1).gather(1, found.ids)
        least = weights.masked_fill(weights == 0, torch.inf).amin(1, keepdim=True)
        heavy = weights > least * (1 + 1e-3)
        _close(weights[heavy], p[heavy], where, "weights of the ids that are sure to be kept")


def _check_unbiased(spec: str, estimator: Estimator) -> None:
    """The mean of the weights is the teacher's probability, within some standard errors."""
    v = max(FEW, estimator.k)
    logits = torch.randn(1, v, generator=torch.Generator().manual_seed(2)) * 2
    p = torch.softmax(logits.double() / estimator.temperatures[0], 1)[0]
    found = estimator.select(logits.repeat(DRAWS, 1), _uniforms(estimator, DRAWS, seed=3))
    weights = found.logp.double().exp()
    mean = torch.zeros(v).double().scatter_add_(0, found.ids.flatten(), weights.flatten()) / DRAWS
    # The variance of a weight w is at most E[w²], which is at most p times the largest weight.
    slack = SIGMAS * (p * weights.max() / DRAWS).sqrt() + 1e-6
    worst = int(((mean - p).abs() / slack).argmax())
    assert bool(((mean - p).abs() <= slack).all()), (
        f"{spec}: declares a sample, and the weights of id {worst} average to {mean[worst]:.4g} over {DRAWS} draws; "
        f"its probability is {p[worst]:.4g}"
    )


def _check_whole(estimator: Estimator, found: Selection, logits: Tensor, where: str) -> None:
    if not estimator.gives_whole:
        assert found.whole is None, f"{where}: comes with `whole`, and gives_whole is False"
        return
    assert found.whole is not None, f"{where}: gives_whole is True, and it comes without `whole`"
    logp = torch.log_softmax(logits.double(), 1)
    _close(found.whole.entropy, -(logp.exp() * logp).sum(1), where, "entropy")
    _close(found.whole.largest, logits.amax(1), where, "largest logit")
    _close(found.whole.log_mass, -logp.amax(1), where, "log_mass")
    at_top = logits.gather(1, found.whole.top[:, None])[:, 0]
    assert torch.equal(at_top, logits.amax(1)), f"{where}: `top` is not the likeliest id"


def _close(found: Tensor, expected: Tensor, where: str, what: str) -> None:
    found, expected = found.double(), expected.double()
    same = torch.isclose(found, expected, rtol=RELATIVE, atol=1e-5)
    assert bool(same.all()), (
        f"{where}: {what}: {float(found[~same].flatten()[0]):.6g}, expected {float(expected[~same].flatten()[0]):.6g}"
    )
