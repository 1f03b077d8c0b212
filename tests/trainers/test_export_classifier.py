"""A classifier of texts, exported: the same answers in a process that has neither PyTorch nor this project."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from softlabels.builder.build import build
from softlabels.store.reader import open_store
from tests.domains import models
from tests.domains.test_sequence_classification import config
from tests.trainers.exporting import fresh, log_softmax
from tests.trainers.test_export_formats import ASK
from trainers.data.tasks import Task
from trainers.domains.sequence_classification import DOMAIN
from trainers.exports.config import ExportConfig
from trainers.exports.student import export
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import load_student

pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
pytest.importorskip("onnxscript", reason="needs the extra `onnx`")

pytestmark = pytest.mark.slow
TOLERANCE = {"safetensors": 1e-5, "torch-export": 1e-5, "onnx": 1e-5, "onnx-int8": 0.05}


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export-classifier")
    models.save_classifier(folder / "teacher")
    models.write_corpus(folder / "train.jsonl")
    models.write_corpus(folder / "other.jsonl", 20, seed=1)
    models.config(layers=1, initializer_range=0.05).to_json_file(folder / "student.json")
    build(config(folder), folder / "store")
    build(config(folder, "other.jsonl"), folder / "heldout")
    run = RunConfig(
        store=str(folder / "store"),
        student=f"hf-config:{folder / 'student.json'}",
        steps=30,
        lr=3e-3,
        dtype="float32",
        threads=1,
    )
    train(run, folder / "run")
    return folder


@pytest.mark.parametrize("kind", list(TOLERANCE))
def test_the_same_answers_elsewhere(ground, tmp_path, kind):
    folder = tmp_path / "out"
    settings = ExportConfig(format=kind, heldout=str(ground / "heldout"), tolerance=TOLERANCE[kind])
    record = export(ground / "run", folder, settings)
    assert record.domain == "sequence-classification"
    assert record.check.labels == 20
    assert json.loads((folder / "config.json").read_text())["id2label"]["2"] == "positive"
    if not kind.startswith("onnx"):
        return
    store = open_store(ground / "heldout")
    examples = DOMAIN.examples(store, range(len(store)))
    student = load_student(
        ground / "run" / "student", Task.saved(DOMAIN.name, ground / "run" / "student")
    )
    with torch.inference_mode():
        expected = np.concatenate([DOMAIN.reference(student.model.eval(), e) for e in examples])
    laid = DOMAIN.lay(examples)
    np.savez(tmp_path / "asked.npz", **laid.inputs)
    answers = tmp_path / "answers.npy"
    hidden = "torch,transformers,softlabels,trainers"
    fresh(ASK, tmp_path / "asked.npz", folder, answers, without=hidden)
    difference = np.abs(log_softmax(np.load(answers)) - log_softmax(expected)).max()
    assert difference < (1e-5 if kind == "onnx" else 0.2)
