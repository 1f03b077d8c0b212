"""Every command of docs/kld.md runs as it is printed, on models that are small enough."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
from click.testing import CliRunner

from softlabels.cli.main import main
from tests.blocks import commands, to_run
from tests.fakes import TEXT
from tests.interchange.test_llama_kld import base_of

transformers = pytest.importorskip("transformers")

COMMANDS = [line for block in to_run("kld.md", "sh") for line in commands(block)]


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path, monkeypatch):
    import torch

    from tests.teachers.tiny import write_model

    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "models" / "original")
    config = tmp_path / "models" / "original" / "config.json"
    longer = json.loads(config.read_text(encoding="utf-8")) | {"max_position_embeddings": 512}
    config.write_text(json.dumps(longer), encoding="utf-8")
    for name, noise in (("int8", 0.001), ("int4", 0.1)):
        folder = tmp_path / "models" / name
        model = transformers.AutoModelForCausalLM.from_pretrained("models/original")
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * noise * weight.std(correction=0))
        model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained("models/original").save_pretrained(folder)
    (tmp_path / "wiki").mkdir()
    (tmp_path / "wiki" / "a.txt").write_text(TEXT * 6, encoding="utf-8")
    width = model.config.vocab_size
    g = np.random.default_rng(0)
    tokens, logits = g.integers(0, width, (2, 16)), g.normal(size=(2, 16, width))
    (tmp_path / "base.kld").write_bytes(base_of(tokens, logits, v=width))
    assert len(COMMANDS) == 7
    for command in COMMANDS:
        program, *words = shlex.split(command)
        assert program == "softlabels"
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, (command, done.output)
    assert (tmp_path / "kld.html").exists()
    assert (tmp_path / "reference-wide" / "manifest.json").exists()
