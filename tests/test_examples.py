"""The config files of docs/examples run as they are, but for a tiny teacher, a tiny student and two steps."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from softlabels.cli.main import main as softlabels_main
from tests.fakes import TEXT
from trainers.cli import main as softtrain_main

pytest.importorskip("transformers")

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def invoke(program, *arguments: str):
    result = CliRunner().invoke(program, list(arguments))
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.slow
def test_build_and_run(tmp_path, monkeypatch):
    from tests.teachers.tiny import write_model

    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "models" / "teacher")
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text(TEXT * 4, encoding="utf-8")
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "A man."}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    invoke(softlabels_main, "build", str(EXAMPLES / "build.toml"), "--device", "cpu")
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["identity"]["corpus"]["specs"] == ["text:*.txt", "jsonl:chats.jsonl"]
    assert manifest["identity"]["licence"] == "CC-BY-4.0"
    short = ["--steps", "2", "--student", "new:51768", "--device", "cpu"]
    invoke(softtrain_main, "run", str(EXAMPLES / "run.toml"), *short)
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()
    config = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["config"]
    assert (config["batch_size"], config["steps"], "out" in config) == (32, 2, False)


@pytest.mark.parametrize(
    ("name", "program", "command"),
    [("build", softlabels_main, "build"), ("run", softtrain_main, "run")],
)
def test_keys_that_are_commented_out_are_keys_too(name, program, command):
    text = (EXAMPLES / f"{name}.toml").read_text(encoding="utf-8")
    optional = [line[2:] for line in text.splitlines() if line.startswith("# ") and " = " in line]
    assert optional
    known = {p.name for p in program.commands[command].params}
    assert set(tomllib.loads("\n".join([text, *optional]))) <= known
