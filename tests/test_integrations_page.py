"""The scripts of docs/integrations.md run as printed, but for a tiny student and two steps."""

from __future__ import annotations

import importlib.util
import json
import re
import warnings
from pathlib import Path

import pytest

import trainers
from tests.blocks import blocks_of, to_run
from tests.integrations_ground import lay, own_losses, write_ground

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
RUN = to_run("integrations.md", "python")
NEEDS = ("peft", "trl", "lightning", "transformers")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    pytest.importorskip("transformers", reason="needs the extra hf")
    return write_ground(tmp_path_factory.mktemp("page"))


def test_four_scripts_of_nine_are_run():
    assert len(RUN) == 4
    assert len(blocks_of("integrations.md", "python")) == 9


@pytest.mark.parametrize("text", RUN, ids=["own loop", "TRL", "Trainer", "Lightning"])
@pytest.mark.filterwarnings("ignore")  # what the libraries warn each other of
def test_a_script_runs(ground, tmp_path, monkeypatch, text):
    for name in NEEDS:
        if f"from {name}" in text or f"import {name}" in text:
            pytest.importorskip(name, reason=f"needs {name}")
    monkeypatch.chdir(tmp_path)
    lay(ground, tmp_path)
    assert text.count("2000") == 1
    text = text.replace("2000", "2").replace(
        ", max_steps=2)", ', max_steps=2, use_cpu=True, report_to="none")'
    )
    text = text.replace(
        "max_length=None\n", 'max_length=None, use_cpu=True, bf16=False, report_to="none"\n'
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(text, "integrations.md", "exec"), {"__name__": "snippet"})
    if "adapter" in text:
        assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_the_loop_of_ones_own_has_the_losses_of_a_run(ground, tmp_path):
    """Of the first step, whose rows are those of `softtrain run`."""
    (own,) = own_losses(ground, rows=8, steps=1)
    trainers.train(
        store=ground / "store",
        student=f"hf:{ground / 'student'}",
        out=tmp_path / "run",
        steps=1,
        batch_size=8,
        alpha=0.9,
        device="cpu",
        dtype="float32",
    )
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["loss"] == pytest.approx(own.loss.item(), abs=1e-6)


def test_the_versions_named_are_those_that_are_tested():
    """constraints.txt is what CI installs."""
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    named = re.findall(r"(TRL|PEFT|transformers|accelerate|Lightning) (\d+\.\d+\.\d+)", PAGE)
    assert {n for n, _ in named} == {"TRL", "PEFT", "transformers", "accelerate", "Lightning"}
    for name, version in named:
        assert pins[name.lower()] == version, name
    assert importlib.util.find_spec("trainers.integrations.distil") is not None
