"""Tries an installed wheel where the repository is not: `.ci/wheel` runs it with the clean environment's Python.

smoke.py files WHEEL REPO   every file of the packages in the repository is in the wheel
smoke.py requirements       what the package needs, torch left out, a requirement a line
smoke.py doors              both public doors, entry points, extras, type markers, every --help
smoke.py whole              that, and init, check, build, verify, inspect, report, run, eval, export, report
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tomllib
import zipfile
from importlib import metadata
from importlib.resources import files
from pathlib import Path

PROGRAMS = {"softlabels": "softlabels.cli.main", "softtrain": "trainers.cli"}
NAME = "softlabels"
TEXT = 24_000
"""Letters of the demo's text that the teacher is shown."""


def compare_files(wheel: Path, repo: Path) -> None:
    """Templates, stylesheets and markers are as much part of the packages as modules are."""
    listed = subprocess.run(
        ["git", "-C", repo, "ls-files", "softlabels", "trainers"],
        capture_output=True,
        text=True,
        check=True,
    )
    there = set(zipfile.ZipFile(wheel).namelist())
    missing = sorted(set(listed.stdout.split()) - there)
    assert not missing, f"not in the wheel: {missing}"
    data = [name for name in there if "/demo_data/" in name]
    assert len(data) == 6, data
    assert not [n for n in there if n.startswith(("tests/", "docs/", ".ci/"))]
    extras = set(
        tomllib.loads((repo / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )
    head = next(n for n in there if n.endswith(".dist-info/METADATA"))
    text = zipfile.ZipFile(wheel).read(head).decode()
    said = {line.split(": ")[1] for line in text.splitlines() if line.startswith("Provides-Extra:")}
    assert extras == said, extras ^ said
    print(
        f"{wheel.name}: {len(there)} files, {len(said)} extras, {wheel.stat().st_size / 1e6:.1f} MB"
    )


def requirements() -> None:
    """Without extras and torch."""
    for line in metadata.requires(NAME) or []:
        if "extra ==" not in line and not line.startswith("torch"):
            print(line)


def doors() -> None:
    """What can be asked of the package without a model."""
    import click
    from click.testing import CliRunner

    import softlabels
    import trainers

    for package in (softlabels, trainers):
        where = Path(package.__file__ or "")
        assert "site-packages" in where.parts, where
        assert (files(package.__name__) / "py.typed").is_file()
        assert where.parent.joinpath("py.typed").is_file()
    assert softlabels.__version__ == metadata.version(NAME), softlabels.__version__
    for package, template in (
        ("softlabels", "report/templates/style.css"),
        ("trainers", "exports/card.jinja"),
    ):
        assert (files(package) / template).is_file(), template
    points = {(p.group, p.name) for p in metadata.distribution(NAME).entry_points}
    assert points == {
        ("console_scripts", "softlabels"),
        ("console_scripts", "softtrain"),
        ("numcodecs.codecs", "softlabels.numbers"),
        ("sglang.srt.plugins", "softlabels"),
        ("vllm.general_plugins", "softlabels"),
    }, points
    tried = 0
    for program, module in PROGRAMS.items():
        script = Path(sys.executable).with_name(program)
        said = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
        assert softlabels.__version__ in said.stdout, said.stdout
        main = __import__(module, fromlist=["main"]).main
        for command in ["", *main.list_commands(click.Context(main))]:
            result = CliRunner().invoke(main, [*([command] if command else []), "--help"])
            assert result.exit_code == 0, f"{program} {command}: {result.output}"
            assert result.stdout.startswith("Usage: ")
            tried += 1
    print(f"doors, entry points and markers are there; {tried} pages of help")


def every_name() -> None:
    """All that the two doors offer can be had."""
    import softlabels
    import trainers

    for package in (softlabels, trainers):
        for name in package.__all__:
            assert getattr(package, name) is not None, name


def write_teacher(folder: Path) -> None:
    """A model of a few thousand weights, with a tokenizer of bytes: enough to be run, not to teach anything."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<end>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.6,
        eos_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def job() -> None:
    """From a text to a student and its reports, by the commands that users type."""
    novel = (files("softlabels") / "demo_data/austen/train/emma.txt").read_text(encoding="utf-8")
    Path("my.txt").write_text(novel[:TEXT], encoding="utf-8")
    Path("prompts.txt").write_text("It was\n", encoding="utf-8")
    write_teacher(Path("teacher"))
    said = run("softlabels init --corpus my.txt --teacher teacher --student new:62k --out d --json")
    for command in json.loads(said)["commands"]:
        if command.startswith("softtrain run"):
            command += " --steps 20 --eval-every 10"
        if command.startswith("softtrain report"):
            run("softtrain eval d/run --store d/heldout --bootstrap 0")
        run(command.replace("'", ""))
    for command in (
        "softlabels build d/job.toml --dry-run",
        "softlabels verify d/store",
        "softlabels inspect d/store --row 0",
        "softlabels report d/store --out store.html",
        "softlabels size d/job.toml --price-per-hour 2",
        "softlabels measure d/heldout --teacher hf:teacher --positions 200",
        "softlabels subset d/store --first 20 --out few",
        "softtrain export d/run --format safetensors --heldout d/heldout --rows 4 --out student",
        "softtrain generate d/run --prompts prompts.txt --max-new-tokens 4 --out texts.jsonl --n 1",
    ):
        run(command)
    for name in ("d/report.html", "store.html", "student/README.md", "d/store/README.md"):
        assert Path(name).stat().st_size > 500, name


def run(command: str) -> str:
    """Run one, as its console script; returns what it printed."""
    program, *words = command.split()
    begun = time.monotonic()
    done = subprocess.run(
        [Path(sys.executable).with_name(program), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    print(f"{time.monotonic() - begun:5.1f} s  {command}", flush=True)
    return done.stdout


def main(what: str, *arguments: str) -> None:
    """Do one of them."""
    if what == "files":
        compare_files(Path(arguments[0]), Path(arguments[1]))
    elif what == "requirements":
        requirements()
    else:
        print(f"Python {sys.version.split()[0]}", end="; ", flush=True)
        doors()
        if what == "whole":
            print(
                f"torch {metadata.version('torch')}, transformers {metadata.version('transformers')}"
            )
            every_name()
            job()


if __name__ == "__main__":
    main(*sys.argv[1:])
