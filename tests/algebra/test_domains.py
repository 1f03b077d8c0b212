"""Stores of another domain than causal LMs go the same ways."""

from __future__ import annotations

import numpy as np
import pytest

from softlabels.algebra.append import append
from softlabels.algebra.convert import convert
from softlabels.algebra.diff import diff
from softlabels.algebra.merge import merge
from softlabels.algebra.subset import subset
from softlabels.algebra.subset_config import SubsetConfig
from softlabels.algebra.view import view
from softlabels.builder.build import build
from softlabels.builder.config import AppendConfig, BuildConfig
from softlabels.errors import ConfigError, PairingError
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.domains import models


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("domains")
    models.save_classifier(folder / "teacher")
    models.write_corpus(folder / "a.jsonl", 20)
    models.write_corpus(folder / "b.jsonl", 7, seed=1)
    for name in "ab":
        made = BuildConfig(
            teacher=f"hf:{folder / 'teacher'}",
            corpus=(f"jsonl:{folder / name}.jsonl",),
            domain="sequence-classification",
            estimator="topk",
            k=2,
            temperature=(1.0, 2.0),
            seq_len=16,
            shard_rows=8,
            values="float32",
            dtype="float32",
        )
        build(made, folder / name)
    return folder


def all_same(found, expected, documents=None):
    assert len(found) == len(expected)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.row.digest() == b.row.digest()
        np.testing.assert_allclose(a.targets.dense(2.0), b.targets.dense(2.0), rtol=1e-5)
        if documents is not None:
            assert a.row.documents.tolist() == [documents[i]]


def test_classified_texts(ground, tmp_path):
    a, b = open_store(ground / "a"), open_store(ground / "b")
    manifest = merge([ground / "a", ground / "b"], tmp_path / "m")
    merged = open_store(tmp_path / "m")
    all_same(list(merged), [*a, *b], range(27))
    assert manifest.statistics.teacher_nll == pytest.approx(
        a.manifest.statistics.teacher_nll + b.manifest.statistics.teacher_nll
    )
    grown = append(
        ground / "a",
        AppendConfig(teacher=f"hf:{ground / 'teacher'}", corpus=(f"jsonl:{ground}/b.jsonl",)),
        tmp_path / "g1",
    )
    assert grown.identity.classes == list(models.CLASSES)
    all_same(list(open_store(tmp_path / "g1")), [*a, *b], range(27))
    subset(tmp_path / "m", SubsetConfig(where="document >= 20", k=1), tmp_path / "s")
    assert len(open_store(tmp_path / "s")) == 7
    convert(tmp_path / "m", tmp_path / "p", profile="packed", values="float32")
    all_same(list(open_store(tmp_path / "p")), list(merged), range(27))
    found = diff(tmp_path / "m", tmp_path / "p").to_dict()
    assert found["rows_common"] == 27
    assert found["largest_logp_difference"][0] < 1e-5
    subset(tmp_path / "m", SubsetConfig(drop_inputs=True), tmp_path / "t")
    subset(tmp_path / "m", SubsetConfig(inputs_only=True), tmp_path / "i")
    all_same(list(open_store(tmp_path / "t", inputs=tmp_path / "i")), list(merged), range(27))
    for name in ("m", "g1", "s", "p", "t", "i"):
        assert verify_store(tmp_path / name).problems == []
    with pytest.raises(ConfigError, match="is for causal LMs"):
        view(ground / "a", "trim:2", tmp_path / "v")


def test_masked_texts_keep_their_masks(tmp_path):
    """Masks are drawn from a document's number, so numbers stay what they were in each part."""
    models.save_masked_lm(tmp_path / "teacher")
    models.write_corpus(tmp_path / "a.jsonl", 12, labelled=False)
    models.write_corpus(tmp_path / "b.jsonl", 5, seed=1, labelled=False)
    changes = {
        "domain": "masked-lm",
        "mask_share": 0.3,
        "views": 2,
        "k": 3,
        "temperature": (1.0, 2.0),
    }
    for name in "ab":
        build(masked(tmp_path, name, **changes), tmp_path / name)
    stores = [open_store(tmp_path / n) for n in "ab"]
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    all_same(list(open_store(tmp_path / "m")), [*stores[0], *stores[1]])
    convert(tmp_path / "m", tmp_path / "p", profile="packed", values="float32")
    all_same(list(open_store(tmp_path / "p")), list(open_store(tmp_path / "m")))
    asked = AppendConfig(
        teacher=f"hf:{tmp_path / 'teacher'}", corpus=(f"jsonl:{tmp_path}/b.jsonl",)
    )
    append(tmp_path / "a", asked, tmp_path / "g1")
    all_same(list(open_store(tmp_path / "g1")), [*stores[0], *stores[1]])
    subset(tmp_path / "g1", SubsetConfig(where="row > 3"), tmp_path / "s")
    for name in ("m", "p", "g1", "s"):
        assert verify_store(tmp_path / name).problems == []
    build(masked(tmp_path, "b", **(changes | {"mask_share": 0.5})), tmp_path / "c")
    with pytest.raises(PairingError, match="masking share is"):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "x")


def masked(folder, name, **changes):
    return BuildConfig(
        teacher=f"hf:{folder / 'teacher'}",
        corpus=(f"jsonl:{folder / name}.jsonl",),
        estimator="topk",
        seq_len=16,
        shard_rows=8,
        values="float32",
        dtype="float32",
        **changes,
    )
