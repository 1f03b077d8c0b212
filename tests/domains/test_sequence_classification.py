"""One class for a whole text: from a real encoder to a store, and from the store to a student."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.core.rows import UNLABELLED
from softlabels.errors import ConfigError, CorpusError, PairingError, TeacherError
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.domains import models
from tests.students import evaluate_run
from trainers.data.batch import collate
from trainers.data.tasks import Task
from trainers.evaluation.evaluate import evaluate
from trainers.loss.losses import DistillLoss
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import make_student

DOMAIN = "sequence-classification"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classification")
    models.save_classifier(folder / "teacher")
    models.write_corpus(folder / "train.jsonl")
    models.write_corpus(folder / "other.jsonl", 20, seed=1)
    models.config(layers=1, initializer_range=0.05).to_json_file(folder / "student.json")
    build(config(folder), folder / "store")
    return folder


def config(ground: Path, corpus: str = "train.jsonl", **settings: object) -> BuildConfig:
    return BuildConfig(
        **{
            "teacher": f"hf:{ground / 'teacher'}",
            "corpus": (f"jsonl:{ground / corpus}",),
            "domain": DOMAIN,
            "estimator": "dense",
            "k": 3,
            "temperature": (1.0, 2.0),
            "seq_len": 16,
            "shard_rows": 16,
            "values": "float32",
            "dtype": "float32",
            **settings,
        }
    )


def teacher_logits(ground: Path, texts: list[str]) -> torch.Tensor:
    tokenizer = transformers.AutoTokenizer.from_pretrained(ground / "teacher")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(ground / "teacher")
    with torch.no_grad():
        return torch.cat(
            [model(**tokenizer(text, return_tensors="pt")).logits for text in texts]
        ).double()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_store_holds_what_the_teacher_says_of_each_text_alone(ground, temperature):
    store = open_store(ground / "store")
    expected = torch.softmax(teacher_logits(ground, models.texts(40)) / temperature, dim=1)
    assert len(store) == 40
    assert expected.amax(dim=1).std() > 0.01, "a teacher without opinions proves nothing"
    for i, row in enumerate(store):
        np.testing.assert_allclose(
            row.targets.dense(temperature)[0], expected[i].numpy(), rtol=0, atol=2e-6
        )
        assert row.row.labels.tolist() == [i % 3]
    assert store.manifest.identity.classes == list(models.CLASSES)


@pytest.mark.parametrize("container", ["parquet", "zarr"])
@pytest.mark.parametrize("profile", ["open", "packed"])
def test_profiles_and_containers_agree(ground, tmp_path, profile, container):
    build(
        config(ground, profile=profile, container=container, estimator="topk", k=2),
        tmp_path / "store",
    )
    assert not verify_store(tmp_path / "store").problems
    for a, b in zip(open_store(ground / "store"), open_store(tmp_path / "store"), strict=True):
        assert a.row.digest() == b.row.digest()
        assert a.row.documents.tolist() == b.row.documents.tolist()
        kept = b.targets.ids[0]
        np.testing.assert_allclose(
            b.targets.probs(2.0)[0], a.targets.dense(2.0)[0][kept], rtol=0, atol=2e-6
        )


def test_the_teacher_nll_is_of_the_labels_that_are_known(ground, tmp_path):
    lines = (ground / "train.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records[::4]:
        del record["label"]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    made = build(config(tmp_path, "some.jsonl", teacher=f"hf:{ground / 'teacher'}"), tmp_path / "s")
    log_p = torch.log_softmax(teacher_logits(ground, models.texts(40)), dim=1)
    known = [i for i in range(40) if i % 4]
    expected = -sum(float(log_p[i, i % 3]) for i in known)
    assert made.statistics.labelled == len(known) == 30
    assert made.statistics.teacher_nll == pytest.approx(expected, rel=1e-5)
    labels = [int(row.row.labels[0]) for row in open_store(tmp_path / "s")]
    assert labels == [i % 3 if i % 4 else UNLABELLED for i in range(40)]


def test_the_loss_leaves_unlabelled_rows_to_the_teacher(ground, tmp_path):
    records = [json.loads(line) for line in (ground / "train.jsonl").read_text().splitlines()]
    for record in records[1::2]:
        del record["label"]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    build(config(tmp_path, "some.jsonl", teacher=f"hf:{ground / 'teacher'}"), tmp_path / "s")
    store = open_store(tmp_path / "s")
    student = make_student(f"hf-config:{ground / 'student.json'}", seed=1, task=Task.of(store))
    batch = collate([store.row(i) for i in range(8)])
    assert batch.labelled_positions == 4
    student = student.double()
    loss = DistillLoss(divergence="forward_kl", temperature=2.0, alpha=0.7)
    out = loss(student.hidden(batch), student.head(), batch)
    out.loss.backward()
    found = [p.grad.clone() for p in student.parameters() if p.grad is not None]

    student.zero_grad()
    logits = student.model(**batch.inputs).logits
    log_q = torch.log_softmax(logits / 2.0, dim=1)
    p = torch.tensor(np.stack([t.targets.dense(2.0)[0] for t in map(store.row, range(8))])).double()
    p = p / p.sum(dim=1, keepdim=True)
    soft = (p * (p.log() - log_q)).sum(dim=1).mean()
    known = batch.labels >= 0
    hard = torch.nn.functional.cross_entropy(logits[known], batch.labels[known])
    expected = 0.7 * 4.0 * soft + 0.3 * hard
    expected.backward()
    torch.testing.assert_close(out.loss, expected, rtol=1e-6, atol=0)
    for mine, theirs in zip(
        found, [p.grad for p in student.parameters() if p.grad is not None], strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_student_learns_the_teacher_from_the_store(ground, tmp_path, accumulate):
    run = RunConfig(
        store=str(ground / "store"),
        student=f"hf-config:{ground / 'student.json'}",
        temperature=2.0,
        alpha=0.9,
        steps=60,
        batch_size=8,
        accumulate=accumulate,
        lr=3e-3,
        threads=1,
        checkpoint_every=60,
    )
    student = train(run, tmp_path / "run")
    store = open_store(ground / "store")
    before = evaluate(make_student(run.student, seed=0, task=Task.of(store)), store)
    after = evaluate_run(tmp_path / "run", ground / "store")
    assert after.kl < 0.5 * before.kl
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(student)
    assert loaded.config.id2label == dict(enumerate(models.CLASSES))
    assert transformers.AutoTokenizer.from_pretrained(student)("good film")["input_ids"]


def test_layers_of_an_encoder(ground):
    task = Task(domain=DOMAIN, classes=models.CLASSES)
    student = make_student(f"layers-of:{ground / 'teacher'}?keep=1", seed=0, task=task)
    source = transformers.AutoModelForSequenceClassification.from_pretrained(ground / "teacher")
    mine, theirs = student.model.bert.encoder.layer, source.bert.encoder.layer
    assert len(mine) == 1
    torch.testing.assert_close(
        mine[0].output.dense.weight, theirs[1].output.dense.weight, rtol=0, atol=0
    )
    torch.testing.assert_close(student.head().weight, source.classifier.weight, rtol=0, atol=0)


# -- what is refused ------------------------------------------------------------------------------


def test_a_regression_head_is_refused(tmp_path):
    transformers.BertForSequenceClassification(models.config(num_labels=1)).save_pretrained(
        tmp_path / "teacher"
    )
    models.save_tokenizer(tmp_path / "teacher")
    models.write_corpus(tmp_path / "train.jsonl", 4)
    with pytest.raises(TeacherError, match="regression"):
        build(config(tmp_path), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_an_encoder_without_a_head_is_refused(tmp_path):
    transformers.BertModel(models.config()).save_pretrained(tmp_path / "teacher")
    models.save_tokenizer(tmp_path / "teacher")
    models.write_corpus(tmp_path / "train.jsonl", 4)
    with pytest.raises(TeacherError, match=r"no weights for classifier\.bias"):
        build(config(tmp_path), tmp_path / "store")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "good film", "label": "excellent"}, r":1: label 'excellent' is none of the"),
        ({"text": "good film", "label": 3}, r":1: label 3 is none of the teacher's 3 classes"),
        ({"text": "good film", "label": True}, r':1: "label" is True'),
        ({"text": "good film " * 20, "label": 1}, r":1: 42 tokens do not fit in a row of 16"),
        ({"text": "", "label": 1}, r":1: the text is empty"),
    ],
)
def test_bad_records_name_the_line(ground, tmp_path, record, message):
    (tmp_path / "bad.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(CorpusError, match=message):
        build(config(tmp_path, "bad.jsonl", teacher=f"hf:{ground / 'teacher'}"), tmp_path / "s")


def test_cut_texts_are_counted(ground, tmp_path):
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "good film " * 20, "label": 1}) + "\n")
    made = build(
        config(tmp_path, "long.jsonl", teacher=f"hf:{ground / 'teacher'}", truncate=True),
        tmp_path / "s",
    )
    assert made.identity.corpus.truncated == 1
    ids = open_store(tmp_path / "s").row(0).row.input_ids
    assert len(ids) == 16
    assert ids[-1] == models.MARKS.index("[SEP]")


def test_a_store_without_labels_wants_alpha_1(ground, tmp_path):
    models.write_corpus(tmp_path / "bare.jsonl", 8, labelled=False)
    build(config(tmp_path, "bare.jsonl", teacher=f"hf:{ground / 'teacher'}"), tmp_path / "s")
    run = RunConfig(
        store=str(tmp_path / "s"), student=f"hf-config:{ground / 'student.json'}", steps=1
    )
    with pytest.raises(PairingError, match="none of its rows has a label"):
        train(run, tmp_path / "run")


def test_a_vocabulary_view_is_for_causal_lms(ground):
    with pytest.raises(ConfigError, match="is for causal LMs"):
        open_store(ground / "store", vocab="trim:10")


def test_another_domain_is_another_job(ground, tmp_path):
    with pytest.raises(ConfigError, match="--domain 'poetry': expected one of"):
        config(ground, domain="poetry")


# -- several teachers -----------------------------------------------------------------------------


def test_an_ensemble_of_classifiers_is_the_mean_of_their_probabilities(ground, tmp_path):
    models.save_classifier(tmp_path / "other" / "teacher", seed=1)
    teachers = (f"hf:{ground / 'teacher'}=0.25", f"hf:{tmp_path / 'other' / 'teacher'}=0.75")
    build(config(ground, teacher=teachers), tmp_path / "store")
    a, b = (
        torch.softmax(teacher_logits(folder, models.texts(40)), dim=1)
        for folder in (ground, tmp_path / "other")
    )
    assert (a - b).abs().max() > 0.1
    expected = 0.25 * a + 0.75 * b
    for i, row in enumerate(open_store(tmp_path / "store")):
        np.testing.assert_allclose(row.targets.dense(1.0)[0], expected[i].numpy(), atol=2e-6)


def test_an_ensemble_of_other_classes_is_refused(ground, tmp_path):
    models.save_classifier(tmp_path / "second", classes=("bad", "so-so", "good"))
    teachers = (f"hf:{ground / 'teacher'}", f"hf:{tmp_path / 'second'}")
    with pytest.raises(ConfigError, match="average teachers of the same classes"):
        build(config(ground, teacher=teachers), tmp_path / "store")
