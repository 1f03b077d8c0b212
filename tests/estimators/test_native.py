"""`native.c` against float64, and against torch in its place; and every reason for which it is not there."""

from __future__ import annotations

import ctypes
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlabels.capture import BadLogitError, Job, keep_logits
from softlabels.estimators import make_estimator, native
from softlabels.estimators.scan import Sought, scan

ESTIMATORS = {
    "topk": {"k": 12, "temperatures": (0.5, 1.0, 2.0, 3.0, 4.0)},
    "topp": {"k": 12, "top_p": 0.8, "temperatures": (1.0, 2.0, 4.0)},
    "sampled": {"k": 12, "temperatures": (2.0,)},
    "systematic": {"k": 35, "temperatures": (1.0,)},
    "rs": {"k": 35, "temperatures": (1.0,)},
}
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch):
    monkeypatch.setattr(native, "FEWEST_IDS", 1)


@pytest.fixture
def unbuilt(monkeypatch):
    """As in a process that has built nothing yet."""
    native._built.cache_clear()
    yield monkeypatch
    native._built.cache_clear()


@needs_compiler
def test_where_there_is_a_compiler_it_is_built():
    assert native.built().reason == ""
    assert native.suits(torch.zeros(1, 100))
    assert not native.suits(torch.zeros(1, 100, dtype=torch.float64))
    assert not native.suits(torch.zeros(100, 2).T)


@needs_compiler
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 3),
    k=st.integers(2, 9),
    blocks=st.integers(40, 90),
    short=st.integers(0, 63),
    levels=st.sampled_from([None, 3, 1000]),
    scale=st.sampled_from([0.0, 1.0, 5.0, 20.0]),
    shift=st.sampled_from([0.0, -300.0]),
)
def test_ids_and_sums_are_those_of_float64(seed, n, k, blocks, short, levels, scale, shift):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 64 * blocks + short, generator=g) * scale + shift
    if levels is not None:
        logits = torch.randint(0, levels, logits.shape, generator=g) * (scale / levels) + shift
    given = logits.clone()
    grid = (0.25, 1.0, 2.0, 4.0, 3.0)
    found = scan(given, Sought(k, grid))
    assert torch.equal(given, logits)
    order = logits.sort(dim=1, descending=True, stable=True)
    assert torch.equal(found.top, order.values[:, :k])
    assert torch.equal(found.ids, order.indices[:, :k])
    torch.testing.assert_close(found.totals, logits.sum(1), rtol=1e-4, atol=1e-2)
    y = (logits - found.top[:, -1:]).double().scatter(1, found.ids[:, :-1], -torch.inf)
    for i, t in enumerate(grid):
        torch.testing.assert_close(
            found.tail.logs[:, i], torch.logsumexp(y / t, 1), rtol=0, atol=5e-7
        )
    spread = (y.exp() * y.masked_fill(y.isinf(), 0)).sum(1)
    torch.testing.assert_close(found.tail.spread, spread, rtol=1e-6, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("masked", [0, 3000])
def test_what_is_kept_is_what_torch_keeps(monkeypatch, name, masked):
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 4500, generator=g) * 4
    logits[::2, :masked] = -torch.inf
    labels = torch.randint(0, 4500, (6,), generator=g)
    estimator = make_estimator(name, ESTIMATORS[name])
    uniforms = torch.rand(6, estimator.uniforms, generator=g, dtype=torch.float64)
    job = Job(estimator)
    own = keep_logits(logits.clone(), labels, uniforms if estimator.uniforms else None, job)
    monkeypatch.setattr(native, "FEWEST_IDS", 10**9)
    other = keep_logits(logits.clone(), labels, uniforms if estimator.uniforms else None, job)
    assert torch.equal(own.ids, other.ids)
    assert torch.equal(own.impossible, other.impossible)
    for part in ("logp", "log_odds", "label_logp", "entropy"):
        torch.testing.assert_close(
            getattr(own, part), getattr(other, part), rtol=2e-7, atol=1e-6, equal_nan=True
        )


@needs_compiler
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_is_refused(bad):
    logits = torch.randn(3, 4500)
    logits[1, 4499] = bad
    with pytest.raises(BadLogitError, match="position 1"):
        keep_logits(
            logits, torch.zeros(3, dtype=torch.int64), None, Job(make_estimator("topk", {"k": 5}))
        )


@needs_compiler
def test_threads_change_nothing():
    logits = torch.randn(7, 4500)
    alone = scan(logits, Sought(5, (1.0,)))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        shared = scan(logits, Sought(5, (1.0,)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone.ids, shared.ids)
    assert torch.equal(alone.tail.logs, shared.tail.logs)


def test_without_it_torch_computes_and_a_reason_is_given(unbuilt, tmp_path):
    unbuilt.setenv(native.SWITCH, "0")
    assert native.built() == (None, "SOFTLABELS_NATIVE=0")
    assert not native.suits(torch.zeros(1, 100))
    assert scan(torch.randn(2, 4500), Sought(5, (1.0,))).tail is None
    unbuilt.delenv(native.SWITCH)
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'no such target' >&2\nexit 1\n")
    broken.chmod(0o755)
    for compiler, reason in (("nowhere-cc", "no C compiler"), (str(broken), "no such target")):
        native._built.cache_clear()
        unbuilt.setenv("CC", compiler)
        assert native.built().library is None
        assert reason in native.built().reason


@needs_compiler
def test_what_was_compiled_wrongly_is_not_used(unbuilt):
    class Wrong(ctypes.CDLL):
        """Leaves what it is to fill as it was."""

    def load(path):
        library = Wrong(path)
        library.exponentiate = lambda *_: None
        return library

    unbuilt.setattr(native.ctypes, "CDLL", load)
    assert "does not agree with torch" in native.built().reason
