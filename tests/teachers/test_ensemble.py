"""An ensemble is its members' weighted mean, whatever their chunks and the padding of their heads."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from softlabels.builder.build import build
from softlabels.cli.main import main
from softlabels.errors import ConfigError, PlanError, TokenizerError
from softlabels.format.manifest import load_manifest
from softlabels.store.reader import open_store
from softlabels.teachers import TeacherOptions, open_teacher
from softlabels.teachers.ensemble import Ensemble, open_teachers, parse_weights
from tests.domains import models
from tests.fakes import Notices, TinyTeacher, build_tiny, config_of, write_corpus
from tests.teachers.server import serve
from tests.teachers.tiny import rows_of, write_model, write_texts

WEIGHTS = (0.5, 0.2, 0.3)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    for i, width in enumerate((416, 448, 416)):
        write_model(folder / f"m{i}", seed=i, vocab_size=width)
    write_texts(folder / "corpus")
    return folder


def members(ground, *head_bytes: int):
    return [
        open_teacher(f"hf:{ground}/m{i}", TeacherOptions(dtype="float32", head_bytes=b))
        for i, b in enumerate(head_bytes)
    ]


def expected(teachers, rows, average):
    """In float64, all at once."""
    z = [torch.cat([c.clone() for c in t.logits(rows)]).double() for t in teachers]
    beyond = 1 - torch.softmax(z[1], 1)[:, :416].sum(1)
    z = [part[:, :416] for part in z]
    p = [torch.softmax(part, 1) for part in z]
    mixture = sum(w * part for w, part in zip(WEIGHTS, p, strict=True))
    mean = sum(w * part for w, part in zip(WEIGHTS, z, strict=True))
    jsd = sum(
        w * (part * (part.log() - mixture.log())).sum(1) for w, part in zip(WEIGHTS, p, strict=True)
    )
    first = torch.stack([part.argmax(1) for part in p])
    split = (first != first[0]).any(0).double().mean()
    log_p = mixture.log() if average == "probs" else mean.log_softmax(1)
    return log_p, float(jsd.mean()), float(split), float(beyond.mean())


@pytest.mark.parametrize("average", ["probs", "logits"])
def test_it_is_the_weighted_mean_of_its_members(ground, average):
    teachers = members(ground, 5 * 4 * 416, 16 * 2**20, 7 * 4 * 416)
    ensemble = Ensemble(teachers, WEIGHTS, average)
    rows = rows_of(teachers[0], f"text:{ground}/corpus/*.txt")
    log_p, jsd, split, beyond = expected(teachers, rows, average)
    chunks = list(ensemble.logits(rows))
    assert max(len(c) for c in chunks) <= 5
    found = torch.cat(chunks).double().log_softmax(1)
    assert float((found - log_p).abs().max()) < 1e-4
    told = "\n".join(ensemble.remarks())
    assert f"{jsd:.4f} nats of Jensen-Shannon" in told
    assert f"first choices differ at {split:.1%}" in told
    assert f"hf:m1: {beyond:.2g} of its mass lay on ids from 416 on" in told
    assert beyond > 1e-3
    most = -sum(w * math.log(w) for w in WEIGHTS)
    assert 0 < jsd < most
    assert ensemble.record.vocab_size == 416


def test_equal_members_are_one_of_them(ground):
    teachers = members(ground, 2**20)
    ensemble = Ensemble(teachers * 2, [0.25, 0.75], "probs")
    rows = rows_of(teachers[0], f"text:{ground}/corpus/*.txt")
    a = torch.cat(list(teachers[0].logits(rows))).log_softmax(1)
    b = torch.cat(list(ensemble.logits(rows)))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert "0.0000 nats" in ensemble.remarks()[0]
    assert ensemble.remarks()[0].endswith("first choices differ at 0.0%")


def test_a_store_records_members_and_weights(ground, tmp_path):
    specs = (f"hf:{ground}/m0=1", f"hf:{ground}/m2=3")
    config = config_of(
        f"text:{ground}/corpus/*.txt", dtype="float32", temperature=(1.0, 2.0), values="float32"
    )
    config = type(config)(**(config.to_dict() | {"teacher": specs}))
    notices = Notices()
    manifest = build(config, tmp_path / "s", reporter=notices)
    record = manifest.identity.teacher
    assert record.spec == "ensemble:probs(hf:m0=0.25, hf:m2=0.75)"
    assert (record.name, record.dtype) == ("m0 + m2", "float32")
    assert sum("disagreement of 2 teachers" in line for line in notices.lines) == 1
    teachers = [open_teacher(f"hf:{ground}/m{i}", TeacherOptions(dtype="float32")) for i in (0, 2)]
    for stored in open_store(tmp_path / "s"):
        p = [torch.cat(list(t.logits([stored.row]))).double().softmax(1) for t in teachers]
        dense = 0.25 * p[0] + 0.75 * p[1]
        ids = torch.from_numpy(stored.targets.ids.astype(np.int64))
        for t in (1.0, 2.0):
            tempered = torch.softmax(dense.log() / t, 1).gather(1, ids).numpy()
            np.testing.assert_allclose(stored.targets.probs(t), tempered, rtol=1e-3, atol=1e-6)
    assert build(config, tmp_path / "s").digest == load_manifest(tmp_path / "s").digest
    for changes in ({"teacher": (specs[0], f"hf:{ground}/m2=2")}, {"average": "logits"}):
        other = type(config)(**(config.to_dict() | changes))
        with pytest.raises(PlanError, match="was planned with teacher weights_sha256"):
            build(other, tmp_path / "s")


def test_a_plan_of_mixed_dtypes_goes_on_with_each(ground):
    specs = [f"hf:{ground}/m0", f"hf:{ground}/m2"]
    mixed = open_teachers(specs, "probs", TeacherOptions(dtype="float32+bfloat16"))
    assert mixed.record.dtype == "float32+bfloat16"
    with pytest.raises(ConfigError, match="names 3 for 2 teachers"):
        open_teachers(specs, "probs", TeacherOptions(dtype="a+b+c"))


def test_weights_are_parsed():
    assert parse_weights(["hf:a=1", "hf:b=3"]) == [("hf:a", 0.25), ("hf:b", 0.75)]
    assert parse_weights(["hf:a", "py:m.f?tokenizer=5"]) == [
        ("hf:a", 0.5),
        ("py:m.f?tokenizer=5", 0.5),
    ]
    assert parse_weights(["py:m.f?tokenizer=t=1", "hf:b=1"])[0] == ("py:m.f?tokenizer=t", 0.5)
    for bad in ("hf:a=0", "hf:a=-1", "hf:a=inf", "hf:a=nan"):
        with pytest.raises(ConfigError, match="expected a weight above 0"):
            parse_weights([bad, "hf:b=1"])
    with pytest.raises(ConfigError, match="'hf:b': has no weight, others have"):
        parse_weights(["hf:a=1", "hf:b"])


def test_other_tokenizers_are_refused():
    with pytest.raises(TokenizerError, match="average teachers of one tokenizer"):
        Ensemble([TinyTeacher(), TinyTeacher(salt="x")], [0.5, 0.5], "probs")


def test_a_teacher_without_logits_is_refused(ground):
    (hf,) = members(ground, 2**20)
    with serve(hf) as (_, url):
        specs = [f"hf:{ground}/m0", f"openai:{url}?tokenizer={ground}/m0&vocab=416"]
        with pytest.raises(ConfigError, match="an average needs whole distributions"):
            open_teachers(specs, "probs", TeacherOptions())


def test_classifiers_are_averaged_if_their_classes_are_the_same(tmp_path):
    for i in range(2):
        models.save_classifier(tmp_path / f"c{i}", seed=i)
    corpus = models.write_corpus(tmp_path / "train.jsonl", 9)
    config = config_of(
        f"jsonl:{corpus}", domain="sequence-classification", estimator="dense", k=3, seq_len=16,
        dtype="float32", values="float32",
    )  # fmt: skip
    specs = tuple(f"hf:{tmp_path}/c{i}" for i in range(2))
    for i, teacher in enumerate((*specs, specs)):
        build(type(config)(**(config.to_dict() | {"teacher": teacher})), tmp_path / f"s{i}")
    stores = [open_store(tmp_path / f"s{i}") for i in range(3)]
    assert stores[2].manifest.identity.classes == list(models.CLASSES)
    for a, b, mean in zip(*stores, strict=True):
        p = [r.targets.dense(1.0) for r in (a, b, mean)]
        np.testing.assert_allclose(p[2], (p[0] + p[1]) / 2, atol=1e-6)
    settings = json.loads((tmp_path / "c1" / "config.json").read_text())
    settings["id2label"]["0"] = "bad"
    settings["label2id"] = {n: int(i) for i, n in settings["id2label"].items()}
    (tmp_path / "c1" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="average teachers of the same classes"):
        build(type(config)(**(config.to_dict() | {"teacher": specs})), tmp_path / "s4")


def test_one_teacher_is_no_ensemble(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    build_tiny(tmp_path / "s", corpus)
    config = config_of(corpus)
    with pytest.raises(ConfigError, match="--average logits: belongs to several --teacher"):
        type(config)(**(config.to_dict() | {"average": "logits"}))
    with pytest.raises(ConfigError, match="--average 'mean': expected probs or logits"):
        type(config)(**(config.to_dict() | {"average": "mean"}))
    assert type(config)(**(config.to_dict() | {"teacher": ("hf:a=1",)})).teacher == "hf:a=1"


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_the_command_line_takes_several(ground, tmp_path, flag):
    teachers = ["--teacher", f"hf:{ground}/m0=0.5", "--teacher", f"hf:{ground}/m2=0.5"]
    flags = [*teachers, "--average", "logits", "--corpus", f"text:{ground}/corpus/*.txt"]
    flags += ["--estimator", "topk", "--k", "4", "--seq-len", "48"]
    done = CliRunner().invoke(main, ["build", *flags, "--out", str(tmp_path / "s"), *flag])
    assert done.exit_code == 0, done.output
    assert not flag or json.loads(done.stdout)["rows"] > 0
    assert "disagreement of 2 teachers" in done.stderr
    spec = load_manifest(tmp_path / "s").identity.teacher.spec
    assert spec == "ensemble:logits(hf:m0=0.5, hf:m2=0.5)"
    done = CliRunner().invoke(
        main, ["build", *flags, "--out", str(tmp_path / "t"), "--dry-run", "--json"]
    )
    assert done.exit_code == 0, done.output
