"""The config files of docs/examples run as they are, but for a tiny teacher, a tiny student and two steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


# -- job files of schedulers --------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path) -> dict[str, str]:
    """A job that plain processes can do, and the environment that they need."""
    from tests.teachers.tiny import write_model

    write_model(tmp_path / "models" / "teacher")
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text(TEXT * 4, encoding="utf-8")
    (tmp_path / "job.toml").write_text(
        f"""
teacher = "hf:{tmp_path}/models/teacher"
corpus = ["text:{tmp_path}/books/*.txt"]
estimator = "topk"
k = 5
seq_len = 64
shard_rows = 2
device = "cpu"
""",
        encoding="utf-8",
    )
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (commands / "softlabels").write_text(f'#!/bin/sh\nexec {sys.executable} -m softlabels "$@"\n')
    for command in commands.iterdir():
        command.chmod(0o755)
    return os.environ | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(EXAMPLES.parents[1]),
        "OMP_NUM_THREADS": "1",
    }


def finished(builders: list[subprocess.Popen[str]], store: Path) -> None:
    for builder in builders:
        _, said = builder.communicate(timeout=300)
        assert builder.returncode == 0, said
    status = json.loads(invoke(softlabels_main, "status", str(store), "--json").stdout)
    assert status["complete"]
    assert status["shards_done"] == status["shards"] > 4
    invoke(softlabels_main, "verify", str(store))


@pytest.mark.slow
def test_the_slurm_array(tmp_path, job):
    """Two of its tasks, as Slurm would start them."""
    store = tmp_path / "store"
    script = [str(EXAMPLES / "build.slurm"), str(tmp_path / "job.toml"), str(store)]
    numbers = ({"SLURM_ARRAY_TASK_ID": str(i), "SLURM_ARRAY_TASK_COUNT": "2"} for i in range(2))
    finished(
        [
            subprocess.Popen(["sh", *script], env=job | n, stderr=subprocess.PIPE, text=True)
            for n in numbers
        ],
        store,
    )


@pytest.mark.slow
def test_the_indexed_job(tmp_path, job):
    """Two of its sixteen pods, as far as one machine can be a cluster: its container's command in its environment."""
    yaml = pytest.importorskip("yaml")
    text = (EXAMPLES / "build.k8s.yaml").read_text(encoding="utf-8")
    spec = yaml.safe_load(text)["spec"]
    assert spec["completionMode"] == "Indexed"
    (container,) = spec["template"]["spec"]["containers"]
    assert f'/{spec["completions"]}"' in container["args"][0]
    named = {e["name"] for e in container["env"]}
    assert named == {"JOB", "STORE"}
    places = {"JOB": str(tmp_path / "job.toml"), "STORE": str(tmp_path / "store")}
    finished(
        [
            subprocess.Popen(
                [*container["command"], *container["args"]],
                env=job | places | {"JOB_COMPLETION_INDEX": str(i)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in (0, 15)
        ],
        tmp_path / "store",
    )
