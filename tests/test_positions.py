"""Position selection: which positions get a soft target, and that the others stay whole without one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlabels.builder.teach import draw_uniforms
from softlabels.core.positions import PositionRule
from softlabels.core.targets import SoftTargets
from softlabels.errors import ConfigError, PlanError, TargetError
from softlabels.estimators.entropy import whole
from softlabels.format.manifest import load_manifest
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.fakes import TinyTeacher, build_tiny, config_of, write_corpus


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")


# -- the rule -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("random:0.25", "random:0.25"),
        ("random:.250", "random:0.25"),
        ("entropy:1", "entropy:1"),
        ("entropy:1.0", "entropy:1"),
        ("entropy:5e-2", "entropy:0.05"),
    ],
)
def test_a_rule_has_one_spelling(text, spelling):
    assert str(PositionRule.parse(text)) == spelling


@pytest.mark.parametrize(
    "text",
    [
        "",
        "random",
        "random:",
        "random:0",
        "random:inf",
        "random:sNaN",
        "random:1e-999999999",
        "random:0.1234567890123",
        "random:a",
        "entropy:1.01",
        "entropy:-0.5",
        "entropy:nan",
        "top:1",
        "0.5",
    ],
)
def test_what_is_no_rule_is_refused(corpus, text):
    with pytest.raises(ConfigError, match=r"^--positions '.*above 0 and at most 1"):
        config_of(corpus, positions=text)


def choose(text, n, *, seed=0, row=0, entropy=None):
    given = np.zeros(n, np.float32) if entropy is None else np.array(entropy, np.float32)
    return PositionRule.parse(text).choose(n, seed=seed, row=row, entropy=given)


def test_random_positions_are_pinned_and_do_not_share_the_estimators_draws():
    assert np.flatnonzero(choose("random:0.3", 12, seed=7, row=3)).tolist() == PINNED
    own = np.random.Generator(np.random.Philox(key=[7, 3], counter=[0, 0, 0, 1])).random(500)
    np.testing.assert_array_equal(choose("random:0.5", 500, seed=7, row=3), own < 0.5)
    assert abs(np.corrcoef(own, draw_uniforms(7, 3, 500))[0, 1]) < 0.15


PINNED = [0, 4, 6, 8, 9, 10, 11]


def test_a_random_share_is_met_on_the_average_and_depends_on_the_place_alone():
    many = choose("random:0.3", 20_000)
    assert abs(many.mean() - 0.3) < 0.015
    np.testing.assert_array_equal(choose("random:0.3", 70), many[:70])
    assert choose("random:1", 1000).all()
    assert (choose("random:0.5", 99, row=1) != choose("random:0.5", 99, row=2)).any()
    assert (choose("random:0.5", 99, seed=1) != choose("random:0.5", 99, seed=2)).any()


def test_entropy_takes_the_least_certain_and_of_equals_the_first():
    assert choose("entropy:0.5", 5, entropy=[1, 3, 2, 3, 0]).tolist() == [0, 1, 1, 1, 0]
    assert choose("entropy:0.4", 5, entropy=[2, 2, 2, 2, 2]).tolist() == [1, 1, 0, 0, 0]
    many = np.arange(1000) % 3
    assert np.flatnonzero(choose("entropy:0.3", 1000, entropy=many)).tolist() == [*range(2, 900, 3)]
    assert choose("entropy:0.07", 100).sum() == 7  # 0.07 * 100 is 7.000000000000001 in binary
    assert choose("entropy:0.001", 3).sum() == 1
    assert choose("entropy:0.5", 0).shape == (0,)


@given(
    seed=st.integers(0, 2**32), scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]), v=st.integers(1, 80)
)
def test_entropies_equal_the_dense_float64_ones(seed, scale, v):
    z = torch.randn(6, v, generator=torch.Generator().manual_seed(seed)) * scale
    before = z.clone()
    found = whole(z).entropy
    assert torch.equal(z, before)
    log_p = torch.log_softmax(z.double(), 1)
    expected = -(log_p.exp() * log_p).sum(1).numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-14)  # of the reference, not ours
    one = np.concatenate([whole(row).entropy for row in z.split(1)])
    np.testing.assert_allclose(found, one, rtol=1e-6)


def test_a_certain_teachers_entropy_keeps_its_digits():
    z = torch.tensor([[0.0, -40.0, -1e30]])
    assert whole(z).entropy[0] == pytest.approx(41 * np.exp(-40.0), rel=1e-5, abs=0)
    z = torch.tensor([[0.0, 0.0, -100.0]])
    assert whole(z).entropy[0] == pytest.approx(np.log(2), rel=1e-6)


# -- in memory ------------------------------------------------------------------------------------


def mixed(**changes):
    """A soft position, a hard-label-only one, a soft one."""
    inf = np.inf
    values = {
        "ids": np.array([[4, 1], [0, 0], [7, 7]], np.int32),
        "gaps": np.array([[0, 1], [inf, inf], [0, inf]], np.float32),
        "log_odds": np.array([[-1, 2], [inf, inf], [0, -inf]], np.float32),
        "temperatures": (1.0, 2.0),
        "vocab_size": 10,
        "estimator": "topk",
    }
    return SoftTargets(**(values | changes))


def test_a_position_without_soft_target_has_no_probability_and_all_tail():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        t = mixed()
        t.validate()
        assert t.soft.tolist() == [True, False, True]
        for temperature in t.temperatures:
            assert (t.log_probs(temperature)[1] == -np.inf).all()
            assert (t.probs(temperature)[1] == 0).all()
            assert t.tail(temperature)[1] == 1
            np.testing.assert_array_equal(
                t.log_probs(temperature)[[0, 2]], t[np.array([0, 2])].log_probs(temperature)
            )
            np.testing.assert_allclose(t.dense(temperature).sum(1), 1, rtol=1e-6)
        none = t[1:2]
        narrow = mixed(
            ids=np.zeros((3, 0), np.int32),
            gaps=np.zeros((3, 0), np.float32),
            log_odds=np.full((3, 2), np.inf, np.float32),
        )
        narrow.validate()
        assert narrow.log_probs(1.0).shape == (3, 0)
        joined = SoftTargets.concatenate([narrow, t, none])
        joined.validate()
        assert joined.soft.tolist() == [False, False, False, True, False, True, False]


@pytest.mark.parametrize(
    ("name", "place", "value", "says"),
    [
        ("log_odds", (1, 0), 3.0, "a kept set without any mass"),
        ("log_odds", (1, slice(None)), 3.0, "smallest gap is not 0"),
        ("log_odds", (1, slice(None)), -np.inf, "smallest gap is not 0"),
        ("log_odds", (1, 1), np.nan, "NaN"),
        ("log_odds", (1, slice(None)), np.nan, "NaN"),
        ("gaps", (1, 0), 0.0, "a kept set without any mass"),
        ("gaps", (1, slice(None)), np.nan, "negative or NaN"),
        ("ids", (1, 0), 99, "an id outside"),
    ],
)
def test_half_of_a_hard_label_only_position_is_refused(name, place, value, says):
    broken = getattr(mixed(), name).copy()
    broken[place] = value
    with pytest.raises(TargetError, match=f"^here: position 1 has .*{says}"):
        mixed(**{name: broken}).validate(where="here")


# -- in a store -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["random:0.3", "entropy:0.25", "entropy:1"])
@pytest.mark.parametrize(
    "kind",
    [
        {"estimator": "topk", "temperature": (1.0, 2.0)},
        {"estimator": "sampled", "temperature": (2.0,)},
        {"estimator": "topp", "k": 9, "top_p": 0.6},
    ],
)
def test_soft_positions_are_as_without_and_the_others_empty(corpus, tmp_path, rule, kind):
    build_tiny(tmp_path / "all", corpus, **kind)
    some = build_tiny(tmp_path / "some", corpus, positions=rule, **kind)
    assert verify_store(tmp_path / "some").problems == []
    assert some.identity.targets.positions == rule
    teacher = TinyTeacher()
    counted = 0
    for a, b in zip(open_store(tmp_path / "all"), open_store(tmp_path / "some"), strict=True):
        n = b.targets.n
        uncertain = torch.distributions.Categorical(logits=teacher.dense(b.row).double()).entropy()
        entropy = uncertain.numpy().astype(np.float32)
        wanted = choose(rule, n, row=b.index, entropy=entropy)
        np.testing.assert_array_equal(b.targets.soft, wanted)
        for t in a.targets.temperatures:
            np.testing.assert_array_equal(a.targets.probs(t)[wanted], b.targets.probs(t)[wanted])
        counted += int(wanted.sum())
        np.testing.assert_array_equal(a.row.label_mask, b.row.label_mask)
    whole = load_manifest(tmp_path / "all").statistics
    if rule == "entropy:1":
        assert some.statistics == whole
        assert b"soft_positions" not in (tmp_path / "some" / "manifest.json").read_bytes()
        return
    assert some.statistics.soft_positions == counted < some.identity.corpus.positions
    assert some.statistics.teacher_nll == whole.teacher_nll
    mean = np.array(some.statistics.kept_mass) / counted
    assert ((mean > 0) & (mean <= 1)).all()
    assert some.data_bytes < load_manifest(tmp_path / "all").data_bytes


@pytest.mark.parametrize("rule", ["random:0.3", "entropy:0.25"])
def test_neither_batches_nor_chunks_nor_shards_change_which(corpus, tmp_path, rule):
    build_tiny(tmp_path / "a", corpus, positions=rule, batch_tokens=1)
    build_tiny(
        tmp_path / "b",
        corpus,
        positions=rule,
        batch_tokens=4096,
        shard_rows=5,
        teacher=TinyTeacher(chunk=33),
    )
    for a, b in zip(open_store(tmp_path / "a"), open_store(tmp_path / "b"), strict=True):
        np.testing.assert_array_equal(a.targets.soft, b.targets.soft)


def test_a_killed_build_is_finished_with_the_same_positions_only(corpus, tmp_path):
    build_tiny(tmp_path / "s", corpus, positions="random:0.5")
    whole = {p.name: p.read_bytes() for p in (tmp_path / "s" / "data").iterdir()}
    (tmp_path / "s" / "manifest.json").unlink()
    for name in ("commits/00001.json", "README.md"):
        (tmp_path / "s" / name).unlink()
    next(p for p in (tmp_path / "s" / "data").iterdir() if "00001-of" in p.name).unlink()
    for other in ("random:0.4", "entropy:0.5", None):
        with pytest.raises(PlanError, match=r"targets positions = 'random:0\.5', this build has"):
            build_tiny(tmp_path / "s", corpus, positions=other)
    build_tiny(tmp_path / "s", corpus, positions="random:.50")
    assert {p.name: p.read_bytes() for p in (tmp_path / "s" / "data").iterdir()} == whole


def test_figures_are_means_over_the_soft_positions(corpus, tmp_path):
    from softlabels.format.figures import figures_of

    build_tiny(tmp_path / "s", corpus, positions="random:0.3", temperature=(1.0, 2.0))
    store = open_store(tmp_path / "s")
    figures = figures_of(store.manifest)
    soft = [r.targets[r.targets.soft] for r in store]
    assert figures.soft_positions == sum(t.n for t in soft)
    for i, t in enumerate((1.0, 2.0)):
        expected = np.concatenate([1 - x.tail(t) for x in soft]).mean()
        assert figures.kept_mass[i] == pytest.approx(float(expected), rel=1e-3)
    card = (tmp_path / "s" / "README.md").read_text()
    assert f"{figures.soft_positions:,} have a soft target (`random:0.3`)" in card
    assert f"{figures.kept_mass[0]:.4f} at T=1" in card


def test_inspect_says_which_are_hard_label_only(corpus, tmp_path):
    import json

    from click.testing import CliRunner

    from softlabels.cli.main import main

    build_tiny(tmp_path / "s", corpus, positions="entropy:0.25", limit_rows=4)
    soft = open_store(tmp_path / "s").row(1).targets.soft
    run = CliRunner()
    lines = run.invoke(main, ["inspect", str(tmp_path / "s"), "--row", "1"]).stdout.splitlines()
    lines = lines[-len(soft) :]
    assert ["hard label only" not in line for line in lines] == soft.tolist()
    found = json.loads(
        run.invoke(main, ["inspect", str(tmp_path / "s"), "--row", "1", "--json"]).stdout
    )
    assert [p["soft"] for p in found["positions"]] == soft.tolist()
    assert all(p["kept"] == [] for p in found["positions"] if not p["soft"])
    assert (
        "soft, entropy:0.25; the others hard label only"
        in run.invoke(main, ["inspect", str(tmp_path / "s")]).output
    )
