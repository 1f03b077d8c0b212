"""Evaluation and pages of a classifier: every class by name, rows by their text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from click.testing import CliRunner

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.cli.main import main as softlabels_main
from softlabels.core.progress import Silent
from softlabels.store.reader import open_store
from tests.domains import models
from tests.pages import check_page
from trainers.cli import main as softtrain_main
from trainers.evaluation.assess import assess_run
from trainers.evaluation.config import EvalConfig
from trainers.evaluation.evaluate import open_run
from trainers.evaluation.measure import measure
from trainers.run.config import RunConfig
from trainers.run.setup import train


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("class-reports")
    models.save_classifier(folder / "teacher")
    models.config(layers=1, initializer_range=0.05).to_json_file(folder / "student.json")
    for name, texts, seed in (("train", 40, 0), ("heldout", 30, 1)):
        models.write_corpus(folder / f"{name}.jsonl", texts, seed=seed)
        config = BuildConfig(
            teacher=f"hf:{folder / 'teacher'}",
            corpus=(f"jsonl:{folder / name}.jsonl",),
            domain="sequence-classification",
            estimator="dense",
            k=3,
            seq_len=16,
            shard_rows=16,
            dtype="float32",
        )
        build(config, folder / name)
    train(
        RunConfig(
            store=str(folder / "train"),
            student=f"hf-config:{folder / 'student.json'}",
            steps=10,
            batch_size=8,
            dtype="float32",
        ),
        folder / "run",
    )
    return folder


def test_classes_are_looked_at_one_by_one(ground):
    config = EvalConfig(store=str(ground / "heldout"), bootstrap=50)
    a = assess_run(ground / "run", config, Silent())
    student, store = open_run(ground / "run", config)
    m = measure(student, store)
    labels = np.array([int(r.row.labels[0]) for r in store])
    np.testing.assert_array_equal(m.label, labels)
    f1 = sklearn.metrics.f1_score(labels, m.top, average=None, labels=[0, 1, 2], zero_division=0)
    assert [g.name for g in a.by_class] == list(models.CLASSES)
    assert [g.f1 for g in a.by_class] == pytest.approx(f1)
    assert "macro_f1" in a.intervals
    assert a.scores.acceptance_low == pytest.approx(a.scores.acceptance_high)
    assert a.blind_spots is not None
    assert a.blind_spots.cells.n == len(labels) == a.scores.positions
    for place in (*a.blind_spots.inherited, *a.blind_spots.lost):
        assert {place.label, place.teacher, place.student} <= set(models.CLASSES)
        assert place.context


def test_its_pages(ground, tmp_path):
    for program, arguments in (
        (softtrain_main, ["report", ground / "run", "--store", ground / "heldout"]),
        (softlabels_main, ["report", ground / "heldout"]),
    ):
        out = tmp_path / "page.html"
        done = CliRunner().invoke(program, [*map(str, arguments), "--out", str(out)])
        assert done.exit_code == 0, done.output
        text = check_page(out.read_text(encoding="utf-8"))
        assert all(name in text for name in models.CLASSES)
    assert f"{len(open_store(ground / 'heldout')):,} answers of" in text
