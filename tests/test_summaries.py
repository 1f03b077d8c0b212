"""Summaries of positions, from the teacher to whoever reads the store: against dense float64, and through rewriters."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from softlabels.algebra.convert import convert
from softlabels.algebra.merge import merge
from softlabels.algebra.subset import subset
from softlabels.algebra.subset_config import SubsetConfig
from softlabels.algebra.view import view
from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.cli.main import main
from softlabels.codecs.summary import entropy_bound
from softlabels.errors import PairingError, PlanError
from softlabels.estimators import ESTIMATORS
from softlabels.format.encoding import read_statistics
from softlabels.format.figures import figures_of
from softlabels.format.manifest import load_manifest
from softlabels.store.reader import open_store
from softlabels.teachers.ensemble import Ensemble
from softlabels.teachers.listing import Listed, kept_of
from tests.domains.fakes import TinyTextTeacher
from tests.fakes import TinyTeacher, build_tiny, write_corpus

V = 300


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus"), repeat=1)


def dense(teacher, rows) -> torch.Tensor:
    """Log-probabilities `[N, V] float64` at T=1."""
    return torch.log_softmax(torch.cat([teacher.dense(r) for r in rows]).double(), 1)


def whole_summary(store):
    parts = [stored.targets.summary for stored in store]
    return type(parts[0]).concatenate(parts)


def check(store, logp: torch.Tensor) -> None:
    """What a store says of its teacher's distributions `logp [N, V]`."""
    found = whole_summary(store)
    rows = [stored.row for stored in store]
    labels = torch.from_numpy(np.concatenate([r.labels for r in rows]).astype(np.int64))
    entropy = -(logp.exp() * logp).sum(1).numpy()
    assert (np.abs(found.entropy - entropy) <= entropy_bound(entropy) + 1e-6).all()
    expected = logp.gather(1, labels[:, None])[:, 0].numpy()
    np.testing.assert_allclose(found.label_logp, expected, rtol=2.0**-11, atol=2.0**-20)
    np.testing.assert_array_equal(found.top, logp.argmax(1).numpy())
    figures = figures_of(store.manifest)
    right = (logp.argmax(1) == labels).double().mean()
    assert figures.accuracy == pytest.approx(float(right))
    assert figures.entropy == pytest.approx(entropy.mean(), rel=1e-5)
    assert figures.teacher_nll == pytest.approx(-expected.mean(), rel=1e-5)


@pytest.mark.parametrize(
    "job",
    [
        {"estimator": "topk", "temperature": (1.0, 2.0, 4.0)},
        {"estimator": "topp", "top_p": 0.8, "k": 20},
        {"estimator": "dense", "k": V, "temperature": (0.5, 1.0, 3.0)},
        {"estimator": "sampled", "k": 6},
        {"estimator": "sampled", "k": 6, "temperature": (2.0,)},
        {"estimator": "rs", "k": 6, "profile": "packed"},
        {"estimator": "sampled", "positions": "random:0.3", "container": "zarr"},
        {"estimator": "topk", "positions": "entropy:0.3", "profile": "packed", "values": "nat16"},
    ],
)
def test_it_is_what_the_dense_teacher_says_at_one_whatever_is_kept(tmp_path, corpus, job):
    build_tiny(tmp_path / "s", corpus, limit_rows=3, shard_rows=2, **job)
    store = open_store(tmp_path / "s")
    assert store.manifest.version == "1.6"
    assert store.manifest.identity.summary.vocab_size == V
    check(store, dense(TinyTeacher(), [stored.row for stored in store]))


@pytest.mark.parametrize("average", ["probs", "logits"])
def test_it_is_of_the_average_of_several_teachers(tmp_path, corpus, average):
    members = [TinyTeacher(seed=1), TinyTeacher(seed=2)]
    weights = [0.25, 0.75]
    teacher = Ensemble(members, weights, average)
    build_tiny(tmp_path / "s", corpus, teacher=teacher, limit_rows=2, estimator="sampled")
    store = open_store(tmp_path / "s")
    rows = [stored.row for stored in store]
    parts = [dense(m, rows) for m in members]
    if average == "probs":
        mean = sum(w * p.exp() for w, p in zip(weights, parts, strict=True)).log()
    else:
        mean = torch.log_softmax(sum(w * p for w, p in zip(weights, parts, strict=True)), 1)
    check(store, mean)


def test_an_estimator_that_gives_none_has_it_computed(tmp_path, corpus, monkeypatch):
    """One of another package, written before there were summaries."""
    monkeypatch.delattr(ESTIMATORS.load("topk"), "gives_whole")
    build_tiny(tmp_path / "s", corpus, limit_rows=2)
    store = open_store(tmp_path / "s")
    check(store, dense(TinyTeacher(), [stored.row for stored in store]))


def test_a_list_says_the_label_and_the_likeliest_and_not_the_entropy():
    listed = Listed(
        np.array([[7, 3], [2, 9]]), np.log([[0.5, 0.25], [0.9, 0.05]]), np.log([0.25, 1.0 + 1e-9])
    )
    found = kept_of(listed)
    assert found.top.tolist() == [7, 2]
    np.testing.assert_allclose(found.label_logp, [np.log(0.25), 0.0], atol=1e-7)
    assert found.entropy.isnan().all()


def build_texts(out, domain, lines, **changes):
    out.parent.mkdir(exist_ok=True)
    path = out.parent / f"{out.name}.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
    teacher = TinyTextTeacher(None if domain == "masked-lm" else ("bad", "neither", "good"))
    values = {"estimator": "dense", "k": 3} if domain != "masked-lm" else {"k": 5}
    config = BuildConfig(
        teacher="fake:tiny-text",
        corpus=(f"jsonl:{path}",),
        domain=domain,
        seq_len=32,
        shard_rows=2,
        **(values | changes),
    )
    return build(config, out, teacher=teacher)


TEXTS = [{"text": f"film number {i}", "label": 0} for i in range(6)] + [{"text": "who knows"}]


def test_a_position_without_a_label_has_a_summary_without_its_log_probability(tmp_path):
    manifest = build_texts(tmp_path / "s", "sequence-classification", TEXTS)
    found = whole_summary(open_store(tmp_path / "s"))
    assert np.isnan(found.label_logp).tolist() == [False] * 6 + [True]
    assert not np.isnan(found.entropy).any()
    assert (found.top >= 0).all()
    assert manifest.statistics.label_counts == [6, 0, 0]
    assert manifest.statistics.labelled == 6
    assert figures_of(manifest).accuracy == np.mean(found.top[:6] == 0)
    texts = [{"text": x["text"]} for x in TEXTS]
    build_texts(tmp_path / "m", "masked-lm", texts, mask_targets="attended")
    store = open_store(tmp_path / "m")
    labels = np.concatenate([stored.row.labels for stored in store])
    found = whole_summary(store)
    np.testing.assert_array_equal(np.isnan(found.label_logp), labels == -1)
    assert not np.isnan(found.entropy).any()


def test_inspect_says_that_the_commonest_label_beats_the_teacher(tmp_path):
    build_texts(tmp_path / "s", "sequence-classification", TEXTS)
    manifest = load_manifest(tmp_path / "s")
    share = figures_of(manifest).accuracy
    assert share < 1, "the fake teacher knows nothing of films"
    said = CliRunner().invoke(main, ["inspect", str(tmp_path / "s")]).stdout
    assert f"{share:.2%} of 6 labels are its likeliest id" in said
    assert f"right about {share:.1%} of the labels, and 100.0% of them are 'bad'" in said
    found = json.loads(CliRunner().invoke(main, ["inspect", str(tmp_path / "s"), "--json"]).stdout)
    assert found["accuracy"] == pytest.approx(share)
    assert "that answer alone would be right more often" in found["warning"]


def test_inspect_says_that_a_teacher_is_worse_than_an_even_guess(tmp_path, corpus):
    build_tiny(tmp_path / "bad", corpus, teacher=TinyTeacher(scale=9.0), limit_rows=2)
    said = CliRunner().invoke(main, ["inspect", str(tmp_path / "bad")]).stdout
    assert "the teacher's loss is above 5.70 nats, the loss of an even guess among its 300" in said
    build_tiny(tmp_path / "even", corpus, teacher=TinyTeacher(scale=0.01), limit_rows=2)
    said = CliRunner().invoke(main, ["inspect", str(tmp_path / "even")]).stdout
    assert ("warning" in said) == (
        figures_of(load_manifest(tmp_path / "even")).teacher_nll > np.log(V)
    )


# -- without ---------------------------------------------------------------------------------------


def test_a_build_without_them_is_what_it_was_before_there_were_any(tmp_path, corpus):
    flags = {"limit_rows": 3, "shard_rows": 2, "position_summary": False}
    manifest = build_tiny(tmp_path / "s", corpus, **flags)
    assert "summary" not in msgspec.to_builtins(manifest.identity)
    statistics = msgspec.to_builtins(manifest.statistics)
    assert not {"teacher_right", "teacher_entropy", "label_counts"} & statistics.keys()
    shard = tmp_path / "s" / manifest.shards[0].name
    held = read_statistics(shard.read_bytes(), manifest.identity, where="s")
    assert not {"teacher_right", "teacher_entropy"} & msgspec.to_builtins(held).keys()
    store = open_store(tmp_path / "s")
    assert store.row(0).targets.summary is None
    said = CliRunner().invoke(main, ["inspect", str(tmp_path / "s")]).stdout
    assert "not held: the store has no summaries of positions" in said
    with pytest.raises(PlanError, match="--no-position-summary"):
        build_tiny(tmp_path / "s", corpus, **(flags | {"position_summary": True}))
    build_tiny(tmp_path / "t", corpus, limit_rows=3, shard_rows=2)
    with pytest.raises(PairingError, match="its summary "):
        merge([tmp_path / "s", tmp_path / "t"], tmp_path / "u")


# -- stores made from stores -----------------------------------------------------------------------


def same(a, b) -> None:
    for name in ("label_logp", "entropy", "top"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.mark.parametrize("estimator", ["topk", "sampled"])
def test_every_form_holds_the_same_numbers(tmp_path, corpus, estimator):
    build_tiny(tmp_path / "a", corpus, estimator=estimator, limit_rows=4, shard_rows=3)
    original = whole_summary(open_store(tmp_path / "a"))
    before = tmp_path / "a"
    for i, form in enumerate(
        [
            {"profile": "packed", "values": "nat16"},
            {"container": "zarr"},
            {"profile": "open", "values": "float32"},
            {"container": "parquet"},
        ]
    ):
        out = tmp_path / f"b{i}"
        made = convert(before, out, **form)
        same(whole_summary(open_store(out)), original)
        a, b = load_manifest(tmp_path / "a").statistics, made.statistics
        assert (a.teacher_right, a.labelled) == (b.teacher_right, b.labelled)
        assert b.teacher_entropy == pytest.approx(a.teacher_entropy, rel=0.02)
        before = out


def test_some_rows_fewer_ids_and_fewer_temperatures_keep_them(tmp_path, corpus):
    build_tiny(tmp_path / "a", corpus, temperature=(1.0, 2.0), k=6, limit_rows=4, shard_rows=4)
    store = open_store(tmp_path / "a")
    made = subset(
        tmp_path / "a", SubsetConfig(where="row <> 1", k=1, temperature=(1.0,)), tmp_path / "b"
    )
    left = whole_summary([store.row(r) for r in (0, 2, 3)])
    found = open_store(tmp_path / "b")
    same(whole_summary(found), left)
    labels = np.concatenate([stored.row.labels for stored in found])
    assert made.statistics.teacher_right == (left.top == labels).sum()
    # Of a shard that lost rows the teacher's loss is told from the summaries.
    assert made.statistics.teacher_nll == pytest.approx(-left.label_logp.sum(dtype=np.float64))


def test_targets_without_inputs_do_not_say_how_likely_the_label_was(tmp_path, corpus):
    """It would: the kept id of that log-probability is the text."""
    build_tiny(tmp_path / "a", corpus, limit_rows=4)
    subset(tmp_path / "a", SubsetConfig(drop_inputs=True), tmp_path / "b")
    original = whole_summary(open_store(tmp_path / "a"))
    found = whole_summary(open_store(tmp_path / "b", inputs=tmp_path / "a"))
    assert np.isnan(found.label_logp).all()
    np.testing.assert_array_equal(found.entropy, original.entropy)
    np.testing.assert_array_equal(found.top, original.top)


def test_inputs_without_targets_have_none(tmp_path, corpus):
    build_tiny(tmp_path / "a", corpus, limit_rows=4)
    made = subset(tmp_path / "a", SubsetConfig(inputs_only=True), tmp_path / "b")
    assert made.identity.summary is None
    assert open_store(tmp_path / "b").row(0).targets.summary is None


def test_a_view_keeps_the_teachers_own_and_forgets_a_likeliest_id_that_it_drops(tmp_path, corpus):
    build_tiny(tmp_path / "a", corpus, limit_rows=4)
    original = whole_summary(open_store(tmp_path / "a"))
    manifest, _ = view(tmp_path / "a", "trim:260", tmp_path / "b")
    assert manifest.identity.teacher.vocab_size == 260
    assert manifest.identity.summary.vocab_size == V
    found = whole_summary(open_store(tmp_path / "b"))
    np.testing.assert_array_equal(found.label_logp, original.label_logp)
    np.testing.assert_array_equal(found.entropy, original.entropy)
    assert (original.top >= 260).any()
    np.testing.assert_array_equal(found.top, np.where(original.top < 260, original.top, -1))
    table = tmp_path / "map.json"
    table.write_text(json.dumps([*range(1, 260), 0, *[-1] * 40]))
    seen = open_store(tmp_path / "a", vocab=f"map:{table}")
    top = whole_summary(seen).top
    known = original.top < 260
    np.testing.assert_array_equal(top[known], (original.top[known] + 1) % 260)
    assert (top[~known] == -1).all()


def test_rows_with_and_without_are_not_stacked(tmp_path, corpus):
    from softlabels.errors import TargetError

    build_tiny(tmp_path / "a", corpus, limit_rows=1)
    build_tiny(tmp_path / "b", corpus, limit_rows=1, position_summary=False)
    parts = [open_store(tmp_path / n).row(0).targets for n in ("a", "b")]
    with pytest.raises(TargetError, match="cannot be stacked"):
        type(parts[0]).concatenate(parts)


def test_the_dry_run_counts_their_bytes(tmp_path, corpus):
    from softlabels.builder.dry_run import dry_run
    from tests.fakes import config_of

    sizes = [
        dry_run(
            config_of(corpus, position_summary=held), tmp_path / "s", teacher=TinyTeacher()
        ).bytes_per_position
        for held in (True, False)
    ]
    assert 1.5 < sizes[0] - sizes[1] < 8  # a hundred bytes a column, in shards so small
