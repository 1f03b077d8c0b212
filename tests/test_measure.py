"""The fidelity certificate: right figures, kept safely, and a gate that bad stores do not pass."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from softlabels import open_store
from softlabels.builder.build import build
from softlabels.builder.config import MeasureConfig
from softlabels.builder.measure import check_gate, measure
from softlabels.cli.main import main
from softlabels.errors import FidelityError, StoreError, TeacherError, TokenizerError
from softlabels.estimators.topk import TopK
from softlabels.format.manifest import load_manifest
from softlabels.making import amend
from softlabels.making.repair import repair_store
from softlabels.store.verify import verify_store
from softlabels.teachers import TEACHERS
from tests.fakes import Notices, TinyTeacher, build_tiny, config_of, write_corpus
from tests.store.made_up import files_of, reseal

ALL = MeasureConfig(teacher="fake:tiny", positions=10**6)


class Shifted(TinyTeacher):
    """Says at each position what it should say at the one before: a tokenizer that is off by one."""

    def dense(self, row):
        return super().dense(row).roll(1, 0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text")


@pytest.fixture(scope="module")
def built(tmp_path_factory, corpus) -> Path:
    store = tmp_path_factory.mktemp("built") / "store"
    build_tiny(store, corpus, k=20, limit_rows=9, shard_rows=4, temperature=(1.0, 2.0))
    return store


@pytest.fixture
def store(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "store"))


def run(store, *, config=ALL, teacher=None, **options):
    return measure(store, config, teacher=teacher or TinyTeacher(chunk=500), **options)


# -- figures --------------------------------------------------------------------------------------


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def angle(a: np.ndarray, b: np.ndarray) -> float:
    return math.degrees(math.acos(min(1.0, a @ b / np.linalg.norm(a) / np.linalg.norm(b))))


def reference(store: Path, temperature: float, seed: int = 0) -> dict[str, float]:
    """Position by position, id by id, from the store's public reader and the teacher's dense logits."""
    teacher, rows, found = TinyTeacher(), list(open_store(store)), []
    for stored in rows:
        t = stored.targets
        key = np.array([seed, stored.index], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, 3]))
        noise = rng.standard_normal((t.n, t.vocab_size), np.float32).astype(np.float64)
        dense = teacher.dense(stored.row).numpy().astype(np.float64)
        spread = t.dense(temperature).astype(np.float64)
        for i in range(t.n):
            p, q = softmax(dense[i] / temperature), softmax((dense[i] + noise[i]) / temperature)
            kept = t.ids[i][t.kept[i]]
            others = np.setdiff1d(np.arange(t.vocab_size), kept)
            s, tail = spread[i][kept], spread[i][others].sum()
            bucket = spread[i].copy()
            bucket[others] = tail * q[others] / q[others].sum()
            alone = np.zeros(t.vocab_size)
            alone[kept] = s / s.sum()
            found.append(
                {
                    "kl": (p * np.log(p / spread[i])).sum(),
                    "kl_tail_bucket": (p[kept] * np.log(p[kept] / s)).sum()
                    + p[others].sum() * np.log(p[others].sum() / tail),
                    "kl_without_tail": (alone[kept] * np.log(alone[kept] / p[kept])).sum(),
                    "covered_mass": p[kept].sum(),
                    "top1_agreement": float(kept[s.argmax()] == p.argmax()),
                    "gradient_angle": angle(q - p, q - bucket),
                    "gradient_angle_without_tail": angle(q - p, q - alone),
                    "gradient_norm_ratio": np.linalg.norm(q - bucket) / np.linalg.norm(q - p),
                }
            )
    return {name: float(np.mean([f[name] for f in found])) for name in found[0]}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_means_are_those_of_a_plain_reference(built, temperature):
    fidelity = run(built, write=False)
    manifest = load_manifest(built)
    assert (fidelity.rows, fidelity.positions) == (9, manifest.identity.corpus.positions)
    (at,) = (a for a in fidelity.temperatures if a.temperature == temperature)
    for name, value in reference(built, temperature).items():
        estimate = getattr(at, name)
        assert estimate.mean == pytest.approx(value, rel=2e-4, abs=1e-6), name
        assert estimate.low <= estimate.mean <= estimate.high, name


def test_intervals_and_choice_come_from_the_seed(built):
    small = replace(ALL, positions=150)
    first, again = run(built, config=small, write=False), run(built, config=small, write=False)
    other = run(built, config=replace(small, seed=1), write=False)
    assert first == again
    assert first.rows < 9
    assert other.temperatures != first.temperatures


def test_the_interval_covers_the_mean_of_all_rows(built):
    """In most of 20 samples of a third of the rows."""
    whole = run(built, write=False).temperatures[0].covered_mass.mean
    hits = 0
    for seed in range(20):
        part = run(built, config=replace(ALL, positions=250, seed=seed), write=False)
        e = part.temperatures[0].covered_mass
        hits += e.low <= whole <= e.high
    assert hits >= 12


def test_many_rows_give_the_interval_of_a_normal_distribution(monkeypatch):
    """Rows of 1 to 9 positions, whose figures have a part in common: both ways agree."""
    from softlabels.builder import fidelity

    rng = np.random.default_rng(0)
    n = rng.integers(1, 10, 1500).astype(np.float64)
    sums = n * (3 + rng.normal(0, 1, 1500)) + rng.normal(0, 1, 1500)
    drawn = fidelity.Resampling(n, 0).estimate(sums)
    monkeypatch.setattr(fidelity, "MANY_ROWS", 1000)
    normal = fidelity.Resampling(n, 0).estimate(sums)
    assert normal.mean == drawn.mean
    assert normal.low == pytest.approx(drawn.low, abs=0.006)
    assert normal.high == pytest.approx(drawn.high, abs=0.006)
    assert 0.05 < normal.high - normal.low < 0.2


@pytest.mark.parametrize(
    "changes",
    [
        {"values": "float32"},
        {"values": "float16"},
        {"profile": "packed", "values": "nat16"},
        {"profile": "packed", "values": "nat8", "container": "zarr"},
        {"estimator": "dense", "k": 300},
        {"estimator": "topp", "top_p": 0.9, "k": 30},
        {"estimator": "sampled", "k": 12},
        {"positions": "entropy:0.3"},
    ],
)
def test_values_keep_the_promise_of_their_encoding(corpus, tmp_path, changes):
    build_tiny(tmp_path / "s", corpus, **({"k": 20, "limit_rows": 4} | changes))
    fidelity = run(tmp_path / "s")
    error = fidelity.temperatures[0].log_prob_error
    assert error.within == 1.0
    assert error.values > 100
    codec = load_manifest(tmp_path / "s").identity.encoding
    if codec.values != "float32":
        assert error.largest > 1e-4  # it is not compared with itself
    if changes.get("estimator") == "dense":
        assert fidelity.temperatures[0].kl.mean < 1e-4
    assert verify_store(tmp_path / "s").problems == []


def test_a_broken_promise_is_found(corpus, tmp_path, monkeypatch):
    select = TopK.select

    def off(self, logits, uniforms=None, **first):
        found = select(self, logits, uniforms, **first)
        found.logp[:, 3] -= 0.2
        return found

    monkeypatch.setattr(TopK, "select", off)
    build_tiny(tmp_path / "s", corpus, k=20, limit_rows=4)
    error = run(tmp_path / "s").temperatures[0].log_prob_error
    assert error.largest > 0.15
    assert 0 < error.within < 0.96


def test_a_sample_is_judged_by_its_means(corpus, tmp_path):
    build_tiny(tmp_path / "s", corpus, estimator="sampled", k=6)
    (at,) = run(tmp_path / "s").temperatures
    assert at.kl is None
    assert at.sample.excess.low < 0 < at.sample.excess.high
    build_tiny(tmp_path / "rs", corpus, estimator="rs", k=6)
    (rs,) = run(tmp_path / "rs").temperatures
    assert rs.log_prob_error is None
    assert rs.sample.squared_error.mean > at.sample.squared_error.mean
    assert at.mean_gradient_angle < at.gradient_angle.mean / 2


def test_only_soft_positions_count(corpus, tmp_path):
    manifest = build_tiny(tmp_path / "s", corpus, k=20, limit_rows=6, positions="random:0.3")
    fidelity = run(tmp_path / "s")
    assert fidelity.positions == manifest.statistics.soft_positions
    at = fidelity.temperatures[0]
    assert at.covered_mass.mean == pytest.approx(
        manifest.statistics.kept_mass[0] / manifest.statistics.soft_positions, abs=1e-3
    )


# -- the gate -------------------------------------------------------------------------------------


def no_tail(monkeypatch) -> None:
    """Builds from now on forget the tail, as other tools do."""
    select = TopK.select

    def without(self, logits, uniforms=None, **first):
        found = select(self, logits, uniforms, **first)
        return found._replace(log_odds=torch.full_like(found.log_odds, -torch.inf))

    monkeypatch.setattr(TopK, "select", without)


def make_store(kind: str, out: Path, corpus: str, monkeypatch) -> None:
    estimator = "sampled" if "sampled" in kind else "topk"
    config = config_of(corpus, k=4 if "k=4" in kind else 20, limit_rows=9, estimator=estimator)
    with monkeypatch.context() as patch:
        if "no tail" in kind:
            no_tail(patch)
        build(config, out, teacher=(Shifted if "shifted" in kind else TinyTeacher)())


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("topk", None),
        ("sampled", None),
        ("topk k=4 no tail", r"is infinite: the store gives no probability to ids"),
        ("topk k=4", r"KL\(teacher‖stored\) is 0\.\d+ nats"),
        ("topk shifted", r"KL\(teacher‖stored\) is \d\.\d+ nats"),
        ("sampled shifted", r"excess of cross-entropy .* is \d\.\d+ nats"),
    ],
)
def test_bad_stores_fail_the_gate_and_good_ones_pass(kind, says, corpus, tmp_path, monkeypatch):
    """By the command line; k=4 without a tail and targets off by one position are the two that must fail."""
    store = tmp_path / "store"
    make_store(kind, store, corpus, monkeypatch)
    assert verify_store(store).problems == []  # nothing is wrong with its bytes
    monkeypatch.setitem(TEACHERS.builtin, "fake", "tests.fakes:load_tiny")
    result = CliRunner().invoke(
        main, ["measure", str(store), "--teacher", "fake:0", "--max-kl", "0.2", "--json"]
    )
    assert result.exit_code == (0 if says is None else 1), result.output
    record = json.loads(result.stdout)
    assert record["written"]
    fidelity = load_manifest(store).fidelity
    assert record["fidelity"]["positions"] == fidelity.positions
    lines = result.stderr.splitlines()
    assert lines[0] == "teacher: tiny"
    errors = [line for line in lines if line.startswith("error: ")]
    if says is None:
        assert errors == []
    else:
        assert errors[0].startswith(f"error: {store}: at T=1 ")
        with pytest.raises(FidelityError, match=says):
            check_gate(fidelity, 0.2, where=str(store))


def test_the_gate_takes_the_upper_end(built):
    kl = run(built, write=False).temperatures[0].kl
    fidelity = run(built, write=False)
    worst = max(at.kl.high for at in fidelity.temperatures)
    check_gate(fidelity, worst, where="s")
    with pytest.raises(FidelityError, match="--max-kl allows"):
        check_gate(fidelity, worst - 1e-4, where="s")
    assert kl.mean < kl.high


# -- who may measure ------------------------------------------------------------------------------


def test_another_teacher_is_refused(store):
    with pytest.raises(TeacherError, match=r"give --teacher the model that made it"):
        run(store, teacher=TinyTeacher(seed=1))
    with pytest.raises(TokenizerError, match="tokenizer"):
        run(store, teacher=TinyTeacher(salt="other"))
    assert load_manifest(store).fidelity is None


def test_another_engine_is_mentioned(store):
    teacher = TinyTeacher()
    teacher.record = type(teacher.record)(
        **{f: getattr(teacher.record, f) for f in teacher.record.__struct_fields__}
        | {"engine": "tests 2"}
    )
    notices = Notices()
    fidelity = run(store, teacher=teacher, reporter=notices)
    assert notices.lines == [
        "engine: tests 2, the store was made with tests; part of the differences may come of that"
    ]
    assert fidelity.engine == "tests 2"


def test_a_read_only_store(store, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(StoreError, match="--no-write"):
        run(store)
    run(store, write=False)


# -- keeping the record ---------------------------------------------------------------------------


def test_the_record_changes_nothing_but_manifest_and_card(built, store):
    fidelity = run(store)
    before, after = files_of(built), files_of(store)
    assert {n for n in after if after[n] != before.get(n)} == {"manifest.json", "README.md"}
    manifest = load_manifest(store)
    assert manifest.fidelity == fidelity
    was, now = (json.loads(f["manifest.json"]) for f in (before, after))
    for m in (was, now):
        m["files"].pop("README.md")
        m.pop("digest")
    assert now.pop("fidelity")
    assert now == was
    assert verify_store(store).problems == []
    card = after["README.md"].decode()
    kl = fidelity.temperatures[1].kl
    assert f"{kl.mean:.4f} ({kl.low:.4f} to {kl.high:.4f}) nats |\n" in card
    shown = CliRunner().invoke(main, ["inspect", str(store)]).stdout
    assert f"KL(teacher‖stored) {fidelity.temperatures[0].kl.mean:.4f}" in shown
    assert run(store) == fidelity  # again: the same record
    assert files_of(store) == after


def test_no_write_leaves_every_byte(built, store):
    run(store, write=False)
    assert files_of(store) == files_of(built)


class Died(Exception):
    pass


@pytest.mark.parametrize("name", ["manifest.json", "README.md"])
def test_a_crash_between_the_two_files(built, store, monkeypatch, name):
    """Before the manifest: the old store. Between: the new one, whose card repair makes."""
    real = amend.replace

    def dies(path, data):
        if path.name == name:
            raise Died
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(amend, "replace", dies)
        with pytest.raises(Died):
            run(store)
    if name == "manifest.json":
        assert files_of(store) == files_of(built)
        return
    kept = load_manifest(store).fidelity
    assert kept is not None
    assert len(list(open_store(store))) == 9  # trainers do not mind
    (problem,) = verify_store(store).problems
    assert "README.md" in problem
    assert f"`softlabels repair {store}` makes it again" in problem
    repair = repair_store(store)
    assert repair.whole
    assert {a.file for a in repair.actions} == {"README.md"}
    assert verify_store(store).problems == []
    assert load_manifest(store).fidelity == kept
    assert "## Fidelity" in (store / "README.md").read_text()


def test_repair_keeps_the_record_where_it_makes_the_manifest_again(store):
    fidelity = run(store)
    raw = json.loads((store / "manifest.json").read_bytes())
    raw["files"]["README.md"] = {"sha256": "0" * 64, "bytes": 9}
    reseal(store / "manifest.json", files=raw["files"])
    assert repair_store(store).whole
    assert load_manifest(store).fidelity == fidelity
    assert verify_store(store).problems == []


def test_fields_of_a_later_version_are_not_dropped(store):
    raw = json.loads((store / "manifest.json").read_bytes())
    reseal(store / "manifest.json", cost=raw["cost"] | {"news": 1})
    before = files_of(store)
    with pytest.raises(StoreError, match="does not know and would drop"):
        run(store)
    assert files_of(store) == before


def test_a_damaged_shard_is_found(store):
    path = next((store / "data").iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="sha256"):
        run(store)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--positions", "0"], "--positions 0: expected at least 1"),
        (["--seed", "-1"], "--seed -1: expected at least 0"),
        (["--max-kl", "-1"], "--max-kl -1: expected a number of 0 or more"),
        (["--max-kl", "nan"], "--max-kl nan: expected a number of 0 or more"),
    ],
)
def test_bad_flags(store, flags, says):
    result = CliRunner().invoke(main, ["measure", str(store), "--teacher", "hf:none", *flags])
    assert result.exit_code == 2
    assert says in result.stderr


# -- other domains --------------------------------------------------------------------------------


@pytest.mark.parametrize("labelled", [True, False])
def test_a_classifier_of_texts(tmp_path, labelled):
    """By the command line, with a real encoder: one position for each row, three classes, all kept."""
    pytest.importorskip("transformers")
    from tests.domains import models

    models.save_classifier(tmp_path / "teacher")
    models.write_corpus(tmp_path / "texts.jsonl", labelled=labelled)
    teacher = f"hf:{tmp_path / 'teacher'}"
    config = config_of(
        f"jsonl:{tmp_path / 'texts.jsonl'}",
        domain="sequence-classification",
        estimator="dense",
        k=3,
        seq_len=16,
        dtype="float32",
    )
    build(replace(config, teacher=teacher), tmp_path / "store")
    arguments = ["measure", str(tmp_path / "store"), "--teacher", teacher, "--max-kl", "1e-5"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    (at,) = load_manifest(tmp_path / "store").fidelity.temperatures
    assert at.log_prob_error.within == 1.0
    assert at.covered_mass.mean == pytest.approx(1)
    assert (at.ece_teacher is not None) is labelled
    assert ("ECE of the teacher" in result.stdout) is labelled
    assert verify_store(tmp_path / "store").problems == []
