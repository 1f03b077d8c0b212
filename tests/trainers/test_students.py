"""Every kind of student keeps the contract that plug-ins are held to; those of images are in tests/domains."""

from __future__ import annotations

import json

import pytest

from tests.fakes import build_tiny, write_corpus
from tests.trainers.test_loop import LLAMA
from trainers.data.tasks import Task
from trainers.students import make_student
from trainers.testing import check_student


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("students")
    build_tiny(folder / "store", write_corpus(folder / "corpus"), limit_rows=4)
    (folder / "llama.json").write_text(json.dumps(LLAMA))
    (folder / "whole").mkdir()
    make_student(f"hf-config:{folder}/llama.json", seed=0, task=Task()).save(folder / "whole")
    return folder


@pytest.mark.parametrize(
    "spec",
    ["hf-config:GROUND/llama.json", "hf:GROUND/whole", "layers-of:GROUND/whole?keep=1", "new:100k"],
)
def test_every_kind_keeps_the_contract(ground, spec):
    check_student(spec.replace("GROUND", str(ground)), ground / "store")
