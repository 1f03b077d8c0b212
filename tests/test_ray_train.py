"""The recipe for Ray Train: two workers learn what one process learns from the same batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import softlabels
from tests.blocks import blocks_of
from tests.fakes import TEXT
from tests.teachers.tiny import write_model

STEPS = 3


def learnt(folder: Path, batches: int) -> dict:
    """Weights after some steps in this process alone."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainers import DistillLoss, SoftTargetStream, distil_loss

    model = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stream = SoftTargetStream(folder / "store", batch_size=8)
    for _, batch in zip(range(batches), stream, strict=False):
        distil_loss(model, batch, DistillLoss(alpha=0.9)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.slow
def test_two_workers_learn_what_one_process_learns(tmp_path):
    pytest.importorskip("ray", reason="needs the extra `ray`")
    import torch
    from transformers import AutoModelForCausalLM

    write_model(tmp_path / "teacher")
    write_model(tmp_path / "student", seed=5)
    (tmp_path / "a.txt").write_text(TEXT * 8, encoding="utf-8")
    softlabels.build(
        teacher=f"hf:{tmp_path / 'teacher'}",
        corpus=(f"text:{tmp_path}/a.txt",),
        out=tmp_path / "store",
        seq_len=32,
        device="cpu",
    )
    (block,) = (b for b in blocks_of("integrations.md", "python") if b.heading == "Ray Train")
    text = block.text.replace("/shared", str(tmp_path)).replace("2000", str(STEPS))
    adam, sgd = "AdamW(model.parameters(), lr=1e-4)", "SGD(model.parameters(), lr=0.1)"
    assert adam in text
    text = text.replace(adam, sgd)  # which sees a factor of the gradients
    (tmp_path / "recipe.py").write_text(text, encoding="utf-8")
    run = [sys.executable, str(tmp_path / "recipe.py")]
    env = _environment(tmp_path)
    ended = subprocess.run(
        run, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype=torch.float32)
    wanted = learnt(tmp_path, STEPS)
    assert found.keys() == wanted.keys()
    for name, weights in wanted.items():
        torch.testing.assert_close(found[name], weights, rtol=0, atol=2e-5)
    moved = max((wanted[n] - w).abs().max().item() for n, w in before.state_dict().items())
    assert moved > 0.1, "float32 rounding is 3e-6 of this; halved gradients would be 0.12 off"


def _environment(home: Path) -> dict[str, str]:
    import os

    return os.environ | {"HOME": str(home), "RAY_TRAIN_V2_ENABLED": "1", "OMP_NUM_THREADS": "1"}
