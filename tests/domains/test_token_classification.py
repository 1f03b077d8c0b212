"""A class for each word: from a real encoder to a store, and from the store to a student."""

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
from softlabels.errors import CorpusError, IntegrityError
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

DOMAIN = "token-classification"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    models.save_tagger(folder / "teacher")
    write(folder / "train.jsonl", records())
    models.config(layers=1, initializer_range=0.05).to_json_file(folder / "student.json")
    build(config(folder), folder / "store")
    return folder


def records() -> list[dict[str, object]]:
    """40 lists of words; every fifth has no labels, every seventh word none."""
    out: list[dict[str, object]] = []
    for i, text in enumerate(models.texts(40)):
        words = text.split()
        labels = [None if j % 7 == 6 else (i + j) % 3 for j in range(len(words))]
        out.append({"words": words} | ({} if i % 5 == 4 else {"labels": labels}))
    return out


def write(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in lines))


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


@pytest.mark.parametrize("profile", ["open", "packed"])
@pytest.mark.parametrize("container", ["parquet", "zarr"])
def test_a_store_holds_what_the_teacher_says_of_each_word(ground, tmp_path, profile, container):
    build(config(ground, profile=profile, container=container), tmp_path / "s")
    assert verify_store(tmp_path / "s").problems == []
    store = open_store(tmp_path / "s")
    model = transformers.AutoModelForTokenClassification.from_pretrained(ground / "teacher")
    tokenizer = transformers.AutoTokenizer.from_pretrained(ground / "teacher")
    spread = []
    for stored, record in zip(store, records(), strict=True):
        words = record["words"]
        ids = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**ids).logits[0].double()
        assert stored.row.label_mask.tolist() == [False, *[True] * len(words), False]
        expected = [UNLABELLED if x is None else x for x in record.get("labels", [None] * 99)]
        assert stored.row.labels.tolist() == expected[: len(words)]
        for t in (1.0, 2.0):
            p = torch.softmax(logits[1:-1] / t, dim=1)
            np.testing.assert_allclose(stored.targets.dense(t), p, atol=2e-6)
        spread.append(p)
    assert torch.cat(spread).std(dim=0).max() > 0.01, "a teacher without opinions proves nothing"
    assert store.manifest.identity.classes == list(models.CLASSES)


def test_the_first_token_of_a_word_has_the_target(ground, tmp_path):
    folder = tmp_path / "teacher"
    models.save_tagger(folder)
    words = models.MARKS + models.WORDS
    vocab = {w: i for i, w in enumerate([*words[:-2], "##s", "##ness"])}
    transformers.BertTokenizer(vocab=vocab).save_pretrained(folder)
    write(tmp_path / "few.jsonl", [{"words": ["the", "films", "goodness"], "labels": [0, 1, 2]}])
    build(config(tmp_path, "few.jsonl"), tmp_path / "s")
    row = open_store(tmp_path / "s").row(0).row
    tokens = [list(vocab)[i] for i in row.input_ids]
    assert tokens == ["[CLS]", "the", "film", "##s", "good", "##ness", "[SEP]"]
    assert row.label_mask.tolist() == [False, True, True, False, True, False, False]
    assert row.labels.tolist() == [0, 1, 2]


def test_cut_texts_lose_whole_words_only_and_are_counted(ground, tmp_path):
    long = {"words": ["good", "film"] * 20, "labels": [0, 1] * 20}
    write(tmp_path / "long.jsonl", [long])
    job = {"teacher": f"hf:{ground / 'teacher'}", "truncate": True}
    made = build(config(tmp_path, "long.jsonl", **job), tmp_path / "s")
    row = open_store(tmp_path / "s").row(0).row
    assert made.identity.corpus.truncated == 1
    assert (row.size, row.n) == (16, 14)
    assert row.labels.tolist() == [0, 1] * 7
    with pytest.raises(CorpusError, match=r":1: 42 tokens do not fit in a row of 16"):
        build(config(tmp_path, "long.jsonl", **job | {"truncate": False}), tmp_path / "t")


def test_the_loss_is_the_dense_one(ground):
    store = open_store(ground / "store")
    student = make_student(f"hf-config:{ground / 'student.json'}", seed=1, task=Task.of(store))
    student = student.double()
    batch = collate([store.row(i) for i in range(8)])
    assert 0 < batch.labelled_positions < batch.positions
    loss = DistillLoss(divergence="forward_kl", temperature=2.0, alpha=0.7)
    out = loss(student.hidden(batch), student.head(), batch)
    logits = student.model(**batch.inputs).logits
    logits = logits.flatten(0, 1)[batch.flat_positions]
    p = torch.tensor(np.concatenate([store.row(i).targets.dense(2.0) for i in range(8)])).double()
    p = p / p.sum(dim=1, keepdim=True)
    soft = (p * (p.log() - torch.log_softmax(logits / 2.0, dim=1))).sum(dim=1).mean()
    known = batch.labels >= 0
    hard = torch.nn.functional.cross_entropy(logits[known], batch.labels[known])
    torch.testing.assert_close(out.loss, 0.7 * 4.0 * soft + 0.3 * hard, rtol=1e-6, atol=0)


def test_a_student_learns_the_teacher_from_the_store(ground, tmp_path):
    run = RunConfig(
        store=str(ground / "store"),
        student=f"hf-config:{ground / 'student.json'}",
        temperature=2.0,
        alpha=0.9,
        steps=60,
        batch_size=8,
        lr=3e-3,
        threads=1,
        checkpoint_every=60,
    )
    folder = train(run, tmp_path / "run")
    store = open_store(ground / "store")
    before = evaluate(make_student(run.student, seed=0, task=Task.of(store)), store)
    after = evaluate_run(tmp_path / "run", ground / "store")
    assert after.kl < 0.5 * before.kl
    loaded = transformers.AutoModelForTokenClassification.from_pretrained(folder)
    assert loaded.config.id2label == dict(enumerate(models.CLASSES))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"words": ["good"], "labels": ["fine"]}, r":1: word 0: label 'fine' is none of the"),
        ({"words": ["good"], "labels": [True]}, r':1: word 0: "label" is True'),
        ({"words": ["good"], "labels": [0, 1]}, r':1: "labels" is 2 entries, expected a list of 1'),
        ({"words": ["good"], "labels": "pos"}, r':1: "labels" is str, expected a list of 1'),
        ({"words": "good film"}, r':1: "words" is no list of strings'),
        ({"words": ["good", "\u200b", "film"]}, r":1: word 1, '\\u200b', has no token"),
        ({"words": ["good", "\u200b"]}, r":1: word 1, '\\u200b', has no token"),
        ({"words": []}, r":1: the text is empty"),
        ({"text": "good film"}, r':1: expected "words"'),
        (
            {"text": "good", "words": ["good"]},
            r':1: could be "text" or "words"; expected fields of one',
        ),
    ],
)
def test_bad_records_name_the_line(ground, tmp_path, record, message):
    write(tmp_path / "bad.jsonl", [record])
    with pytest.raises(CorpusError, match=message):
        build(config(tmp_path, "bad.jsonl", teacher=f"hf:{ground / 'teacher'}"), tmp_path / "s")


def test_as_many_labels_as_words(ground):
    from softlabels.domains.token_classification import DOMAIN as module

    store = open_store(ground / "store")
    columns = module.columns([store.row(0).row])
    identity = store.manifest.identity
    mask = columns["label_mask"].values.copy()
    mask[0] = True
    broken = {
        **columns,
        "label_mask": type(columns["label_mask"])(
            values=mask, offsets=columns["label_mask"].offsets
        ),
    }
    row = module.rows_of(broken, identity, where="shard")[0]
    with pytest.raises(IntegrityError, match="positions but"):
        module.check(row, identity, where="shard: row 0")
