"""The public functions say the same as the commands, and the page about them runs."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import softlabels
import trainers
from softlabels.builder.config import BuildConfig, MeasureConfig
from softlabels.cli.main import main as softlabels_main
from softlabels.core.progress import Silent
from softlabels.errors import ConfigError
from softlabels.teachers import TEACHERS
from tests.blocks import to_run
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from trainers.cli import main as softtrain_main
from trainers.evaluation.config import EvalConfig
from trainers.exports.config import ExportConfig
from trainers.generation.config import GenerateConfig
from trainers.run.config import RunConfig

ALWAYS = {"as_json": "how a command prints", "config_file": "a file of keyword arguments"}
PAIRS = [
    (
        softlabels.build,
        softlabels_main.commands["build"],
        BuildConfig,
        {
            "dry_run": "a command of its own",
            "price_per_hour": "belongs to --dry-run",
            "purpose": "chooses settings, which a program gives itself",
        },
    ),
    (
        softlabels.measure,
        softlabels_main.commands["measure"],
        MeasureConfig,
        {"max_kl": "decides the exit code, after the record is printed", "no_write": "write=False"},
    ),
    (trainers.train, softtrain_main.commands["run"], RunConfig, {}),
    (trainers.evaluate, softtrain_main.commands["eval"], EvalConfig, {}),
    (trainers.export, softtrain_main.commands["export"], ExportConfig, {}),
    (trainers.generate, softtrain_main.commands["generate"], GenerateConfig, {}),
]
ADDED = {"progress", "write"}
"""Arguments without a flag of that name."""


@pytest.mark.parametrize(("function", "command", "config", "without"), PAIRS)
def test_a_function_has_the_flags_of_its_command(function, command, config, without):
    arguments = inspect.signature(function).parameters
    flags = {p.name for p in command.params} - without.keys() - ALWAYS.keys()
    assert set(arguments) - ADDED == flags
    hints = get_type_hints(config)
    for field in fields(config):
        default = arguments[field.name].default
        assert default == (inspect.Parameter.empty if field.default is MISSING else field.default)
        assert arguments[field.name].annotation == hints[field.name]
    assert all(a.kind is a.KEYWORD_ONLY for a in arguments.values())


@pytest.mark.parametrize("function", [f for f, *_ in PAIRS])
def test_every_argument_is_described(function):
    text = inspect.getdoc(function)
    assert text is not None
    described = re.findall(r"^    (\w+): \S.*\.$", text.partition("\n\nReturns:")[0], re.MULTILINE)
    assert described == list(inspect.signature(function).parameters)
    assert "Raises:" in text


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(TEACHERS, "load", lambda name: lambda argument, options: TinyTeacher())


class Heard(Silent):
    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> None:
        self.stages.append(name)


def test_build_makes_the_store_of_the_command(tiny, tmp_path):
    """Lists, paths and single values stand for what TOML would hold."""
    corpus = write_corpus(tmp_path / "corpus", documents=1)
    expected = build_tiny(tmp_path / "a", corpus, temperature=(1.0, 2.0))
    given: dict[str, Any] = {"corpus": corpus, "temperature": [1, 2], "estimator": "topk", "k": 5}
    heard = Heard()
    manifest = softlabels.build(
        out=str(tmp_path / "b"),
        teacher="fake:tiny",
        seq_len=64,
        shard_rows=8,
        progress=heard,
        **given,
    )
    assert manifest.content_digest == expected.content_digest
    assert "teach" in heard.stages
    fidelity = softlabels.measure(store=tmp_path / "b", teacher="fake:tiny", write=False)
    assert fidelity.positions == manifest.identity.corpus.positions


def test_what_cannot_be_is_refused_as_at_the_command_line(tmp_path):
    with pytest.raises(ConfigError, match="--k 0: at least one id"):
        softlabels.build(teacher="hf:x", corpus=("text:x",), k=0, out=tmp_path)
    with pytest.raises(ConfigError, match=r"key 'k': expected `int \| null`, got `str`"):
        softlabels.build(teacher="hf:x", corpus=("text:x",), k="5", out=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="missing a required argument: 'corpus'"):
        softlabels.build(teacher="hf:x", out=tmp_path)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'seqlen'"):
        softlabels.build(teacher="hf:x", corpus=("text:x",), out=tmp_path, seqlen=3)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="--steps and --epochs say the same"):
        trainers.train(store=tmp_path, student="new:1M", steps=5, epochs=2.0, out="run")  # type: ignore[arg-type]


@pytest.mark.parametrize("package", [softlabels, trainers])
def test_all_names_are_there(package):
    """Even after the modules behind them were imported."""
    assert set(package._LAZY) == set(package.__all__) - {"__version__"}
    assert all(getattr(package, name) is not None for name in package.__all__)
    for name in ("build", "measure", "train", "evaluate", "export", "generate"):
        assert name not in package.__all__ or inspect.isfunction(getattr(package, name))


def test_the_page_about_python_runs(tiny, tmp_path, monkeypatch, capsys):
    write_corpus(tmp_path / "books", documents=1, repeat=1)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "snippet"}
    for snippet in to_run("python.md", "python"):
        small = snippet.replace("new:10M", "new:20k").replace("steps=2000", "steps=2")
        exec(compile(small, "python.md", "exec"), names)
    assert names["student"] == Path("run/student")
    assert names["found"].saved.is_file()
    said = capsys.readouterr().out
    assert "--alpha 2.0: expected 0 (hard labels only) to 1" in said
    assert "train 2 steps" in said
    assert re.search(r"loss \d.*positions/s", said)
