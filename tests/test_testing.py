"""The batteries: every component that ships passes, and broken ones are named for what is broken."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from softlabels.codecs import CODECS, Numbers
from softlabels.codecs.steps import Steps
from softlabels.core.registry import Registry
from softlabels.estimators import ESTIMATORS, KeptSet
from softlabels.estimators.sampled import Sampled
from softlabels.estimators.topk import TopK
from softlabels.format.containers import parquet
from softlabels.format.encoding import CONTAINERS
from softlabels.teachers import TEACHERS
from softlabels.testing import (
    check_codec,
    check_container,
    check_corpus,
    check_domain,
    check_estimator,
    check_images,
    check_teacher,
)
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from trainers.loss.divergences import DIVERGENCES, divergence
from trainers.testing import check_loss

ESTIMATORS_WITH = {
    "topk": {"temperatures": (0.5, 1.0, 2.0, 3.0)},
    "topp": {"top_p": 0.7, "k": 20, "min_k": 2},
    "sampled": {"temperatures": (2.0,)},
    "systematic": {"k": 20, "temperatures": (2.0,)},
    "rs": {},
    "dense": {"k": 60, "temperatures": (1.0, 4.0)},
}


@pytest.mark.parametrize("name", ESTIMATORS.builtin)
def test_every_estimator(name):
    check_estimator(name, vocab_size=60, **ESTIMATORS_WITH[name])


@pytest.mark.parametrize("name", CODECS.builtin)
def test_every_codec(name):
    check_codec(name)


@pytest.mark.parametrize("name", CONTAINERS.builtin)
def test_every_container(name):
    check_container(name)


@pytest.mark.parametrize("name", DIVERGENCES.builtin)
def test_every_loss(name):
    check_loss(name)


def test_corpora(tmp_path):
    check_corpus(write_corpus(tmp_path / "texts"))
    (tmp_path / "c.jsonl").write_text(
        '{"text": "It is."}\n{"prompt": "Is it", "completion": " so"}\n'
        '{"messages": [{"role": "user", "content": "So?"}]}\n'
    )
    check_corpus(f"jsonl:{tmp_path}/c.jsonl")
    pq.write_table(pa.table({"text": ["One.", "Two."]}), tmp_path / "c.parquet")
    check_corpus(f"parquet:{tmp_path}/c.parquet#text")
    pq.write_table(pa.table({"input_ids": [[1, 2], [3]]}), tmp_path / "i.parquet")
    check_corpus(f"ids:{tmp_path}/i.parquet")


def test_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3)).astype(np.uint8)
    np.savez(tmp_path / "i.npz", images=images, labels=np.arange(4))
    check_images(f"arrays:{tmp_path}/i.npz")


def test_a_domain(tmp_path):
    build_tiny(tmp_path / "store", write_corpus(tmp_path / "texts"))
    check_domain(tmp_path / "store")


# -- what is broken --------------------------------------------------------------------------------


@pytest.fixture
def install(monkeypatch):
    """Put a component into a registry for the test."""

    def put(registry: Registry[Any], thing: Any) -> None:
        monkeypatch.setitem(registry.builtin, "mine", "tests.none:mine")
        load = registry.load
        monkeypatch.setattr(registry, "load", lambda n: thing if n == "mine" else load(n))

    return put


@dataclass(frozen=True, kw_only=True)
class Lies(TopK):
    """Keeps the k largest, renormalised, and says that they are a sample."""

    keeps: ClassVar[KeptSet] = KeptSet(sample=True, tail=False)

    def select(self, logits, uniforms=None):
        found = super().select(logits, uniforms)
        logp = torch.log_softmax(found.logp, 1)
        return found._replace(logp=logp, log_odds=torch.full_like(found.log_odds, -torch.inf))


class NoTail(TopK):
    keeps: ClassVar[KeptSet] = KeptSet(largest=True)

    def select(self, logits, uniforms=None):
        found = super().select(logits, uniforms)
        return found._replace(log_odds=torch.full_like(found.log_odds, -torch.inf))


class Smallest(TopK):
    keeps: ClassVar[KeptSet] = KeptSet(largest=True)

    def select(self, logits, uniforms=None):
        ids = torch.arange(self.k)[None].repeat(len(logits), 1)
        logp = torch.log_softmax(logits.double(), 1)
        inside = torch.logsumexp(logp[:, : self.k], 1)
        outside = torch.logsumexp(logp[:, self.k :], 1)
        found = super().select(logits.clone(), None)
        odds = (outside - inside)[:, None].float()
        return found._replace(ids=ids, logp=logp[:, : self.k].float(), log_odds=odds)


class Together(Sampled):
    """Has one draw for a whole chunk."""

    def select(self, logits, uniforms=None):
        return super().select(logits, uniforms[:1].expand_as(uniforms))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Lies, r"declares a sample, and the weights of id .* average to"),
        (NoTail, r"probabilities at T=1: .*, expected"),
        (Smallest, "declares `largest`, and leaves out a likelier id"),
        (Together, "position 1 keeps other ids alone than beside others"),
    ],
)
def test_a_broken_estimator_is_named(install, broken, message):
    install(ESTIMATORS, broken)
    with pytest.raises(AssertionError, match=rf"^mine.*{message}"):
        check_estimator("mine", vocab_size=60)


class TooCoarse(Steps):
    def absolute_error(self, *, sample):
        return super().absolute_error(sample=sample) / 4


class Forgets(Steps):
    def to_numbers(self, targets, uniforms):
        numbers = super().to_numbers(targets, uniforms)
        return Numbers(numbers.values, np.maximum(numbers.odds, 1))


@pytest.mark.parametrize(
    ("broken", "message"),
    [(TooCoarse, "off by .* beyond its bound"), (Forgets, "infinite log-odds are lost")],
)
def test_a_broken_codec_is_named(install, broken, message):
    install(CODECS, lambda: broken(8))
    with pytest.raises(AssertionError, match=rf"^mine on .*{message}"):
        check_codec("mine")


class Trusting:
    """Parquet whose reader takes whatever is there."""

    suffix = "parquet"
    write_columns = staticmethod(parquet.write_columns)
    write_streams = staticmethod(parquet.write_streams)
    read_streams = staticmethod(parquet.read_streams)
    read_facts = staticmethod(parquet.read_facts)
    column_bytes = staticmethod(parquet.column_bytes)

    @staticmethod
    def read_columns(data, expected, *, records, where):
        free = {n: replace(e, most=None) for n, e in expected.items()}
        return parquet.read_columns(data, free, records=records, where=where)


def test_a_broken_container_is_named(install):
    install(CONTAINERS, Trusting())
    with pytest.raises(AssertionError, match=r"^mine: more entries than there may be: is read"):
        check_container("mine")


class Mine(TinyTeacher):
    def __init__(self) -> None:
        super().__init__()
        self.record = msgspec.structs.replace(self.record, spec="mine:x")


class Leaking(Mine):
    """Does not keep the documents of a row apart."""

    def dense(self, row):
        return super().dense(replace(row, segment_lengths=np.array([row.size], np.int32)))


def test_a_teacher(install):
    install(TEACHERS, lambda argument, options: Mine())
    check_teacher("mine:x", seq_len=200)


def test_a_broken_teacher_is_named(install):
    install(TEACHERS, lambda argument, options: Leaking())
    with pytest.raises(AssertionError, match=r"^mine:x: a document alone and in a row with others"):
        check_teacher("mine:x", seq_len=200)


@divergence(refuses_samples=None)
def curved(log_p, log_q, shape):
    """Says that it takes samples, and has the root of their weights."""
    return 1 - (0.5 * (log_p + log_q)).exp().sum(dim=1)


@divergence()
def unpadded(log_p, log_q, shape):
    """NaN of bins that neither side has."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (curved, "takes samples .*, and its gradient is not linear"),
        (unpadded, "the value changes with bins that neither side has"),
        (lambda p, q, s: p, "declare the function with"),
    ],
)
def test_a_broken_loss_is_named(install, broken, message):
    install(DIVERGENCES, broken)
    with pytest.raises(AssertionError, match=rf"^mine: .*{message}"):
        check_loss("mine")
