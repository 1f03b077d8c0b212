"""The script for a GPU, small and on a CPU, so that it does not rot."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_every_piece_runs_on_a_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "tests.gpu", "--device", "cpu", "--small", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["device"] == "cpu"
    assert set(found["pieces"]) == {
        *("not finite", "selection", "head", "loss", "build", "step", "fsdp"),
    }
    assert not any({"failed", "left out"} & set(piece) for piece in found["pieces"].values())
