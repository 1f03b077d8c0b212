"""Stores made by earlier versions decode, to the last bit, to what they decoded to then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from softlabels.cli.main import main
from softlabels.core.targets import SoftTargets
from softlabels.format.manifest import load_manifest
from softlabels.making.card import card
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.fixtures.make import DERIVED, LABELLED, STORES, TEXT_STORES, contents, opened

FIXTURES = Path(__file__).parents[1] / "fixtures"
ALL = STORES | TEXT_STORES
names = pytest.mark.parametrize("name", [*ALL, *DERIVED])


def test_every_fixture_is_listed_and_they_are_small():
    assert {p.parent.name for p in FIXTURES.glob("*/manifest.json")} == {*ALL, *DERIVED}
    assert {p.stem for p in FIXTURES.glob("*.npz")} == {*ALL, *DERIVED}
    files = [p for p in FIXTURES.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    assert sum(p.stat().st_size for p in files) < 2_100_000


@names
def test_stored_bytes_decode_to_the_same_numbers_for_ever(name):
    found = contents(opened(name))
    with np.load(FIXTURES / f"{name}.npz") as expected:
        assert set(found) == set(expected.files)
        for what in expected.files:
            assert found[what].dtype == expected[what].dtype, what
            if what.startswith(("probs", "tail")):  # exp differs in the last bit between machines
                np.testing.assert_allclose(found[what], expected[what], rtol=1e-5, err_msg=what)
            else:
                np.testing.assert_array_equal(found[what], expected[what], err_msg=what)


@names
def test_they_are_whole(name):
    assert verify_store(FIXTURES / name).problems == []


def test_what_they_hold():
    """So that a fixture made wrongly is not kept for ever."""
    topk = open_store(FIXTURES / "topk-float16-v1.0")
    assert len(topk) == 6
    assert [s.rows for s in topk.manifest.shards] == [3, 3]
    assert topk.manifest.identity.corpus.specs == ["jsonl:documents.jsonl"]
    for stored in topk:
        t = stored.targets
        assert (t.estimator, t.temperatures, t.vocab_size, t.k) == ("topk", (1.0, 2.0), 300, 5)
        for temperature in t.temperatures:
            total = t.probs(temperature).sum(1) + t.tail(temperature)
            np.testing.assert_allclose(total, 1, atol=1e-5)
            assert (t.tail(temperature) > 0).all()
    sampled = open_store(FIXTURES / "sampled-float32-v1.0")
    assert len(sampled) == 6
    for stored in sampled:
        t = stored.targets
        assert (t.estimator, t.temperatures, t.k) == ("sampled", (2.0,), 5)
        np.testing.assert_allclose(t.probs(2.0).sum(1), 1, atol=1e-5)
        assert (t.tail(2.0) == 0).all()
    rows = [r.row for r in topk]
    text = np.concatenate([r.input_ids for r in rows])
    assert "Call me Ishmael.Größe" in bytes(text[text < 256].astype(np.uint8)).decode()
    assert max(len(r.segment_lengths) for r in rows) == 2  # documents that share a row
    assert len({len(r.input_ids) for r in rows}) > 1  # rows of several lengths
    assert sorted(len(r.positions) for r in rows)[:2] == [0, 4]  # little or nothing is learnt


def test_what_the_summaries_hold():
    """Not nothing: places of every kind, and labels of which one is not told."""
    for profile in ("open", "packed"):
        for container in ("parquet", "zarr"):
            store = open_store(FIXTURES / f"sampled-summary-{profile}-{container}-v1.3")
            t = SoftTargets.concatenate([stored.targets for stored in store])
            labels = np.concatenate([stored.row.labels for stored in store])
            assert t.summary is not None
            kept = (t.ids == t.summary.top[:, None]) & t.kept
            assert 0.3 < kept.any(axis=1).mean() < 0.9
            assert (t.summary.top >= 0).all()
            assert (t.summary.label_logp <= 0).all()
            assert 1 < t.summary.entropy.mean() < 3
            assert store.manifest.statistics.teacher_right == (t.summary.top == labels).sum()


def test_what_the_texts_hold():
    """The same for those of other domains."""
    for profile in ("open", "packed"):
        rows = [r.row for r in open_store(FIXTURES / f"sequence-classification-{profile}-v1.2")]
        assert [bytes(r.input_ids[1:-1].tolist()).decode() for r in rows] == [
            x["text"] for x in LABELLED
        ]
        assert [r.labels.tolist() for r in rows] == [[2], [1], [-1], [0]]
        words = [r.row for r in open_store(FIXTURES / f"token-classification-{profile}-v1.2")]
        assert [r.labels.tolist() for r in words] == [[1, -1, 2], [-1, -1], [0, 0, 2]]
        masked = [r.row for r in open_store(FIXTURES / f"masked-lm-{profile}-v1.2")]
        assert {r.view for r in masked} == {0, 1}
        assert max(r.piece for r in masked) == 2
        assert all((r.labels == r.input_ids[r.label_mask]).all() for r in masked)
        fed = np.concatenate([r.fed_ids[r.label_mask] for r in masked])
        labels = np.concatenate([r.labels for r in masked])
        assert (fed == 258).any(), "some are the mask"
        assert (fed == labels).any(), "some stay"
        assert ((fed != 258) & (fed != labels)).any(), "some are another token"
    everywhere = [r.row for r in open_store(FIXTURES / "masked-lm-attended-v1.2")]
    assert all(r.label_mask.all() and (r.labels == -1).any() for r in everywhere)


def test_they_are_shown_by_their_own_words():
    """Classes by name, what is not known as such."""
    command = ["inspect", str(FIXTURES / "token-classification-packed-v1.2"), "--row", "0"]
    found = CliRunner().invoke(main, command)
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:2] == ["label", "its"])
    assert [line.split()[:2] for line in lines[head + 1 :]] == [
        ["0", "'neither'"],
        ["1", "'?'"],
        ["2", "'good'"],
    ]
    masked = card(load_manifest(FIXTURES / "masked-lm-open-v1.2"))
    assert (
        "| domain | masked-lm, 25% of each text hidden, in 2 views, targets where `masked` |"
        in masked
    )
    words = card(load_manifest(FIXTURES / "token-classification-open-v1.2"))
    assert "| domain | token-classification of 3 classes |" in words
    assert "nats per label" in words
