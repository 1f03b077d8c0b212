"""Examples that a report of a store shows: picked by what is certain, with their text around them, in every domain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from softlabels.cli.main import main
from softlabels.report.examples import EACH, KINDS, columns_of, likelihoods
from softlabels.report.store_facts import gather
from softlabels.store.reader import open_store
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.pages import check_page
from tests.test_store_report import teacher
from tests.test_summaries import build_texts


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    corpus = write_corpus(folder / "corpus")
    common = {"limit_rows": 12, "shard_rows": 4}
    build_tiny(folder / "topk", corpus, teacher=teacher(), k=5, **common)
    build_tiny(folder / "sampled", corpus, teacher=teacher(), estimator="sampled", k=8, **common)
    build_tiny(
        folder / "rs",
        corpus,
        estimator="rs",
        k=8,
        position_summary=False,
        temperature=(1.0,),
        **common,
    )
    return folder


def dense(store) -> np.ndarray:
    return torch.cat([torch.softmax(TinyTeacher().dense(r.row).double(), 1) for r in store]).numpy()


def positions(store) -> list[tuple[int, int]]:
    return [(r.index, n) for r in store for n in range(r.row.n)]


@pytest.mark.parametrize("name", ["topk", "sampled"])
def test_the_examples_are_the_extremes_of_the_dense_teacher(stores, name):
    store = open_store(stores / name)
    found = gather(store, rows=100)
    p = dense(store)
    labels = np.concatenate([r.row.labels for r in store])
    two = -np.sort(-p, axis=1)[:, :2]
    places = positions(store)
    assert set(found.examples) == set(KINDS)

    def scores_of(kind: str) -> list[float]:
        at = {place: i for i, place in enumerate(places)}
        chosen = []
        for x in found.examples[kind]:
            row = store.row(x.row).row
            n = row.positions.tolist().index(x.position)
            chosen.append(at[x.row, n])
        assert len({places[i][0] for i in chosen}) == len(chosen) <= EACH
        assert len({labels[i] for i in chosen}) == len(chosen)
        if kind == "wrong":
            assert all(p[i].argmax() != labels[i] for i in chosen)
        column = 1 if kind == "torn" else 0
        return [float(two[i, column]) for i in chosen]

    most_certain = scores_of("certain")
    assert most_certain[0] == pytest.approx(two[:, 0].max(), abs=2e-3)
    assert most_certain == sorted(most_certain, reverse=True)
    wrong = p.argmax(axis=1) != labels
    assert scores_of("wrong")[0] == pytest.approx(two[wrong, 0].max(), abs=2e-3)
    if name == "topk":
        assert scores_of("torn")[0] == pytest.approx(two[:, 1].max(), abs=2e-3)


def test_of_a_sample_only_what_was_sure_to_be_kept_counts(stores):
    store = open_store(stores / "sampled")
    p = -np.sort(-dense(store), axis=1)
    two = np.concatenate([likelihoods(r.targets, 1.0) for r in store])
    known = np.isfinite(two)
    assert known[:, 0].any()
    assert not known.all()
    np.testing.assert_allclose(two[known], p[:, :2][known], rtol=2e-2, atol=1e-3)


def test_draws_with_replacement_give_no_example(stores):
    store = open_store(stores / "rs")
    assert gather(store, rows=100).examples == {}
    for stored in store:
        columns = columns_of(stored.targets, stored.row.labels, 1.0)
        assert all(np.isnan(c).all() for c in columns.values())


def test_the_text_stands_around_an_example(stores):
    store = open_store(stores / "topk")
    for x in gather(store, rows=100).examples["certain"]:
        row = store.row(x.row).row
        n = row.positions.tolist().index(x.position)
        before = row.before(n)
        assert len(before) <= x.position + 1
        assert x.reading.label == row.input_ids[x.position + 1]


@pytest.mark.parametrize(
    ("domain", "texts"),
    [
        ("sequence-classification", [{"text": f"film {i}", "label": i % 2} for i in range(6)]),
        ("masked-lm", [{"text": f"a film that is {i}"} for i in range(6)]),
        (
            "token-classification",
            [{"words": ["a", "film", str(i)], "labels": [0, 1, 0]} for i in range(6)],
        ),
    ],
)
def test_every_domain_has_its_examples(tmp_path, domain, texts):
    build_texts(tmp_path / "s", domain, texts)
    out = tmp_path / "x.html"
    done = CliRunner().invoke(main, ["report", str(tmp_path / "s"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    text = check_page(out.read_text(encoding="utf-8"))
    assert "What is in it" in text
    assert "The most certain" in text
