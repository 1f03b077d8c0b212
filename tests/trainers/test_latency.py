"""Sizes, memory and times of models, each in a process of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("onnxruntime", reason="needs onnxruntime")
pytest.importorskip("onnxscript", reason="needs onnxscript")

from softlabels.core.progress import Silent
from softlabels.errors import ConfigError, IntegrityError, RunError
from tests.trainers.exporting import ROOT, make_run, make_stores
from trainers.cli import main
from trainers.exports import latency
from trainers.exports.config import ExportConfig
from trainers.exports.latency import Figures, measure
from trainers.exports.latency_config import LatencyConfig
from trainers.exports.record import read_export
from trainers.exports.student import export

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latency")
    make_stores(folder)
    make_run(folder, "llama", steps=2)
    config = ExportConfig(format="onnx", heldout=str(folder / "heldout"), rows=2)
    export(folder / "run-llama", folder / "onnx", config)
    return folder


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_student_export_and_teacher_side_by_side(ground):
    command = ["latency", str(ground / "run-llama"), str(ground / "onnx"), "--engine", "torch"]
    command += ["--teacher", f"hf:{ground / 'run-llama' / 'student'}", "--rounds", "1"]
    command += ["--store", str(ground / "heldout"), "--repeats", "4", "--batch-size", "3"]
    done = CliRunner().invoke(main, [*command, "--json"])
    assert done.exit_code == 0, done.output
    student, onnx, teacher = json.loads(done.stdout)["figures"]
    weights = (ground / "run-llama" / "student" / "model.safetensors").stat().st_size
    assert (student["engine"], onnx["engine"], teacher["engine"]) == (
        "torch",
        "onnxruntime",
        "torch",
    )
    assert student["model_bytes"] == teacher["model_bytes"] == weights
    assert onnx["model_bytes"] == (ground / "onnx" / "model.onnx").stat().st_size
    assert student["parameters"] == onnx["parameters"] == read_export(ground / "onnx").parameters
    for f in (student, onnx, teacher):
        assert f["calls"] == 4
        assert 0 < f["p50"] <= f["p95"] < 10
        assert f["throughput"] > 0
        assert 0 < f["empty_bytes"] < f["peak_bytes"] <= f["peak_bytes_of_batches"]
    assert onnx["peak_bytes"] < student["peak_bytes"] / 1.5  # PyTorch is not in that process


def test_the_table_is_of_the_measured_figures(ground, monkeypatch):
    def process(subject, spec, work):
        calls.append((subject.engine, spec["format"], spec["domain"], spec["repeats"]))
        with np.load(spec["many"]) as many:
            assert many["0/input_ids"].shape[0] == 2
        return {
            "loading": 1.0,
            "empty_bytes": 2**20,
            "peak_bytes": 30 * 2**20,
            "peak_bytes_of_batches": 31 * 2**20,
            "wall": [0.010] * 19 + [0.5],
            "cpu": [0.009] * 20,
            "batch_wall": [0.1, 0.1, 9.0],
            "batch_cpu": [0.1],
        }

    calls: list[tuple] = []
    monkeypatch.setattr(latency, "_in_a_process", process)
    arguments = ["latency", str(ground / "onnx"), "--store", str(ground / "heldout")]
    done = CliRunner().invoke(main, [*arguments, "--rounds", "2", "--batch-size", "2"])
    assert done.exit_code == 0, done.output
    assert calls == [("onnxruntime", "onnx", None, 20)] * 2
    (row,) = (line for line in done.stdout.splitlines() if "onnxruntime" in line)
    cells = re.split(r" {2,}", row.strip())
    assert cells[4:7] == ["30", "10.0", "34.5"]  # p95 of forty calls, two of them slow
    (figures,) = asked([str(ground / "onnx")], ground / "heldout", rounds=1, batch_size=2)
    assert figures.throughput == pytest.approx(int(cells[7].replace(",", "")), abs=1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_large_parent_is_not_counted(tmp_path):
    """`getrusage` of a child begins with the peak of the process that made it."""
    code = """
import subprocess, sys
ballast = b"x" * (300 * 2**20)
print(subprocess.check_output([sys.executable, "-c", sys.argv[1]], text=True))
"""
    child = "from trainers.exports.latency_worker import peak_bytes; print(peak_bytes())"
    done = subprocess.run(
        [sys.executable, "-c", code, child],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert 0 < int(done.stdout) < 200 * 2**20


def test_a_process_that_fails_ends_in_a_sentence(ground, tmp_path):
    broken = tmp_path / "model"
    broken.mkdir()
    for name in ("config.json", "model.safetensors"):
        data = (ground / "run-llama" / "student" / name).read_bytes()
        (broken / name).write_bytes(data)
    subject = latency.Subject(
        name="hf:model",
        engine="torch",
        format="safetensors",
        parameters=1,
        model_bytes=1,
    )
    spec = {
        "single": str(tmp_path / "no.npz"),
        "many": "",
        "threads": 1,
        "folder": str(broken),
        "format": "safetensors",
        "domain": None,
        "repeats": 1,
    }
    with pytest.raises(
        RunError, match=r"hf:model: measuring it in torch failed with exit code 1: .*no\.npz"
    ):
        latency._in_a_process(subject, spec, tmp_path)


def asked(subjects: list[str], store: Path, **settings: Any) -> list[Figures]:
    return measure(subjects, LatencyConfig(store=str(store), **settings), Silent())


def test_what_cannot_be_measured(ground, tmp_path):
    store = ground / "heldout"
    with pytest.raises(RunError, match="not a run"):
        asked([str(tmp_path)], store)
    with pytest.raises(ConfigError, match=r"no config\.json there"):
        asked([f"hf:{tmp_path}"], store)
    for flag in ("repeats", "rounds", "threads", "batch_size"):
        with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')} 0: expected at least 1"):
            asked([str(ground / "onnx")], store, **{flag: 0})
    with pytest.raises(ConfigError, match="--engine tensorrt: expected torch or onnxruntime"):
        asked([str(ground / "onnx")], store, engine=("tensorrt",))
    with pytest.raises(ConfigError, match="--teacher teacher: expected hf:PATH"):
        asked([str(ground / "onnx")], store, teacher="teacher")


def test_an_altered_export_is_not_measured(ground, tmp_path):
    import shutil

    folder = Path(shutil.copytree(ground / "onnx", tmp_path / "onnx"))
    data = bytearray((folder / "model.onnx").read_bytes())
    data[-1] ^= 1
    (folder / "model.onnx").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model\.onnx: sha256 is"):
        asked([str(folder)], ground / "heldout")
