"""The contract of `softlabels.codecs.ValueCodec`: bounds, order, and numbers that come back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt

from softlabels.codecs import CODECS, PlainCodec, ValueCodec, make_codec
from softlabels.core.kept import KeptSet
from softlabels.core.targets import SoftTargets

N, K = 300, 9
DRAWS, SIGMAS = 20_000, 5.0
"""Roundings over which weights are averaged, and standard errors that they may be off."""
GRID = (1.0, 2.0)
NEAR = 9.0
"""Nats between two weights of a sample, at most."""
SLACK = 1e-4
"""Of single precision: gaps and log-odds are held in it."""


def check_codec(spec: str) -> None:
    """Check a registered codec on targets of many shapes, of distributions and of samples.

    Args:
        spec: as `--values` takes it, e.g. `nat16` or `mine?step=0.1`.

    Raises:
        AssertionError: says which part of the contract is broken.
        ConfigError: there is no such codec.
    """
    spelled = CODECS.spelled(spec)
    codec, again = make_codec(spec), make_codec(spelled)
    for sample in (False, True):
        assert codec.absolute_error(sample=sample) >= 0 <= codec.relative_error, (
            f"{spec}: bound below 0"
        )
    for name, targets in _targets():
        if codec.samples_only:  # whose weights are never far apart
            if not targets.keeps.sample:
                continue
            near = np.where(targets.kept, np.minimum(targets.gaps, NEAR), np.inf)
            targets = replace(targets, gaps=near.astype(np.float32))
        where = f"{spec} on {name}"
        u = np.random.default_rng(1).random(targets.ids.shape) if targets.keeps.sample else None
        numbers = codec.to_numbers(targets, None if u is None else u.copy())
        for what, found, shape in (
            ("values", numbers.values, targets.ids.shape),
            ("odds", numbers.odds, targets.log_odds.shape),
        ):
            assert found.dtype == np.uint32, f"{where}: {what} are {found.dtype}, expected uint32"
            assert found.shape == shape, f"{where}: {what} are {found.shape}, expected {shape}"
        twice = again.to_numbers(targets, u)
        for a, b in zip(numbers, twice, strict=True):
            assert np.array_equal(a, b), (
                f"{where}: {spelled} gives other numbers, or they differ from time to time"
            )
        if u is None:  # the weights of a sample are rounded at random
            _check_order(targets, numbers.values, where)
        _check_back(codec, targets, _back(again, targets, numbers.values, numbers.odds), where)
    if codec.unbiased:
        _check_unbiased(spec, codec)
    if codec.plain:
        _check_plain(spec, cast(PlainCodec, codec))


def _targets() -> Iterator[tuple[str, SoftTargets]]:
    rng = np.random.default_rng(0)
    shape = (N, K)
    kinds = {
        "common gaps": rng.exponential(3, shape),
        "small gaps": rng.random(shape) * 0.05,
        "equal gaps": np.where(rng.random(shape) < 0.3, 0, rng.exponential(2, (N, 1))),
        "large gaps": rng.exponential(30, shape),
    }
    odds = rng.choice([-20.0, -3.0, 0.0, 0.7, 12.0, -np.inf], (N, len(GRID)))
    for name, gaps in kinds.items():
        gaps[:, 0] = 0
        ragged = gaps.copy()
        ragged[np.arange(K) >= rng.integers(1, K + 1, (N, 1))] = np.inf
        for what, some in ((name, gaps), (f"{name}, ragged", ragged)):
            yield what, _of(some, odds, GRID, KeptSet())
            yield f"{what}, a sample", _of(some, np.full((N, 1), -np.inf), (2.0,), SAMPLE)
    hard = _of(kinds["common gaps"], odds, GRID, KeptSet())
    yield "some hard-label only", hard.hard_label_only(np.arange(N) % 3 == 0)
    yield "no positions", hard[:0]


SAMPLE = KeptSet(sample=True, tail=False)


def _of(
    gaps: npt.NDArray[np.float64],
    odds: npt.NDArray[np.float64],
    grid: tuple[float, ...],
    keeps: KeptSet,
) -> SoftTargets:
    return SoftTargets(
        ids=np.tile(np.arange(K, dtype=np.int32), (len(gaps), 1)),
        gaps=gaps.astype(np.float32),
        log_odds=odds.astype(np.float32),
        temperatures=grid,
        vocab_size=1000,
        estimator="made-up",
        declared=keeps,
    )


def _check_order(t: SoftTargets, values: npt.NDArray[np.uint32], where: str) -> None:
    order = np.argsort(t.gaps, axis=1, kind="stable")
    kept = np.take_along_axis(t.kept, order, 1)[:, 1:]
    sorted_values = np.take_along_axis(values, order, 1).astype(np.int64)
    assert (np.diff(sorted_values, axis=1)[kept] >= 0).all(), (
        f"{where}: a less likely id has a smaller number"
    )


def _back(
    codec: ValueCodec,
    t: SoftTargets,
    values: npt.NDArray[np.uint32],
    odds: npt.NDArray[np.uint32],
) -> SoftTargets:
    """What a reader makes of the numbers."""
    scores = np.where(t.kept, codec.scores(values), -np.inf)
    soft = t.soft
    most = scores.max(axis=1, keepdims=True, initial=-np.inf)
    gaps = np.where(soft[:, None], np.where(soft[:, None], most, 0) - scores, np.inf)
    return replace(t, gaps=gaps.astype(np.float32), log_odds=codec.odds(odds))


def _check_back(codec: ValueCodec, t: SoftTargets, back: SoftTargets, where: str) -> None:
    back.validate(where=where)
    relative, absolute = codec.relative_error, codec.absolute_error(sample=t.keeps.sample)
    infinite = ~np.isfinite(t.log_odds)
    assert np.array_equal(back.log_odds[infinite], t.log_odds[infinite]), (
        f"{where}: infinite log-odds are lost"
    )
    a, b = t.log_odds[~infinite], back.log_odds[~infinite]
    bound = relative * np.abs(a) + codec.absolute_error(sample=False) + SLACK
    assert (np.abs(a - b) <= bound).all(), f"{where}: log-odds are further off than the bound"
    kept = t.kept
    held = codec.rounding(back.gaps.astype(np.float64))
    if held is not None and not t.keeps.sample:
        assert (np.abs(a - b) <= held.odds + SLACK).all(), f"{where}: log-odds, beyond `rounding`"
        off = np.abs(t.gaps[kept] - back.gaps[kept].astype(np.float64))
        assert (off <= held.gaps[kept] + SLACK * (1 + t.gaps[kept] / 100)).all(), (
            f"{where}: a gap is further off than `rounding` says"
        )
    one = t.temperatures[0]
    logp, found = t.log_probs(one), back.log_probs(one)
    # A number of a codec in steps is within the bound; of a float the sum that it is divided by is not exact, either.
    reach = np.where(kept, np.abs(logp), 0).max(axis=1, initial=0)[:, None]
    bound = np.broadcast_to(
        2 * relative * (reach + 1) + absolute + SLACK * (1 + reach / 100), kept.shape
    )
    error = np.abs(np.where(kept, logp, 0) - np.where(kept, found, 0))
    assert (error <= bound).all(), (
        f"{where}: a log-probability is off by {error.max():.4g} nats, beyond its bound"
    )


def _check_unbiased(spec: str, codec: ValueCodec) -> None:
    """The mean of the weights that a reader derives is the weight, within some standard errors."""
    rng = np.random.default_rng(3)
    gaps = rng.exponential(2, K)
    gaps[0] = 0
    weight = np.exp(-gaps) / np.exp(-gaps).sum()
    shape = (DRAWS, K)
    targets = _of(np.tile(gaps, (DRAWS, 1)), np.full((DRAWS, 1), -np.inf), (1.0,), SAMPLE)
    numbers = codec.to_numbers(targets, rng.random(shape))
    found = _back(codec, targets, numbers.values, numbers.odds).probs(1.0).astype(np.float64)
    slack = SIGMAS * found.std(axis=0) / DRAWS**0.5 + 1e-6
    error = np.abs(found.mean(axis=0) - weight)
    worst = int((error / slack).argmax())
    assert (error <= slack).all(), (
        f"{spec}: declares `unbiased`, and a weight of {weight[worst]:.4g} averages to "
        f"{found[:, worst].mean():.4g} over {DRAWS} roundings"
    )


def _check_plain(spec: str, codec: PlainCodec) -> None:
    rng = np.random.default_rng(2)
    values = np.concatenate([-rng.exponential(5, 5000), [0.0, -np.inf], rng.normal(0, 9, 500)])
    values = values.astype(np.float32)
    encoded = codec.encode(values)
    dtype = codec.encode(values[:0]).dtype
    assert encoded.dtype == dtype, (
        f"{spec}: encodes nothing as {dtype}, something as {encoded.dtype}"
    )
    back = codec.decode(encoded)
    assert back.dtype == np.float32, f"{spec}: decodes to {back.dtype}, expected float32"
    finite = np.isfinite(values)
    assert np.isneginf(back[~finite]).all(), f"{spec}: -inf is lost"
    values, back = values[finite], back[finite]
    bound = codec.relative_error * np.abs(values) + codec.absolute_error(sample=False) + 1e-7
    assert (np.abs(back - values) <= bound).all(), f"{spec}: a value is further off than the bound"
