"""The commands of docs/vision.md do what they say."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from softlabels.cli.main import main as softlabels_main
from tests.blocks import commands, to_run
from tests.domains import pictures
from trainers.cli import main as softtrain_main

pytestmark = pytest.mark.slow

MAIN = {"softlabels": softlabels_main, "softtrain": softtrain_main}


def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures.save_vit(Path("vit"))
    with np.load(pictures.SAMPLE) as file:
        for name, part in (("train", slice(80)), ("test", slice(80, 120))):
            np.savez(f"{name}.npz", images=file["images"][part], labels=file["labels"][part])
    (block,) = to_run("vision.md", "sh")
    lines = commands(block.replace("--steps 2000", "--steps 2"))
    assert len(lines) == 5
    results = []
    for command in lines:
        program, *arguments = shlex.split(command)
        result = CliRunner().invoke(MAIN[program], [*arguments, "--json"])
        assert result.exit_code == 0, result.output
        results.append(json.loads(result.stdout))
    found, export = results[-2:]
    assert found["positions"] == 40
    assert found["kl"] > 0
    assert export["check"]["labels"] == 40
    assert Path("run/best/model.safetensors").exists()
    refused = CliRunner().invoke(softtrain_main, ["eval", "run", "--store", "heldout"])
    assert refused.exit_code == 2
    assert "--images is missing" in refused.output
    for main, words in ((softtrain_main, ["run"]), (softlabels_main, ["heldout"])):
        drawn = CliRunner().invoke(main, ["report", *words, "--out", "page.html"])
        assert drawn.exit_code == 0, drawn.output
        page = Path("page.html").read_text(encoding="utf-8")
        assert "image, and label" in page
        assert "text, and" not in page
        assert "drafts" not in page
    assert "The teacher saw 40 views of images once" in page
