"""A third-party package adds one of each: it passes the batteries, builds, is read without it, trains and exports."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from softlabels.algebra.append import append
from softlabels.algebra.subset import subset
from softlabels.algebra.subset_config import SubsetConfig
from softlabels.builder.build import build
from softlabels.builder.config import AppendConfig, BuildConfig
from softlabels.builder.dry_run import dry_run
from softlabels.cli.main import main as softlabels
from softlabels.core.kept import KeptSet
from softlabels.core.targets import SoftTargets
from softlabels.errors import ConfigError, FormatError, PairingError, PlanError
from softlabels.estimators import make_estimator
from softlabels.format.identity import TargetRecord
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from softlabels.testing import (
    check_codec,
    check_container,
    check_corpus,
    check_estimator,
    check_teacher,
)
from tests.fakes import TEXT
from tests.plugins import install, uninstall
from trainers.loss.losses import DistillLoss
from trainers.run.loop import RunConfig
from trainers.run.setup import train
from trainers.testing import check_export, check_loss, check_student

MINP = "minp?share=0.1"
STEPS = "even-steps?nats=0.02"


@pytest.fixture
def site(tmp_path, monkeypatch):
    install(tmp_path / "site", monkeypatch)
    return tmp_path / "site"


@pytest.fixture
def lines(tmp_path):
    words = TEXT.split()
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(" ".join(words[i : i + 20]) for i in range(40)), encoding="utf-8")
    return f"lines:{path}"


def config(lines, **changes):
    values = {
        "teacher": "bigrams:5",
        "corpus": (lines,),
        "estimator": MINP,
        "k": 9,
        "temperature": (1.0, 2.0),
        "values": STEPS,
        "profile": "packed",
        "container": "flat",
        "seq_len": 64,
        "shard_rows": 16,
    }
    return BuildConfig(**values | changes)


def test_it_passes_the_batteries(site, lines):
    check_estimator("minp?share=0.2", k=20, temperatures=(1.0, 3.0))
    check_codec(STEPS)
    check_container("flat")
    check_corpus(lines)
    check_teacher("bigrams:5")
    check_loss("hellinger")


def test_a_store_of_it_is_built_read_trained_on_and_exported(site, lines, tmp_path, monkeypatch):
    store, run = tmp_path / "store", tmp_path / "run"
    assert dry_run(config(lines), store).rows > 0
    manifest = build(config(lines), store)
    identity = manifest.identity
    assert identity.targets.estimator == MINP
    assert identity.targets.declared == KeptSet(largest=True)
    assert (identity.encoding.values, identity.encoding.packages) == (STEPS, ["softlabels-example"])
    assert verify_store(store).problems == []
    counts = np.concatenate([row.targets.kept.sum(axis=1) for row in open_store(store)])
    assert counts.min() >= 1
    assert len(set(counts.tolist())) > 3, "the kept set follows the share"
    shown = CliRunner().invoke(softlabels, ["inspect", str(store)])
    assert f"{MINP} k=9" in shown.output
    assert STEPS in shown.output
    with pytest.raises(PlanError, match=r"targets estimator = 'minp\?share=0.1', this build has"):
        build(config(lines, estimator="minp?share=0.2"), store)
    with pytest.raises(PlanError, match=r"values = 'even-steps\?nats=0.02'"):
        build(config(lines, values="even-steps"), store)
    smaller = subset(store, SubsetConfig(k=2), tmp_path / "smaller")
    assert smaller.identity.targets.declared == KeptSet(largest=True)

    check_student("wide:16", store)
    train(
        RunConfig(
            store=(str(store),), student="wide:16", loss="hellinger", steps=3, batch_size=4, lr=1e-3
        ),
        run,
    )
    build(config(lines, limit_rows=20), tmp_path / "heldout")
    check_export("half", run, tmp_path / "half", heldout=tmp_path / "heldout")

    uninstall(site, monkeypatch)
    with pytest.raises(
        FormatError, match=r"container 'flat' is not known.*package softlabels-example"
    ):
        open_store(store)


def test_a_store_is_read_and_trained_on_without_the_estimator(site, lines, tmp_path, monkeypatch):
    """What a reader must know of it is in the manifest."""
    plain = {"container": "parquet", "profile": "open", "values": None}
    build(config(lines, **plain), tmp_path / "store")
    before = [row.targets.probs(2.0) for row in open_store(tmp_path / "store")]
    uninstall(site, monkeypatch)
    store = open_store(tmp_path / "store")
    for p, row in zip(before, store, strict=True):
        np.testing.assert_array_equal(row.targets.probs(2.0), p)
        assert row.targets.keeps == KeptSet(largest=True)
    assert verify_store(tmp_path / "store").problems == []
    DistillLoss(divergence="reverse_kl", temperature=2.0).check(store.manifest.identity.targets)
    for command in (["inspect", "--row", "0"], ["report", "--out", str(tmp_path / "page.html")]):
        done = CliRunner().invoke(
            softlabels, [command[0], str(tmp_path / "store"), *command[1:]], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
    with pytest.raises(ConfigError, match="expected one of dense, rs"):
        append(
            tmp_path / "store",
            AppendConfig(teacher="hf:none", corpus=(lines,)),
            tmp_path / "more",
        )


def test_an_unknown_codec_names_what_to_install(site, lines, tmp_path, monkeypatch):
    build(config(lines, container="parquet"), tmp_path / "store")
    uninstall(site, monkeypatch)
    with pytest.raises(
        FormatError,
        match=r"type of values 'even-steps' is not known .* it says that it needs the package softlabels-example",
    ):
        open_store(tmp_path / "store")


def test_a_loss_that_refuses_samples_says_why(site, lines, tmp_path):
    store = build(config(lines, estimator="sampled", temperature=(1.0,)), tmp_path / "store")
    with pytest.raises(
        PairingError, match=r"hellinger does not go with .* the root of a probability"
    ):
        DistillLoss(divergence="hellinger").check(store.identity.targets)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("minp?share=2", "expected a share above 0"),
        ("minp?share=much", "parameter share: .*float"),
        ("minp?shares=0.1", "minp has no parameter 'shares'; it has share"),
        ("minp?share=0.1&share=0.2", "parameter share: say it once"),
        ("minp?k=3", "parameter k: say --k"),
        ("topk?share=0.1", "topk has no parameter 'share'; it has none"),
        ("nothing?share=0.1", "'nothing': expected one of dense, minp"),
    ],
)
def test_impossible_parameters_are_refused_before_the_build(site, lines, spec, message):
    with pytest.raises(ConfigError, match=rf"^--estimator .*{message}"):
        config(lines, estimator=spec)


def test_a_spec_is_recorded_with_its_defaults(site, lines):
    assert config(lines, estimator="minp").estimator == "minp?share=0.05"
    assert config(lines, values="even-steps").values == "even-steps?nats=0.05"


def test_a_declared_sample_is_treated_as_one():
    """Whatever its name: at its own temperature, and refused by losses that it would bias."""
    declared = KeptSet(sample=True, tail=False)
    record = TargetRecord(estimator="mine", k=2, temperatures=[2.0], seed=0, declared=declared)
    with pytest.raises(PairingError, match="reverse_kl does not go with a 'mine' store"):
        DistillLoss(divergence="reverse_kl", temperature=2.0).check(record)
    DistillLoss(divergence="forward_kl", temperature=2.0).check(record)
    targets = SoftTargets(
        ids=np.array([[3, 5]], np.int32),
        gaps=np.array([[0, np.log(3)]], np.float32),
        log_odds=np.array([[-np.inf]], np.float32),
        temperatures=(2.0,),
        vocab_size=9,
        estimator="mine",
        declared=declared,
    )
    np.testing.assert_allclose(targets.probs(2.0), [[0.75, 0.25]], rtol=1e-6)
    with pytest.raises(ValueError, match="a sample has no tail"):
        KeptSet(sample=True)


class Undeclared:
    def __init__(self, *, k: int, temperatures: tuple[float, ...]) -> None:
        self.k, self.temperatures = k, temperatures


def test_an_estimator_that_declares_nothing_is_refused_before_the_build(monkeypatch):
    monkeypatch.setattr("softlabels.core.registry.Registry.load", lambda *_: Undeclared)
    with pytest.raises(ConfigError, match=r"--estimator mine: declares no `keeps`"):
        make_estimator("mine", {"k": 3, "temperatures": (1.0,)})


def test_a_manifest_may_not_declare_anew_what_is_known(site, lines, tmp_path):
    from softlabels.format.manifest import load_manifest
    from softlabels.store.readable import check_known

    build(config(lines, container="parquet", values=None), tmp_path / "store")
    raw = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert raw["identity"]["targets"]["declared"] == {"largest": True}
    identity = load_manifest(tmp_path / "store").identity
    import msgspec

    for changes, message in (
        ({"estimator": "rs"}, "the manifest declares once more"),
        ({"declared": None}, "does not declare what it keeps"),
        ({"temperatures": [2.0]}, "needs T=1"),
    ):
        targets = msgspec.structs.replace(identity.targets, **changes)
        with pytest.raises(FormatError, match=message):
            check_known(tmp_path, msgspec.structs.replace(identity, targets=targets))
