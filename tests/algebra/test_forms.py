"""convert, view and diff: the same in another form, and how far two stores are apart."""

from __future__ import annotations

import json

import numpy as np
import pytest

from softlabels.algebra.convert import convert
from softlabels.algebra.diff import diff
from softlabels.algebra.subset import subset
from softlabels.algebra.subset_config import SubsetConfig
from softlabels.algebra.view import view
from softlabels.errors import ConfigError, PairingError
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.algebra.compare import content, same, varied_corpus
from tests.algebra.test_merge import KINDS, parts
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.fixtures.make import contents


def by_id(targets, t):
    """Log-probabilities `[N, V]`, -inf where an id is not kept."""
    out = np.full((targets.n, targets.vocab_size), -np.inf)
    n, slot = np.nonzero(targets.kept)
    out[n, targets.ids[n, slot]] = targets.log_probs(t)[n, slot]
    return out


@pytest.mark.parametrize(
    "to",
    [
        {"profile": "packed", "values": "nat32"},
        {"profile": "packed"},
        {"container": "zarr"},
        {"profile": "packed", "container": "zarr", "values": "nat64"},
        {"values": "float32"},
    ],
)
@pytest.mark.parametrize("estimator", ["topk", "sampled"])
def test_there_and_back_is_within_the_stated_bounds(tmp_path, to, estimator):
    corpus = write_corpus(tmp_path / "text")
    t = 2.0 if estimator == "sampled" else 1.0
    grid = (2.0,) if estimator == "sampled" else (1.0, 2.0)
    build_tiny(tmp_path / "a", corpus, estimator=estimator, temperature=grid, shard_rows=5)
    there = convert(tmp_path / "a", tmp_path / "b", **to)
    encoding = there.identity.encoding
    assert verify_store(tmp_path / "b").problems == []
    back = convert(
        tmp_path / "b", tmp_path / "c", profile="open", container="parquet", values="float16"
    )
    assert verify_store(tmp_path / "c").problems == []
    original = open_store(tmp_path / "a").manifest.identity.encoding
    if "packed" not in to.values():
        same(contents(open_store(tmp_path / "c")), contents(open_store(tmp_path / "a")))
    for e, name in ((encoding, "b"), (back.identity.encoding, "c")):
        for x, y in zip(open_store(tmp_path / name), open_store(tmp_path / "a"), strict=True):
            p, q = by_id(x.targets, t), by_id(y.targets, t)
            np.testing.assert_array_equal(np.isfinite(p), np.isfinite(q))
            some = np.isfinite(p)
            bound = (e.relative_error + original.relative_error) * np.abs(q[some])
            bound += e.absolute_error + original.absolute_error + 1e-5
            assert (np.abs(p[some] - q[some]) <= bound).all()


def test_statistics_and_cost_come_along(tmp_path):
    (a,) = parts(tmp_path, 1)
    old, new = open_store(a).manifest, convert(a, tmp_path / "b", profile="packed", values="nat64")
    assert new.statistics.teacher_nll == pytest.approx(old.statistics.teacher_nll)
    assert new.statistics.kept_ids == old.statistics.kept_ids
    np.testing.assert_allclose(new.statistics.kept_mass, old.statistics.kept_mass, rtol=1e-2)
    assert new.cost.seconds == pytest.approx(old.cost.seconds)
    assert new.identity.corpus == old.identity.corpus
    assert new.identity.encoding.relative_error > 0  # the source was rounded before


def test_conversions_that_cannot_be_are_refused(tmp_path):
    (a,) = parts(tmp_path, 1)
    for asked, what in (
        ({}, "already"),
        ({"profile": "open"}, "already"),
        ({"values": "nat16"}, "holds float16 or float32"),
        ({"profile": "shut"}, "expected one of open, packed"),
        ({"container": "tar"}, "expected one of parquet"),
    ):
        with pytest.raises(ConfigError, match=what):
            convert(a, tmp_path / "b", **asked)
    assert not (tmp_path / "b").exists()


# -- view -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab", ["trim:270", "map:ids.json"])
def test_a_written_view_is_the_view_of_the_store(tmp_path, kind, vocab, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = [(i + 7) % 280 if i < 280 else -1 for i in range(300)]
    (tmp_path / "ids.json").write_text(json.dumps(table))
    (a,) = parts(tmp_path, 1, **KINDS[kind])
    manifest, dropped = view(a, vocab, tmp_path / "v")
    assert verify_store(tmp_path / "v").problems == []
    seen, written = open_store(a, vocab=vocab), open_store(tmp_path / "v")
    assert written.vocab_size == seen.vocab_size == manifest.identity.teacher.vocab_size
    e = manifest.identity.encoding
    t = 2.0 if "sample" in kind else 1.0
    for x, y in zip(written, seen, strict=True):
        np.testing.assert_array_equal(x.row.input_ids, y.row.input_ids)
        p, q = by_id(x.targets, t), by_id(y.targets, t)
        np.testing.assert_array_equal(np.isfinite(p), np.isfinite(q))
        some = np.isfinite(p)
        bound = e.relative_error * np.abs(q[some]) + 2 * e.absolute_error + 1e-5
        assert (np.abs(p[some] - q[some]) <= bound).all()
    assert dropped.to_dict() == seen.dropped.to_dict()
    old = open_store(a).manifest.identity.tokenizer
    assert (manifest.identity.tokenizer == old) == (vocab == "trim:270")


def test_positions_that_a_view_empties_become_hard_label_only(tmp_path):
    (a,) = parts(tmp_path, 1, k=1)
    manifest, dropped = view(a, "trim:257", tmp_path / "v")
    assert dropped.emptied > 0
    assert manifest.identity.targets.positions == "view:trim:257"
    assert manifest.statistics.soft_positions == dropped.positions - dropped.emptied
    assert verify_store(tmp_path / "v").problems == []


# -- diff -----------------------------------------------------------------------------------------


def test_a_store_and_itself(tmp_path):
    (a,) = parts(tmp_path, 1)
    found = diff(a, a).to_dict()
    assert found["same_content"]
    assert found["rows_common"] == found["rows_a"] == found["rows_b"]
    assert found["kl"] == [0.0, 0.0]
    assert found["top1_agreement"] == 1
    assert found["largest_logp_difference"] == [0.0, 0.0]


def test_rows_are_found_wherever_they_stand_and_divergence_is_that_of_the_files(tmp_path):
    corpus = varied_corpus(tmp_path / "text")
    build_tiny(tmp_path / "a", corpus, k=300, estimator="dense", values="float32", shard_rows=5)
    other = TinyTeacher(scale=2.5)
    build_tiny(tmp_path / "b", corpus, k=300, estimator="dense", values="float32", teacher=other)
    subset(tmp_path / "b", SubsetConfig(where="row % 3 = 1"), tmp_path / "some")
    found = diff(tmp_path / "a", tmp_path / "some").to_dict()
    assert found["rows_common"] == found["rows_b"] == len(open_store(tmp_path / "some"))
    assert not found["same_content"]
    store_a, store_b = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    kl, top, n = 0.0, 0, 0
    for i in range(1, len(store_a), 3):
        p, q = (s.row(i).targets.dense(1.0).astype(np.float64) for s in (store_a, store_b))
        kl += (p * (np.log(p) - np.log(q))).sum()
        top += (p.argmax(1) == q.argmax(1)).sum()
        n += len(p)
    assert found["positions"] == n
    assert found["kl"][0] == pytest.approx(kl / n, rel=1e-4)
    assert found["top1_agreement"] == pytest.approx(top / n)
    assert found["largest_logp_difference"][0] > 0.1


def test_a_cut_store_has_no_divergence_from_its_source(tmp_path):
    """The ids that both keep have the same probabilities, and so has everything else as one outcome."""
    corpus = write_corpus(tmp_path / "text")
    build_tiny(tmp_path / "a", corpus, k=20, temperature=(1.0, 2.0), values="float32")
    subset(tmp_path / "a", SubsetConfig(k=5, temperature=(1.0,)), tmp_path / "b")
    found = diff(tmp_path / "a", tmp_path / "b").to_dict()
    assert found["temperatures"] == [1.0]
    assert abs(found["kl"][0]) < 1e-6
    assert found["largest_logp_difference"][0] < 1e-5


def test_samples_have_no_divergence_and_other_tokenizers_no_ids(tmp_path):
    corpus = write_corpus(tmp_path / "text", documents=1)
    build_tiny(tmp_path / "a", corpus)
    build_tiny(tmp_path / "s", corpus, estimator="sampled")
    found = diff(tmp_path / "a", tmp_path / "s").to_dict()
    assert found["kl"] is None
    assert (
        0.8 < found["top1_agreement"] < 1
    )  # where all weights are equal, the likeliest may be left out
    build_tiny(tmp_path / "x", corpus, teacher=TinyTeacher(salt="x"))
    with pytest.raises(PairingError, match="different tokenizers"):
        diff(tmp_path / "a", tmp_path / "x")
    build_tiny(tmp_path / "o", varied_corpus(tmp_path / "other"))
    found = diff(tmp_path / "a", tmp_path / "o").to_dict()
    assert (found["rows_common"], found["kl"], found["top1_agreement"]) == (0, None, None)


def test_a_store_of_one_row_is_packed_without_a_dictionary(tmp_path):
    """A dictionary is trained on four fifths of the rows of each shard, which is none of one."""
    build_tiny(tmp_path / "a", write_corpus(tmp_path / "text"), limit_rows=1)
    manifest = convert(tmp_path / "a", tmp_path / "b", profile="packed", values="nat64")
    assert manifest.identity.encoding.dictionary_shards is None
    assert verify_store(tmp_path / "b").problems == []


def test_a_converted_store_is_as_near_as_its_codec(tmp_path):
    (a,) = parts(tmp_path, 1)
    convert(a, tmp_path / "b", profile="packed", values="nat16")
    found = diff(a, tmp_path / "b").to_dict()
    assert found["rows_common"] == found["rows_a"]
    assert 0 < found["largest_logp_difference"][0] < 0.1
    assert content(tmp_path / "b")["input_ids"].tolist() == content(a)["input_ids"].tolist()


def test_packed_shards_are_coded_with_a_dictionary_where_it_pays(tmp_path, monkeypatch):
    from softlabels.format.encoding import dictionary_of

    (tmp_path / "text").mkdir()
    for i in range(30):
        (tmp_path / f"text/{i}.txt").write_text(f"{i} " + "It was the best of times. " * 20)
    build_tiny(tmp_path / "a", f"text:{tmp_path}/text/*.txt", k=12, shard_rows=30)
    sizes = {}
    for how in ("none", "auto", str(tmp_path / "auto")):
        out = tmp_path / ("given" if how == str(tmp_path / "auto") else how)
        manifest = convert(tmp_path / "a", out, profile="packed", values="nat16", dictionary=how)
        assert verify_store(out).problems == []
        data = (out / manifest.shards[-1].name).read_bytes()
        used = dictionary_of(data, manifest.identity, where="a shard")
        assert (used is None) == (how == "none")
        sizes[out.name] = manifest.data_bytes
    assert sizes["auto"] == sizes["given"] < sizes["none"]
    same(content(tmp_path / "auto"), content(tmp_path / "none"))
    with pytest.raises(ConfigError, match="belongs to --profile packed"):
        convert(tmp_path / "auto", tmp_path / "x", profile="open", values="float16", dictionary="y")
    with pytest.raises(ConfigError, match="no dictionary there"):
        convert(tmp_path / "a", tmp_path / "x", profile="packed", values="nat16", dictionary="y")
    assert not (tmp_path / "x").exists()
