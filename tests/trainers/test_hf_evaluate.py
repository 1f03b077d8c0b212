"""A run's answers in the forms that metrics of Hugging Face `evaluate` take, with its own loader and modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch

from softlabels.builder.build import build
from softlabels.core.rows import UNLABELLED
from softlabels.errors import ConfigError, RunError
from softlabels.store.reader import open_store
from tests.domains import models, test_sequence_classification, test_token_classification
from tests.fakes import build_tiny, write_corpus
from tests.students import LLAMA, evaluate_run
from trainers.integrations.evaluate import answers
from trainers.run.config import RunConfig
from trainers.run.setup import train

METRIC = '''
import datasets
import evaluate
import sklearn.metrics


class Metric(evaluate.Metric):
    """As `evaluate` writes its own: features, and scikit-learn."""

    def _info(self):
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=datasets.Features(FEATURES)
        )

    def _compute(self, **inputs):
        return COMPUTE
'''
INTEGER = 'datasets.Value("int64")'
FLOATS = 'datasets.Sequence(datasets.Value("float32"))'
TAGS = 'datasets.Sequence(datasets.Value("string"))'
MODULES = {
    "accuracy": (
        f'{{"predictions": {INTEGER}, "references": {INTEGER}}}',
        '{"accuracy": float(sklearn.metrics.accuracy_score(inputs["references"], inputs["predictions"]))}',
    ),
    "macro": (
        f'{{"predictions": {INTEGER}, "references": {INTEGER}}}',
        '{"macro": float(sklearn.metrics.f1_score(inputs["references"], inputs["predictions"], average="macro"))}',
    ),
    "auc": (
        f'{{"prediction_scores": {FLOATS}, "references": {INTEGER}}}',
        '{"auc": float(sklearn.metrics.roc_auc_score('
        'inputs["references"], inputs["prediction_scores"], multi_class="ovr"))}',
    ),
    "auc_of_two": (
        f'{{"prediction_scores": datasets.Value("float32"), "references": {INTEGER}}}',
        '{"auc": float(sklearn.metrics.roc_auc_score(inputs["references"], inputs["prediction_scores"]))}',
    ),
    "tags": (
        f'{{"predictions": {TAGS}, "references": {TAGS}}}',
        '{"same": sum(p == r for a, b in zip(inputs["predictions"], inputs["references"]) '
        'for p, r in zip(a, b, strict=True)), "rows": len(inputs["references"])}',
    ),
}
"""Metrics whose inputs are those of the Hub's accuracy, f1, roc_auc (both configurations) and seqeval."""


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """`evaluate.load` of a module of ours. Its copies, which Python imports from one place, are not the user's."""
    evaluate = pytest.importorskip("evaluate", reason="needs the extra `evaluate`")
    folder = tmp_path_factory.mktemp("metrics")
    for name, (features, compute) in MODULES.items():
        (folder / name).mkdir()
        text = METRIC.replace("FEATURES", features).replace("COMPUTE", compute)
        (folder / name / f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder / "modules")
        yield lambda name: evaluate.load(str(folder / name), cache_dir=str(folder / "cache"))


def run_on(folder: Path, store: str = "store", **settings) -> Path:
    values = {"steps": 20, "batch_size": 8, "lr": 3e-3, "dtype": "float32", "threads": 1}
    student = f"hf-config:{folder / 'student.json'}"
    train(
        RunConfig(store=str(folder / store), student=student, **values | settings), folder / "run"
    )
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate-classifier")
    models.save_classifier(folder / "teacher")
    models.write_corpus(folder / "train.jsonl")
    models.write_corpus(folder / "other.jsonl", 30, seed=1)
    records = [json.loads(line) for line in (folder / "other.jsonl").read_text().splitlines()]
    for record in records[::7]:
        del record["label"]
    (folder / "other.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    models.config(layers=1).to_json_file(folder / "student.json")
    for name, corpus in (("store", "train.jsonl"), ("heldout", "other.jsonl")):
        build(test_sequence_classification.config(folder, corpus), folder / name)
    return run_on(folder)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate-tagger")
    models.save_tagger(folder / "teacher")
    lines = test_token_classification.records()
    test_token_classification.write(folder / "train.jsonl", lines)
    test_token_classification.write(folder / "other.jsonl", lines[::-1][:21])
    models.config(layers=1).to_json_file(folder / "student.json")
    for name, corpus in (("store", "train.jsonl"), ("heldout", "other.jsonl")):
        build(test_token_classification.config(folder, corpus), folder / name)
    return run_on(folder)


def logits_of(folder: Path, store: str, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each position of a store: the student's logits as transformers gives them, the label and the row."""
    import transformers

    model = getattr(transformers, kind).from_pretrained(folder / "run" / "student")
    logits, labels, rows = [], [], []
    for i, stored in enumerate(open_store(folder / store)):
        ids = torch.from_numpy(stored.row.input_ids.astype(np.int64))[None]
        with torch.no_grad():
            out = model(input_ids=ids).logits[0]
        if out.dim() == 2:
            out = out[torch.from_numpy(stored.row.label_mask)]
        logits.append(out.reshape(-1, out.shape[-1]).double().numpy())
        labels.append(stored.row.labels)
        rows.append(np.full(stored.row.n, i))
    return np.concatenate(logits), np.concatenate(labels), np.concatenate(rows)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_a_classifiers_answers_are_what_transformers_says(classifier):
    found = answers(classifier / "run", classifier / "heldout", scores=True)
    logits, labels, rows = logits_of(classifier, "heldout", "AutoModelForSequenceClassification")
    at = labels != UNLABELLED
    assert found.unlabelled == (~at).sum() == 5
    assert found.classes == models.CLASSES
    np.testing.assert_array_equal(found.predictions, logits[at].argmax(axis=1))
    assert len(set(found.predictions.tolist())) > 1, "a constant answer proves nothing"
    np.testing.assert_array_equal(found.references, labels[at])
    np.testing.assert_array_equal(found.rows, rows[at])
    np.testing.assert_allclose(found.probabilities, softmax(logits[at]), atol=1e-6)


def test_metrics_take_a_classifiers_answers(classifier, load):
    import evaluate

    found = answers(classifier / "run", classifier / "heldout", scores=True)
    ours = evaluate_run(classifier / "run", classifier / "heldout")
    both = evaluate.combine([load("accuracy"), load("macro")]).compute(**found.ids())
    assert both["accuracy"] == pytest.approx(ours.accuracy)
    assert both["macro"] == pytest.approx(ours.macro_f1)
    expected = sklearn.metrics.roc_auc_score(
        found.references, found.probabilities.astype(np.float64), multi_class="ovr"
    )
    assert load("auc").compute(**found.scores())["auc"] == pytest.approx(expected, abs=1e-6)


def test_evaluators_take_the_students_folder(classifier, load):
    """Their pipelines tokenise for themselves, and find the same."""
    import datasets
    import evaluate

    lines = (classifier / "other.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if "label" in r]
    ids = {name: i for i, name in enumerate(models.CLASSES)}
    data = [{"text": r["text"], "label": ids.get(r["label"], r["label"])} for r in records]
    found = evaluate.evaluator("text-classification").compute(
        model_or_pipeline=str(classifier / "run" / "student"),
        data=datasets.Dataset.from_list(data),
        metric=load("accuracy"),
        label_mapping=ids,
    )
    same = evaluate_run(classifier / "run", classifier / "heldout").accuracy
    assert found["accuracy"] == pytest.approx(same)


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("evaluate-two")
    models.save_classifier(tmp_path / "teacher", classes=("no", "yes"))
    lines = [{"text": t, "label": i % 2} for i, t in enumerate(models.texts(24))]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    models.config(layers=1).to_json_file(tmp_path / "student.json")
    build(test_sequence_classification.config(tmp_path, k=2), tmp_path / "store")
    return run_on(tmp_path, steps=2)


def test_of_two_classes_the_second_has_the_score(two_classes):
    found = answers(two_classes / "run", two_classes / "store", scores=True)
    p = softmax(logits_of(two_classes, "store", "AutoModelForSequenceClassification")[0])
    assert p[:, 1].std() > 0.01
    np.testing.assert_allclose(found.scores()["prediction_scores"], p[:, 1], atol=1e-6)
    assert found.scores()["references"] == found.ids()["references"] == [i % 2 for i in range(24)]


def test_metrics_take_the_score_of_two_classes(two_classes, load):
    found = answers(two_classes / "run", two_classes / "store", scores=True)
    expected = sklearn.metrics.roc_auc_score(found.references, found.probabilities[:, 1])
    assert load("auc_of_two").compute(**found.scores())["auc"] == pytest.approx(expected)


def test_a_taggers_answers_row_by_row(tagger):
    found = answers(tagger / "run", tagger / "heldout")
    logits, labels, rows = logits_of(tagger, "heldout", "AutoModelForTokenClassification")
    at = labels != UNLABELLED
    tags = found.tags()
    by_row = [np.flatnonzero(at & (rows == i)) for i in range(21)]
    by_row = [places for places in by_row if len(places)]
    assert 10 < len(by_row) < 21, "rows without labels are left out"
    top = logits.argmax(axis=1)
    for name, ids in (("predictions", top), ("references", labels)):
        assert tags[name] == [[models.CLASSES[ids[n]] for n in places] for places in by_row]
    assert found.unlabelled == (~at).sum() > 0
    assert len(set(found.predictions.tolist())) > 1, "a constant answer proves nothing"


def test_metrics_take_a_taggers_answers(tagger, load):
    found = answers(tagger / "run", tagger / "heldout")
    ours = evaluate_run(tagger / "run", tagger / "heldout")
    counted = load("tags").compute(**found.tags())
    assert counted["rows"] == len(np.unique(found.rows))
    assert counted["same"] == pytest.approx(ours.accuracy * len(found.rows))


def test_an_lms_answers_are_tokens(tmp_path):
    build_tiny(tmp_path / "store", write_corpus(tmp_path / "corpus"))
    build_tiny(tmp_path / "heldout", write_corpus(tmp_path / "other", documents=1))
    (tmp_path / "student.json").write_text(json.dumps(LLAMA))
    run = run_on(tmp_path, steps=4) / "run"
    found = answers(run, tmp_path / "heldout")
    ours = evaluate_run(run, tmp_path / "heldout")
    assert (found.predictions == found.references).mean() == pytest.approx(ours.accuracy)
    assert (len(found.references), found.unlabelled) == (ours.positions, 0)
    with pytest.raises(ConfigError, match="tags: the store's ids are tokens"):
        found.tags()
    with pytest.raises(ConfigError, match="of the domain causal-lm, whose 300 probabilities"):
        answers(run, tmp_path / "heldout", scores=True)


def test_mistakes_are_refused(classifier, tmp_path):
    with pytest.raises(ConfigError, match=r"ask for the probabilities with answers\(.*scores=True"):
        answers(classifier / "run", classifier / "heldout").scores()
    with pytest.raises(RunError, match="without --ema"):
        answers(classifier / "run", classifier / "heldout", weights="ema")
    with pytest.raises(RunError, match="not a run"):
        answers(tmp_path, classifier / "heldout")
    models.write_corpus(tmp_path / "bare.jsonl", 8, labelled=False)
    made = test_sequence_classification.config(
        tmp_path, "bare.jsonl", teacher=f"hf:{classifier / 'teacher'}"
    )
    build(made, tmp_path / "bare")
    with pytest.raises(RunError, match="none of its positions has a label"):
        answers(classifier / "run", tmp_path / "bare")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["import", "run"])
def test_a_missing_harness_names_the_extra(how):
    """Imported, it raises; as a command, it ends in a sentence."""
    code = """
import runpy, sys
sys.modules["lm_eval"] = None
from softlabels.errors import MissingExtraError
if sys.argv[1] == "run":
    runpy.run_module("trainers.integrations.lm_eval", run_name="__main__")
try:
    import trainers.integrations.lm_eval
except MissingExtraError as e:
    sys.exit(str(e))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, how],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert "needs lm-eval, which is not installed: pip install -e '" in done.stderr
    assert "[evaluate]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == {"import": 1, "run": 2}[how]
