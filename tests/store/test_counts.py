"""Stores of whole counts: the label's id is code 0, in both containers, with and without a dictionary or labels."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from softlabels.algebra.convert import convert
from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.builder.dry_run import dry_run
from softlabels.codecs.streams import pack
from softlabels.codecs.training import train
from softlabels.errors import ConfigError, PlanError, TargetError
from softlabels.format.packed import _label_first, shard_of, streams_of
from softlabels.format.packed_rows import contexts
from softlabels.format.shard import Reading
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.domains.fakes import TinyTextTeacher
from tests.fakes import Notices, TinyTeacher, build_tiny, config_of, write_corpus

SYSTEMATIC = {"estimator": "systematic", "k": 20, "values": None}
PACKED = {"profile": "packed"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory, corpus):
    """The same draws in plain columns, which no code of ids stands between."""
    out = tmp_path_factory.mktemp("plain") / "store"
    build_tiny(out, corpus, **SYSTEMATIC, profile="open", container="parquet")
    return open_store(out)


def by_id(t):
    """Ids and weights of each position, by id."""
    w = np.where(t.kept, np.exp(-t.gaps.astype(np.float64)), 0)
    w /= w.sum(axis=1, keepdims=True)
    order = np.argsort(np.where(t.kept, t.ids, np.int64(2**31)), axis=1, kind="stable")
    counts = t.kept.sum(axis=1)
    ids, w = np.take_along_axis(t.ids, order, 1), np.take_along_axis(w, order, 1)
    return [(i[:n].tolist(), v[:n]) for i, v, n in zip(ids, w, counts, strict=True)]


def assert_same_draws(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one.row.input_ids, other.row.input_ids)
        for (ids, weights), (ids_too, weights_too) in zip(
            by_id(one.targets), by_id(other.targets), strict=True
        ):
            assert ids == ids_too
            np.testing.assert_allclose(weights, weights_too, rtol=3e-3)  # float16 in the open one


@pytest.mark.parametrize("container", ["parquet", "zarr"])
def test_ids_counts_and_summaries_come_back(tmp_path, corpus, plain, container):
    build_tiny(tmp_path / "s", corpus, **SYSTEMATIC, **PACKED, container=container)
    store = open_store(tmp_path / "s")
    assert store.manifest.identity.encoding.values == "counts"
    assert verify_store(tmp_path / "s").problems == []
    assert_same_draws(plain, store)
    for one, other in zip(plain, store, strict=True):
        np.testing.assert_array_equal(one.targets.summary.top, other.targets.summary.top)
        w = [v * 20 for _, v in by_id(other.targets)]
        assert all(np.abs(v - np.rint(v)).max() < 1e-4 for v in w)


def test_the_label_is_code_0(tmp_path, corpus):
    build_tiny(tmp_path / "s", corpus, **SYSTEMATIC, **PACKED)
    store = open_store(tmp_path / "s")
    identity, shard = store.manifest.identity, store.shard(0)
    streams = streams_of(shard, identity, None)
    t, labels = shard.targets, np.concatenate([r.labels for r in shard.rows])
    kept = (t.kept & (t.ids == labels[:, None])).any(axis=1)
    assert 0 < kept.sum() < len(labels)
    assert by_id(shard_back(streams, identity))[0][0] == by_id(t)[0][0]
    codes = np.array([[5, 7], [7, 9]], np.uint32)
    first = _label_first(codes, np.array([[3, 4], [4, 6]]), np.array([4, -1]))
    assert first.tolist() == [[6, 0], [8, 10]]
    assert _label_first(codes, codes, None) is codes


def shard_back(streams, identity):
    return shard_of(streams, None, Reading(identity=identity, start_row=0, where="s")).targets


def test_other_domains_and_positions_without_a_label(tmp_path):
    lines = [{"text": "A good film."}, {"text": "Dull, dull.", "label": "bad"}] * 3
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    changes = {"domain": "sequence-classification", "k": 3, "values": "counts", **PACKED}
    config = BuildConfig(
        teacher="fake:tiny-text",
        corpus=(f"jsonl:{tmp_path}/t.jsonl",),
        estimator="systematic",
        seq_len=32,
        **changes,
    )
    build(config, tmp_path / "s", teacher=TinyTextTeacher(("bad", "neither", "good")))
    store = open_store(tmp_path / "s")
    assert {int(x) for r in store for x in r.row.labels} == {-1, 0}
    identity, shard = store.manifest.identity, store.shard(0)
    streams = streams_of(shard, identity, None)
    streams["ids.0"] = pack(np.zeros(shard.targets.n, np.uint32))
    with pytest.raises(TargetError, match="an id outside"):
        shard_back(streams, identity)


def test_a_dictionary_and_other_containers_hold_the_same(tmp_path, corpus, plain):
    build_tiny(tmp_path / "s", corpus, **SYSTEMATIC, **PACKED)
    book = dictionary_from(open_store(tmp_path / "s").shard(0))
    (tmp_path / "d").write_bytes(book)
    build_tiny(tmp_path / "t", corpus, **SYSTEMATIC, **PACKED, dictionary=str(tmp_path / "d"))
    assert_same_draws(plain, open_store(tmp_path / "t"))
    convert(tmp_path / "s", tmp_path / "u", profile="packed", container="zarr", values="nat64")
    convert(tmp_path / "u", tmp_path / "v", profile="packed", container="parquet", values="counts")
    for one, other in zip(plain, open_store(tmp_path / "v"), strict=True):
        assert [i for i, _ in by_id(one.targets)] == [i for i, _ in by_id(other.targets)]


def dictionary_from(shard):
    t = shard.targets
    return train(contexts(shard.rows), t.ids, t.kept).to_bytes()


# -- --mean-k -------------------------------------------------------------------------------------


def test_mean_k_finds_the_draws_that_keep_so_many(tmp_path, corpus):
    notices = Notices()
    config = config_of(corpus, **SYSTEMATIC, mean_k=6.0)
    build(config, tmp_path / "s", teacher=TinyTeacher(), reporter=notices)
    store = open_store(tmp_path / "s")
    targets = store.manifest.identity.targets
    kept = store.manifest.statistics.kept_ids / store.manifest.identity.corpus.positions
    assert targets.mean_k == 6.0
    assert targets.k > 6
    assert kept == pytest.approx(6.0, rel=0.1)
    assert any(f"--k {targets.k} keeps" in line for line in notices.lines)
    assert dry_run(config, tmp_path / "s", teacher=TinyTeacher()).rows == len(store)


def test_other_builders_take_what_the_plan_says(tmp_path, corpus):
    config = config_of(corpus, **SYSTEMATIC, mean_k=6.0)
    first = build(config, tmp_path / "s", teacher=TinyTeacher())
    (tmp_path / "s" / "manifest.json").unlink()
    again = build(config, tmp_path / "s", teacher=TinyTeacher())
    assert again.content_digest == first.content_digest
    with pytest.raises(PlanError, match=r"mean_k = 6\.0, this build has 5\.0"):
        build(replace(config, mean_k=5.0), tmp_path / "s", teacher=TinyTeacher())


def test_what_no_draws_can_keep_is_refused(tmp_path, corpus):
    with pytest.raises(ConfigError, match="--mean-k 0: expected a number above 0"):
        config_of(corpus, mean_k=0)
    config = config_of(corpus, estimator="topk", mean_k=1e4)
    with pytest.raises(ConfigError, match=r"--mean-k 10000: --k 256 keeps 256 ids on average"):
        build(config, tmp_path / "s", teacher=TinyTeacher())
