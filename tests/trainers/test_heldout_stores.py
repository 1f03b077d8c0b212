"""Held-out stores on which a student cannot be measured: refused before the first step, and before an evaluation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from softlabels.builder.build import build
from softlabels.errors import ConfigError, PairingError, RunError
from tests.domains import models, pictures, test_image_classification, test_sequence_classification
from tests.domains import test_token_classification as of_words
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.students import evaluate_run
from trainers.run.config import RunConfig
from trainers.run.setup import train

classes = test_sequence_classification.config
images = test_image_classification.config


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of one tokenizer, a student of the first, and what it cannot be measured on."""
    folder = tmp_path_factory.mktemp("stores")
    models.save_classifier(folder / "teacher")
    models.write_corpus(folder / "train.jsonl")
    models.write_corpus(folder / "bare.jsonl", 8, labelled=False)
    models.config(layers=1, initializer_range=0.05).to_json_file(folder / "student.json")
    build(classes(folder), folder / "store")
    build(classes(folder, "bare.jsonl"), folder / "bare")
    models.save_classifier(folder / "others" / "teacher", classes=("bad", "so-so", "good"))
    models.write_corpus(folder / "others" / "train.jsonl", 20, labelled=False)
    with (folder / "others" / "train.jsonl").open("a") as f:
        f.write('{"text": "a good film", "label": "good"}\n')
    build(classes(folder / "others"), folder / "renamed")
    models.save_tagger(folder / "words" / "teacher")
    of_words.write(folder / "words" / "train.jsonl", of_words.records())
    build(of_words.config(folder / "words"), folder / "tagged")
    train(run_config(folder), folder / "run")
    return folder


def run_config(ground: Path, **settings: object) -> RunConfig:
    student = f"hf-config:{ground / 'student.json'}"
    fixed = {"batch_size": 4, "device": "cpu", "dtype": "float32", "steps": 2}
    return RunConfig(store=str(ground / "store"), student=student, **(fixed | settings))


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        (
            "tagged",
            PairingError,
            "is a store of the domain token-classification, .* is of sequence",
        ),
        ("bare", RunError, "none of its positions has a label to evaluate against; build a store"),
        ("renamed", PairingError, "its list of classes is .*so-so"),
    ],
)
def test_a_store_without_what_scores_need_is_refused_when_it_is_opened(
    ground: Path, tmp_path: Path, name: str, kind: type[Exception], said: str
) -> None:
    path = str(ground / name)
    for flag, given in (("heldout", path), ("forgetting", (path,))):
        with pytest.raises(kind, match=f"--{flag} {path}: {said}"):
            train(run_config(ground, **{flag: given}), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    if name != "renamed":
        with pytest.raises(kind, match=f"{path}: {said}"):
            evaluate_run(ground / "run", Path(path))


def test_a_wider_vocabulary_is_refused(tmp_path: Path) -> None:
    """Of one tokenizer, as models have whose embeddings are padded."""
    make = partial(write_corpus, documents=2, repeat=1)
    build_tiny(tmp_path / "store", make(tmp_path / "a"))
    build_tiny(tmp_path / "wide", make(tmp_path / "b"), teacher=TinyTeacher(vocab_size=320))
    config = RunConfig(
        store=str(tmp_path / "store"), student="new:10K", heldout=str(tmp_path / "wide"), steps=2
    )
    with pytest.raises(PairingError, match=r"--heldout .*: its vocabulary is 320, that of .* is 3"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_t_1_there_is_the_loss_alone(tmp_path: Path) -> None:
    """Only a sample is made, and read, without it; and a sample has no KL at any temperature."""
    corpus = partial(write_corpus, documents=2, repeat=1)
    build_tiny(tmp_path / "store", corpus(tmp_path / "a"))
    build_tiny(tmp_path / "drawn", corpus(tmp_path / "b"), estimator="sampled", temperature=(2.0,))
    with pytest.raises(ConfigError, match="this estimator also needs T=1"):
        build_tiny(tmp_path / "none", corpus(tmp_path / "c"), estimator="topk", temperature=(2.0,))
    config = RunConfig(
        store=str(tmp_path / "store"), student="new:10K", heldout=str(tmp_path / "drawn"), steps=1
    )
    train(config, tmp_path / "run")
    found = evaluate_run(tmp_path / "run", tmp_path / "drawn")
    assert found.kl is None
    assert found.nll > 0


def test_images_that_are_scaled_otherwise_are_refused(tmp_path: Path) -> None:
    """A network of convolutions would take them without a word."""
    for name in ("one", "other"):
        pictures.save_vit(tmp_path / name / "teacher")
        build(images(tmp_path / name, limit_rows=64, seed=len(name)), tmp_path / name / "store")
    facts = tmp_path / "other" / "teacher" / "preprocessor_config.json"
    facts.write_text(facts.read_text().replace("0.25", "0.5"))
    build(images(tmp_path / "other", limit_rows=64), tmp_path / "scaled")
    given = {"images": (pictures.IMAGES,), "heldout_images": (pictures.IMAGES,)}
    config = RunConfig(
        store=str(tmp_path / "one" / "store"),
        student="cnn:8x2",
        heldout=str(tmp_path / "scaled"),
        steps=2,
        batch_size=8,
        dtype="float32",
        device="cpu",
        **given,
    )
    said = r"its way to feed images is \(28, .*, that of .* is \(28, .* 63\.75"
    with pytest.raises(PairingError, match=f"--heldout .*: {said}"):
        train(config, tmp_path / "run")
    train(replace(config, heldout=str(tmp_path / "other" / "store")), tmp_path / "run")
    evaluate_run(tmp_path / "run", tmp_path / "other" / "store", images=(pictures.IMAGES,))
    with pytest.raises(PairingError, match=r"its images are fed at size, mean and deviation"):
        evaluate_run(tmp_path / "run", tmp_path / "scaled", images=(pictures.IMAGES,))
