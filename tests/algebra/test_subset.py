"""subset: rows by predicate, number or sample; fewer ids and temperatures, exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlabels.algebra.merge import merge
from softlabels.algebra.narrow import fewer_ids
from softlabels.algebra.predicate import row_columns
from softlabels.algebra.subset import subset
from softlabels.algebra.subset_config import SubsetConfig
from softlabels.core.targets import SoftTargets, gaps_from_logp
from softlabels.errors import ConfigError, IntegrityError, PairingError
from softlabels.estimators import make_estimator
from softlabels.format.shard import Shard
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.algebra.compare import content, same, varied_corpus
from tests.algebra.test_merge import KINDS, parts
from tests.fakes import build_tiny, write_corpus


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """One store of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    return {name: parts(folder / name.replace(" ", "-"), 1, **k)[0] for name, k in KINDS.items()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    corpus = varied_corpus(folder / "text")
    build_tiny(folder / "store", corpus, temperature=(1.0, 2.0, 4.0), shard_rows=5, k=9)
    return folder / "store"


def rows_are(store, numbers, source):
    """The store's rows are those rows of the source, to the last bit."""
    made, original = open_store(store), open_store(source)
    assert verify_store(store).problems == []
    assert len(made) == len(numbers)
    for i, number in enumerate(numbers):
        a, b = made.row(i), original.row(number)
        assert a.row.digest() == b.row.digest()
        np.testing.assert_array_equal(a.row.documents, b.row.documents)
        for t in b.targets.temperatures:
            ia, ib = (np.argsort(np.where(x.targets.kept, x.targets.ids, 2**30), 1) for x in (a, b))
            k = min(a.targets.k, b.targets.k)
            pa, pb = (
                np.take_along_axis(x.targets.probs(t), o, 1)[:, :k] for x, o in ((a, ia), (b, ib))
            )
            np.testing.assert_array_equal(pa, pb)
        np.testing.assert_array_equal(a.targets.log_odds, b.targets.log_odds)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_keep_every_bit_of_their_targets(kinds, tmp_path, kind):
    source = kinds[kind]
    rows = len(open_store(source))
    subset(source, SubsetConfig(where="row % 2 = 1"), tmp_path / "odd")
    rows_are(tmp_path / "odd", range(1, rows, 2), source)
    subset(source, SubsetConfig(first=5), tmp_path / "five")
    rows_are(tmp_path / "five", range(5), source)


def test_whole_shards_are_shared(built, tmp_path):
    manifest = subset(built, SubsetConfig(first=12), tmp_path / "s")
    links = [(tmp_path / "s" / s.name).stat().st_nlink for s in manifest.shards]
    assert links == [2, 2, 1]
    assert [s.rows for s in manifest.shards] == [5, 5, 2]
    assert manifest.provenance.operation == "subset"
    assert manifest.provenance.parameters == {"first": "12"}
    assert "nats per token, right about" in (tmp_path / "s/README.md").read_text()


def test_the_loss_over_some_rows_is_not_known_without_summaries(tmp_path):
    build_tiny(tmp_path / "a", write_corpus(tmp_path / "text"), position_summary=False)
    manifest = subset(tmp_path / "a", SubsetConfig(first=2), tmp_path / "s")
    assert manifest.statistics.teacher_nll is None  # of two rows of a shard it is not known
    assert "not known" in (tmp_path / "s/README.md").read_text()


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (
            "row BETWEEN 3 AND 8 OR tokens < 64",
            lambda r, s: 3 <= r <= 8 or len(s.row.input_ids) < 64,
        ),
        ("positions >= 62", lambda r, s: s.targets.n >= 62),
        (
            "segments > 1 AND document < 9",
            lambda r, s: len(s.row.documents) > 1 and s.row.documents[0] < 9,
        ),
        ("mean_tail > 0.165", lambda r, s: s.targets.tail(1.0).astype(float).mean() > 0.165),
        ("mean_top < 0.43", lambda r, s: s.targets.probs(1.0).max(1).astype(float).mean() < 0.43),
        ("digest < '8'", lambda r, s: s.row.digest().hex() < "8"),
        ("soft_positions = positions AND kept_ids > 500", lambda r, s: s.targets.kept.sum() > 500),
    ],
)
def test_conditions(built, tmp_path, condition, holds):
    expected = [i for i, stored in enumerate(open_store(built)) if holds(i, stored)]
    assert 0 < len(expected) < len(open_store(built))
    subset(built, SubsetConfig(where=condition), tmp_path / "s")
    rows_are(tmp_path / "s", expected, built)


def test_mean_entropy_is_that_of_the_stored_distribution(built):
    shard = open_store(built).shard(0)
    found = row_columns(shard)
    named = (Path(__file__).parents[2] / "docs" / "algebra.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in named for name in found.columns)
    for r in range(len(shard.rows)):
        t = shard.row(r).targets
        outcomes = np.hstack([t.probs(1.0), t.tail(1.0)[:, None]]).astype(np.float64)
        expected = -(outcomes * np.log(outcomes)).sum(1).mean()
        assert found["mean_entropy"][r] == pytest.approx(expected, rel=1e-6)


def test_a_row_without_soft_targets_has_no_means(tmp_path):
    corpus = write_corpus(tmp_path / "text", documents=3, repeat=1)
    build_tiny(tmp_path / "store", corpus, positions="random:0.02", shard_rows=4)
    columns = row_columns(open_store(tmp_path / "store").shard(0))
    assert columns["mean_tail"].null_count()
    subset(tmp_path / "store", SubsetConfig(where="mean_tail IS NULL"), tmp_path / "none")
    none = open_store(tmp_path / "none")
    assert not any(s.targets.soft.any() for s in none)
    subset(tmp_path / "store", SubsetConfig(where="mean_tail >= 0"), tmp_path / "some")
    assert len(none) + len(open_store(tmp_path / "some")) == len(open_store(tmp_path / "store"))


@pytest.mark.parametrize(
    ("condition", "what"),
    [
        ("tokens > avg(tokens)", "looks at other rows"),
        ("row = max(row)", "looks at other rows"),
        ("length > 3", "the columns are row, tokens"),
        ("tokens + 1", "expected a condition"),
        ("tokens >", "not an SQL expression"),
        ("", "not an SQL expression"),
    ],
)
def test_bad_conditions_are_refused_before_anything_is_written(built, tmp_path, condition, what):
    with pytest.raises(ConfigError, match=what):
        subset(built, SubsetConfig(where=condition), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_sample_and_a_merge_may_be_taken_in_either_order(tmp_path):
    a, b = parts(tmp_path, 2)
    merge([a, b], tmp_path / "ab")
    config = SubsetConfig(sample=0.5, seed=4)
    subset(tmp_path / "ab", config, tmp_path / "then")
    subset(a, config, tmp_path / "a")
    subset(b, config, tmp_path / "b")
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "first")
    same(content(tmp_path / "then"), content(tmp_path / "first"))
    rows = len(open_store(tmp_path / "then"))
    assert 0 < rows < len(open_store(tmp_path / "ab"))
    subset(tmp_path / "ab", SubsetConfig(sample=0.5, seed=5), tmp_path / "other")
    assert open_store(tmp_path / "other").digest != open_store(tmp_path / "then").digest


# -- fewer ids and temperatures -------------------------------------------------------------------


def selected(logits: torch.Tensor, k: int, grid: tuple[float, ...], **more) -> SoftTargets:
    """What a build keeps of dense logits."""
    name = "topp" if more else "topk"
    chosen = make_estimator(name, {"k": k, "temperatures": grid, **more}).select(
        logits.clone(), None
    )
    return SoftTargets(
        ids=chosen.ids.to(torch.int32).numpy(),
        gaps=gaps_from_logp(chosen.logp.numpy()),
        log_odds=chosen.log_odds.numpy(),
        temperatures=grid,
        vocab_size=logits.shape[1],
        estimator=name,
    )


@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.1, 1.0, 5.0, 20.0]),
    k=st.integers(2, 40),
    less=st.integers(1, 39),
    top_p=st.sampled_from([None, 0.5, 0.9, 0.999]),
)
def test_fewer_ids_are_what_a_build_with_that_k_keeps(seed, scale, k, less, top_p):
    less = min(less, k)
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(seed)) * scale
    grid = (0.5, 1.0, 3.0)
    more = {} if top_p is None else {"top_p": top_p}
    cut = fewer_ids(
        Shard(start_row=0, rows=[], targets=selected(logits, k, grid, **more)), less
    ).targets
    direct = selected(logits, less, grid, **more)
    cut.validate()
    for t in grid:
        np.testing.assert_allclose(cut.dense(t), direct.dense(t), rtol=2e-4, atol=1e-6)
        a, b = cut.log_odds[:, cut.grid_index(t)], direct.log_odds[:, direct.grid_index(t)]
        finite = np.abs(b) < 60  # beyond, float32 logits decide
        np.testing.assert_allclose(a[finite], b[finite], rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("profile", ["open", "packed"])
def test_a_store_with_fewer_ids_is_near_a_build_with_that_k(tmp_path, profile):
    corpus = write_corpus(tmp_path / "text")
    changes = {"temperature": (1.0, 2.0), "profile": profile}
    build_tiny(tmp_path / "wide", corpus, k=20, **changes)
    direct = build_tiny(tmp_path / "direct", corpus, k=6, **changes)
    manifest = subset(tmp_path / "wide", SubsetConfig(k=6), tmp_path / "cut")
    assert verify_store(tmp_path / "cut").problems == []
    assert manifest.identity.targets == direct.identity.targets
    assert manifest.statistics.teacher_nll == pytest.approx(direct.statistics.teacher_nll)
    for a, b in zip(open_store(tmp_path / "cut"), open_store(tmp_path / "direct"), strict=True):
        for t in (1.0, 2.0):
            p, q = (
                -np.sort(-x.targets.probs(t), axis=1) for x in (a, b)
            )  # of equals either may go
            np.testing.assert_allclose(p, q, rtol=0.07)
            np.testing.assert_allclose(a.targets.tail(t), b.targets.tail(t), rtol=0.07)
    if profile == "open":  # what is stored of the ids that stay is not rounded again
        wide = open_store(tmp_path / "wide").read_shard(0, keep_logp=True)
        cut = open_store(tmp_path / "cut").read_shard(0, keep_logp=True)
        np.testing.assert_array_equal(cut.logp, -np.sort(-wide.logp, axis=1)[:, :6])


def test_fewer_temperatures(built, tmp_path):
    manifest = subset(built, SubsetConfig(temperature=(4.0, 1.0)), tmp_path / "s")
    assert manifest.identity.targets.temperatures == [1.0, 4.0]
    assert verify_store(tmp_path / "s").problems == []
    for a, b in zip(open_store(tmp_path / "s"), open_store(built), strict=True):
        np.testing.assert_array_equal(a.targets.log_odds, b.targets.log_odds[:, [0, 2]])
        np.testing.assert_array_equal(a.targets.probs(4.0), b.targets.probs(4.0))
    kept = open_store(built).manifest.statistics.kept_mass
    np.testing.assert_allclose(manifest.statistics.kept_mass, [kept[0], kept[2]], rtol=1e-4)


@pytest.mark.parametrize(
    ("asked", "error", "what"),
    [
        ({}, ConfigError, "say what stays"),
        ({"k": 9}, ConfigError, "expected fewer"),
        ({"k": 0}, ConfigError, "--k 0"),
        ({"temperature": (3.0, 1.0)}, ConfigError, "not in the grid"),
        ({"temperature": (2.0,)}, ConfigError, "1 is missing"),
        ({"first": 3, "sample": 0.5}, ConfigError, "exclude each other"),
        ({"sample": 1.5}, ConfigError, "--sample 1.5"),
        ({"seed": 3}, ConfigError, "belongs to --sample"),
        ({"where": "row > 1000000"}, ConfigError, "nothing stays"),
    ],
)
def test_what_cannot_be_is_refused(built, tmp_path, asked, error, what):
    with pytest.raises(error, match=what):
        subset(built, SubsetConfig(**asked), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_samples_are_not_cut(tmp_path):
    corpus = write_corpus(tmp_path / "text", documents=1)
    for name in ("sampled", "rs"):
        build_tiny(tmp_path / name, corpus, estimator=name)
        with pytest.raises(PairingError, match="random sample"):
            subset(tmp_path / name, SubsetConfig(k=3), tmp_path / "s")
    build_tiny(tmp_path / "topp", corpus, estimator="topp", top_p=0.9, min_k=3)
    with pytest.raises(ConfigError, match="min_k"):
        subset(tmp_path / "topp", SubsetConfig(k=2), tmp_path / "s")


def test_a_damaged_source_is_refused_before_anything_is_written(built, tmp_path):
    import shutil

    shutil.copytree(built, tmp_path / "broken")
    shard = sorted((tmp_path / "broken/data").iterdir())[-1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 4
    shard.write_bytes(data)
    with pytest.raises(IntegrityError):
        subset(tmp_path / "broken", SubsetConfig(where="row < 2"), tmp_path / "s")
    assert not (tmp_path / "s").exists()
