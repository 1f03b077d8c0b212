"""What is kept beside a model: ids of probability 0 against a vocabulary without them, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlabels.builder.build import build
from softlabels.builder.config import MeasureConfig
from softlabels.builder.measure import measure
from softlabels.capture import BadLogitError, Job, keep, keep_logits
from softlabels.errors import NonFiniteError
from softlabels.estimators import ESTIMATORS, make_estimator
from softlabels.store.reader import open_store
from tests.fakes import Notices, TinyTeacher, build_tiny, config_of, write_corpus

INF = float("inf")
BUILT_IN = ["topk", "topp", "sampled", "rs", "dense"]


def estimator_of(name, v, k, temperature=2.0):
    sample = name in ("sampled", "rs")
    flags = {
        "k": v if name == "dense" else k,
        "temperatures": (temperature,) if sample else (1.0, temperature),
    }
    return make_estimator(name, flags | ({"top_p": 0.8} if name == "topp" else {}))


def uniforms_of(estimator, n):
    if not estimator.uniforms:
        return None
    g = torch.Generator().manual_seed(5)
    return torch.rand(n, estimator.uniforms, generator=g, dtype=torch.float64)


def test_every_estimator_that_is_built_in_is_tried():
    assert set(BUILT_IN) <= set(ESTIMATORS.names())


@given(
    name=st.sampled_from(BUILT_IN),
    v=st.integers(4, 200),
    live=st.integers(1, 40),
    k=st.integers(1, 12),
    seed=st.integers(0, 2**31),
    low=st.sampled_from([-INF, float(torch.finfo(torch.float32).min), -1e31]),
    temperature=st.sampled_from([0.25, 2.0, 100.0]),
)
def test_ids_of_probability_0_are_as_if_they_were_not_there(
    name, v, live, k, seed, low, temperature
):
    """Kept ids, their probabilities, tails and the summary are those of the live ids alone, in float64."""
    g = torch.Generator().manual_seed(seed)
    n, live, k = 3, min(live, v), min(k, v)
    alive = torch.zeros(n, v, dtype=torch.bool)
    logits = torch.full((n, v), low)
    for i in range(n):
        ids = torch.randperm(v, generator=g)[:live]
        alive[i, ids] = True
        logits[i, ids] = torch.randn(live, generator=g) * 6
    estimator = estimator_of(name, v, k, temperature)
    labels = torch.randint(v, (n,), generator=g)
    exact = logits.double().masked_fill(~alive, -INF)
    kept = keep_logits(logits.clone(), labels, uniforms_of(estimator, n), Job(estimator))
    s = kept
    assert kept.impossible.tolist() == [v - live] * n
    taken = s.logp > -INF
    assert bool(alive.gather(1, s.ids)[taken].all())
    assert bool(taken.any(dim=1).all())
    assert not bool((s.logp.isnan() | s.logp.isposinf()).any())
    logp = torch.log_softmax(exact, 1)
    torch.testing.assert_close(
        kept.label_logp.double(), logp.gather(1, labels[:, None])[:, 0], rtol=1e-5, atol=1e-5
    )
    entropy = -(logp.exp() * logp.masked_fill(~alive, 0)).sum(1)
    torch.testing.assert_close(kept.entropy.double(), entropy, rtol=1e-4, atol=1e-5)
    assert torch.equal(exact.gather(1, kept.top[:, None])[:, 0], exact.amax(1))
    if estimator.keeps.sample:
        weights = s.logp.double().exp()
        torch.testing.assert_close(weights.sum(1), torch.ones(n).double(), rtol=1e-5, atol=1e-6)
        assert bool(s.log_odds.isneginf().all())
        return
    inside = torch.zeros_like(alive).scatter_(1, s.ids, taken)
    expected = logp.gather(1, s.ids).masked_fill(~taken, -INF)
    torch.testing.assert_close(s.logp.double(), expected, rtol=1e-5, atol=1e-5)
    assert int(taken.sum(1).max()) <= min(live, estimator.k)
    if name == "topk":
        assert taken.sum(1).tolist() == [min(live, k)] * n
    for i, t in enumerate(estimator.temperatures):
        at = exact / t
        odds = at.masked_fill(inside, -INF).logsumexp(1) - at.masked_fill(~inside, -INF).logsumexp(
            1
        )
        torch.testing.assert_close(s.log_odds[:, i].double(), odds, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("where", "value", "shown"),
    [
        ((1, 3), float("nan"), "nan"),
        ((2, 0), INF, "inf"),
        ((0, slice(None)), -INF, "-inf of every"),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_what_is_no_number_is_refused(where, value, shown, masked):
    logits = torch.zeros(3, 9)
    logits[:, 4] = -INF if masked else 0.0
    logits[where] = value
    with pytest.raises(BadLogitError, match=shown) as e:
        keep_logits(logits, torch.zeros(3).long(), None, Job(estimator_of("topk", 9, 2)))
    assert e.value.index == where[0]


def test_a_sum_beyond_float32_is_refused():
    logits = torch.full((1, 9), 3e38)
    with pytest.raises(BadLogitError, match="beyond float32"):
        keep_logits(logits, torch.zeros(1).long(), None, Job(estimator_of("topk", 9, 2)))


@pytest.mark.parametrize("name", BUILT_IN)
def test_chunks_of_hidden_states_are_cut_by_a_budget_and_change_nothing(name):
    g = torch.Generator().manual_seed(1)
    hidden, head = torch.randn(11, 8, generator=g), torch.randn(70, 8, generator=g)
    head[7] = torch.nan  # an id that the head suppresses
    labels = torch.randint(7, (11,), generator=g)
    labels[4] = -1
    estimator = estimator_of(name, 70, 5)
    uniforms, widths = uniforms_of(estimator, 11), []

    def to_logits(part):
        widths.append(len(part))
        return torch.nn.functional.linear(part, head).nan_to_num(nan=-INF)

    def kept(head_bytes):
        parts = keep(
            hidden, labels, uniforms, Job(estimator), to_logits,
            head_bytes=head_bytes, vocab_size=70,
        )  # fmt: skip
        return list(parts)

    (whole,) = kept(11 * 70 * 4)
    parts = kept(3 * 70 * 4)
    assert widths == [11, 3, 3, 3, 2]
    for field in ("ids", "logp", "log_odds"):
        joined = torch.cat([getattr(p, field) for p in parts])
        torch.testing.assert_close(joined, getattr(whole, field), rtol=1e-5, atol=1e-5)
    label_logp = torch.cat([p.label_logp for p in parts])
    torch.testing.assert_close(label_logp, whole.label_logp, equal_nan=True)
    assert label_logp.isnan().tolist() == [i == 4 for i in range(11)]
    assert bool((whole.impossible == 1).all())


def test_the_index_of_a_bad_logit_counts_over_all_chunks():
    hidden = torch.zeros(7, 2)
    hidden[5] = torch.nan
    parts = keep(
        hidden, torch.zeros(7).long(), None, Job(estimator_of("topk", 9, 2)),
        lambda part: part @ torch.ones(2, 9), head_bytes=2 * 9 * 4, vocab_size=9,
    )  # fmt: skip
    with pytest.raises(BadLogitError) as e:
        list(parts)
    assert e.value.index == 5


class Suppressing(TinyTeacher):
    """Never says some ids, which texts do not hold; and one that they do, if asked."""

    also: int | None = None

    def dense(self, row):
        z = super().dense(row)
        z[:, 256:] = -INF
        if self.also is not None:
            z[:, self.also] = -INF
        return z

    def logits(self, rows):
        yield torch.cat([self.dense(r) for r in rows])


@pytest.mark.parametrize("profile", ["open", "packed"])
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_store_of_a_teacher_that_suppresses_ids(tmp_path, name, profile):
    corpus = write_corpus(tmp_path / "corpus", repeat=1)
    teacher, notices = Suppressing(), Notices()
    v = teacher.record.vocab_size
    assert v > 256
    changes = {"estimator": name, "k": v if name == "dense" else 6, "profile": profile}
    changes |= {"top_p": 0.9} if name == "topp" else {}
    config = config_of(corpus, limit_rows=4, **changes)
    manifest = build(config, tmp_path / "s", teacher=teacher, reporter=notices)
    n = manifest.identity.corpus.positions
    (told,) = [line for line in notices.lines if "probability 0" in line]
    assert f"at {n:,} of {n:,} positions, no label among them" in told
    assert manifest.statistics.teacher_nll is not None
    store = open_store(tmp_path / "s")
    for stored in store:
        t = stored.targets
        assert t.ids[t.kept].max() < 256
        if name == "dense":
            expected = torch.softmax(teacher.dense(stored.row).double(), 1).numpy()
            np.testing.assert_allclose(
                t.dense(1.0), expected, atol=0.04 if profile == "packed" else 2e-3
            )
            assert t.dense(1.0)[:, 256:].max() == 0
    found = measure(tmp_path / "s", MeasureConfig(teacher="fake:x"), teacher=teacher, write=False)
    if name in ("topk", "dense"):
        kl = found.temperatures[0].kl
        assert kl is not None
        assert kl.mean is not None
        assert kl.mean < 5.0


def test_a_label_of_probability_0_is_counted_and_leaves_no_loss(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", repeat=1)
    teacher, notices = Suppressing(), Notices()
    teacher.also = ord("e")
    config = config_of(corpus, limit_rows=4)
    manifest = build(config, tmp_path / "s", teacher=teacher, reporter=notices)
    store = open_store(tmp_path / "s")
    labels = np.concatenate([stored.row.labels for stored in store])
    times = int((labels == ord("e")).sum())
    assert times > 0
    (told,) = [line for line in notices.lines if "probability 0" in line]
    assert f"at {times:,} of them also to the label" in told
    assert manifest.statistics.teacher_nll is None
    logp = np.concatenate([stored.targets.summary.label_logp for stored in store])
    assert np.array_equal(np.isneginf(logp), labels == ord("e"))


def test_a_position_without_any_possible_id_is_refused(tmp_path):
    class Nothing(TinyTeacher):
        def dense(self, row):
            return torch.full_like(super().dense(row), -INF)

    corpus = write_corpus(tmp_path / "corpus", repeat=1)
    with pytest.raises(NonFiniteError, match=r"logit -inf of every id at row 0, token 0"):
        build_tiny(tmp_path / "s", corpus, teacher=Nothing())


def test_without_such_ids_nothing_is_said(tmp_path):
    corpus, notices = write_corpus(tmp_path / "corpus", repeat=1), Notices()
    config = replace(config_of(corpus), limit_rows=2)
    build(config, tmp_path / "s", teacher=TinyTeacher(), reporter=notices)
    assert not [line for line in notices.lines if "probability 0" in line]
