"""One candidate on a reference: every number against dense float64 distributions, taken id by id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from softlabels import open_store
from softlabels.errors import NonFiniteError, PairingError
from softlabels.kld.compare import Compared, Wide, check_reference, compare
from softlabels.kld.findings import candidate_of, true_kl
from softlabels.kld.record import CandidateFacts
from softlabels.kld.tails import Estimate, estimate
from softlabels.kld.text import figure_of
from tests.fakes import TinyTeacher, build_tiny, write_corpus


class Near(TinyTeacher):
    """The reference with noise on each logit, as a quantised copy has, and perhaps more ids than it."""

    def __init__(self, noise: float = 0.2, padding: int = 0, **settings) -> None:
        super().__init__(**settings)
        self.noise, self.padding = noise, padding
        self.record = type(self.record)(
            **{f: getattr(self.record, f) for f in self.record.__struct_fields__}
            | {"vocab_size": self.record.vocab_size + padding, "weights_sha256": "1" * 64}
        )

    def dense(self, row) -> torch.Tensor:
        known = TinyTeacher.dense(_Bare(self), row)
        g = torch.Generator().manual_seed(int(row.input_ids.sum()))
        z = known + self.noise * torch.randn(known.shape, generator=g)
        more = torch.full((len(z), self.padding), -1.0)
        return torch.cat([z, more], 1)


class _Bare:
    """What `dense` looks at, with the reference's own width."""

    def __init__(self, teacher: Near) -> None:
        self.tables = teacher.tables
        self.record = TinyTeacher(self.tables[0].shape[0]).record


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text")


@pytest.fixture(scope="module")
def store(tmp_path_factory, corpus) -> Path:
    out = tmp_path_factory.mktemp("kld") / "store"
    build_tiny(out, corpus, k=20, limit_rows=9, shard_rows=4, values="float32")
    return out


@pytest.fixture(scope="module")
def wide(tmp_path_factory, corpus) -> Path:
    """The same rows, with more ids of each position."""
    out = tmp_path_factory.mktemp("kld") / "wide"
    build_tiny(out, corpus, k=120, limit_rows=2, shard_rows=4, values="float32")
    return out


def dense_of(store, candidate: TinyTeacher) -> dict[str, np.ndarray]:
    """Each figure from whole distributions in float64."""
    reference, found = TinyTeacher(), []
    for stored in open_store(store):
        z = reference.dense(stored.row).double()
        theirs = candidate.dense(stored.row).double()
        logp, logq = torch.log_softmax(z, 1), torch.log_softmax(theirs, 1)
        logq = logq[:, : z.shape[1]]
        labels = torch.from_numpy(stored.row.labels.astype(np.int64))[:, None]
        found.append(
            {
                "kl": (logp.exp() * (logp - logq)).sum(1),
                "accept": torch.minimum(logp, logq).exp().sum(1),
                "label_logp": logq.gather(1, labels)[:, 0],
                "said_logp": logp.gather(1, labels)[:, 0],
                "same_top": z.argmax(1) == theirs.argmax(1),
                "right": theirs.argmax(1) == labels[:, 0],
                "said_right": z.argmax(1) == labels[:, 0],
            }
        )
    return {name: torch.cat([f[name] for f in found]).numpy() for name in found[0]}


def estimate_without(found: Compared) -> Estimate:
    """The true KL, were there no wide rows."""
    a = found.answered
    return estimate(a.bins, found.said.tail, a.seen, np.full(found.said.n, np.nan))


def both(store, candidate: TinyTeacher, **settings) -> tuple[Compared, dict[str, np.ndarray]]:
    return compare(open_store(store), candidate, **settings), dense_of(store, candidate)


@pytest.mark.parametrize("padding", [0, 13])
@pytest.mark.parametrize("noise", [0.0, 0.05, 1.0])
def test_every_number_is_that_of_whole_distributions_or_bounds_it(store, noise, padding):
    found, true = both(store, Near(noise, padding))
    said, answered = found.said, found.answered
    assert said.n == len(true["kl"])
    assert (answered.least <= true["kl"]).all()
    assert (true["kl"] <= answered.most).all()
    assert np.isfinite(answered.most).all()
    assert (answered.accept_low <= true["accept"] + 1e-6).all()
    assert (answered.accept_high >= true["accept"] - 1e-6).all()
    np.testing.assert_allclose(answered.label_logp, true["label_logp"], atol=1e-4)
    np.testing.assert_allclose(said.label_logp, true["said_logp"], rtol=1e-3, atol=1e-4)
    for name, values in (("same_top", answered.same_top), ("right", answered.right)):
        np.testing.assert_array_equal(values, true[name])
    np.testing.assert_array_equal(said.right, true["said_right"])


def test_the_gap_is_the_tails_own_divergence_and_wide_rows_narrow_it(store, wide):
    candidate = Near(0.3)
    found, true = both(store, candidate, wide=Wide(open_store(wide)))
    some = np.isfinite(found.answered.within)
    assert set(found.said.row[some]) == {0, 1}
    gap = true["kl"] - found.answered.bins
    left = gap - found.said.tail * found.answered.within
    assert np.abs(left[some]).sum() < 0.1 * gap[some].sum()
    estimated, alone = true_kl(found), estimate_without(found)
    assert estimated.fitted
    assert not alone.fitted
    for kl in (estimated.kl, alone.kl):
        assert kl.sum() == pytest.approx(true["kl"].sum(), rel=0.05)
    error = np.median(np.abs(estimated.kl - true["kl"]) / true["kl"])
    assert error < 0.5 * np.median(gap / true["kl"])
    assert estimated.error == pytest.approx(error, rel=0.6)


def test_figures_do_not_depend_on_batches_and_chunks(store):
    whole = compare(open_store(store), Near(chunk=10**6), batch_tokens=10**6)
    parts = compare(open_store(store), Near(chunk=7), batch_tokens=1)
    for part in ("said", "answered"):
        for name, values in vars(getattr(whole, part)).items():
            np.testing.assert_allclose(values, getattr(getattr(parts, part), name), atol=1e-9)


def test_all_ids_kept_is_the_true_divergence(tmp_path, corpus):
    build_tiny(tmp_path / "s", corpus, estimator="dense", k=300, limit_rows=2, values="float32")
    found, true = both(tmp_path / "s", Near())
    np.testing.assert_allclose(found.answered.bins, true["kl"], atol=1e-5)
    np.testing.assert_allclose(found.answered.accept_low, true["accept"], atol=1e-5)
    assert (found.answered.most - found.answered.least < 1e-4).all()


def test_ids_that_the_candidate_lacks_count_as_tail_and_are_counted(tmp_path, corpus):
    """A head with less padding: ids that no tokenizer gives."""
    build_tiny(
        tmp_path / "s",
        corpus,
        estimator="dense",
        k=300,
        limit_rows=2,
        values="float32",
    )

    class Narrow(Near):
        def dense(self, row):
            return super().dense(row)[:, :270]

    narrow = Narrow()
    narrow.record = type(narrow.record)(
        **{f: getattr(narrow.record, f) for f in narrow.record.__struct_fields__}
        | {"vocab_size": 270}
    )
    found = compare(open_store(tmp_path / "s"), narrow)
    assert found.beyond == 30 * found.said.n
    assert np.isfinite(found.answered.label_logp).all()


def test_probability_0_is_counted_and_where_the_id_is_kept_the_divergence_is_infinite(store):
    """As masks are written: the reference gives some mass to id 7 everywhere, and keeps it at some positions."""

    class Masks(Near):
        def dense(self, row):
            z = super().dense(row)
            z[::2, 7] = -torch.inf
            return z

    found, plain = (compare(open_store(store), c) for c in (Masks(), Near()))
    a = found.answered
    kept = np.concatenate(
        [((r.targets.ids == 7) & r.targets.kept).any(1) for r in open_store(store)]
    )
    assert 0 < (kept & a.impossible).sum() < a.impossible.sum()
    assert a.impossible.mean() == pytest.approx(0.5, abs=0.05)
    np.testing.assert_array_equal(np.isinf(a.bins), kept & a.impossible)
    np.testing.assert_array_equal(np.isinf(a.least), kept & a.impossible)
    assert np.isinf(a.most[a.impossible]).all()
    other = ~a.impossible
    np.testing.assert_allclose(a.bins[other], plain.answered.bins[other], atol=1e-9)
    candidate = candidate_of(found, facts(), classes=None, replicates=20, seed=0)
    assert candidate.figures["kl"].value is None
    assert candidate.infinite == (kept & a.impossible).sum()
    assert candidate.impossible == a.impossible.sum()
    assert figure_of(candidate, "kl", "nats") == "infinite"


def facts() -> CandidateFacts:
    texts = dict.fromkeys(("name", "spec", "weights_sha256", "dtype", "device", "engine"), "a")
    numbers = dict.fromkeys(("parameters", "vocab_size", "seconds", "tokens_per_second"), 1)
    return CandidateFacts(**texts, **numbers, bytes=None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_logit_that_is_no_number_is_refused_with_its_row(store, value):
    bad = Near()
    bad.poison = (130, value)
    with pytest.raises(NonFiniteError, match="row 2 of"):
        compare(open_store(store), bad)


def test_a_sample_is_no_reference(tmp_path, corpus):
    build_tiny(tmp_path / "s", corpus, estimator="sampled")
    with pytest.raises(PairingError, match="holds samples"):
        check_reference(open_store(tmp_path / "s"))


def test_positions_without_a_target_are_left_out(tmp_path, corpus):
    manifest = build_tiny(tmp_path / "s", corpus, positions="random:0.3")
    found = compare(open_store(tmp_path / "s"), Near())
    assert found.said.n == manifest.statistics.soft_positions


def test_memory_is_that_of_a_chunk(store):
    """No chunk is held once the next is asked for."""
    import weakref

    alive: list[weakref.ref] = []

    class Watched(Near):
        def logits(self, rows: Sequence) -> Iterator[torch.Tensor]:
            for row in rows:
                for chunk in self.dense(row).split(16):
                    chunk = chunk.clone()
                    alive.append(weakref.ref(chunk))
                    assert sum(r() is not None for r in alive) <= 2
                    yield chunk

    compare(open_store(store), Watched())
    assert len(alive) > 20
