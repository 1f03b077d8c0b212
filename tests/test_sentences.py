"""What the machine refuses is told in a sentence by every command that writes or loads, never in a traceback."""

import json
import re
import resource
import shutil
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from softlabels.cli.main import main as softlabels
from softlabels.console.terminal import Commands
from softlabels.core.folder_record import seal_folder
from softlabels.errors import ConfigError
from softlabels.interchange import EXPORTS
from softlabels.teachers import TEACHERS
from tests.fakes import build_tiny, write_corpus
from tests.students import llama
from trainers.cli import main as softtrain
from trainers.run.config import RunConfig
from trainers.run.setup import train

STUDENT = llama(max_position_embeddings=512)
BUILD = "--teacher fake:0 --corpus text:CORPUS/*.txt --k 5 --seq-len 64 --shard-rows 8"
WRITING = {
    "softlabels init": "--teacher fake:0 --corpus text:CORPUS/*.txt --out OUT",
    "softlabels build": f"{BUILD} --out OUT",
    "softlabels merge": "STORE HELD --out OUT",
    "softlabels append": "STORE --corpus text:OTHER/*.txt --teacher fake:0 --out OUT",
    "softlabels subset": "STORE --first 3 --out OUT",
    "softlabels view": "STORE --vocab trim:280 --out OUT",
    "softlabels convert": "STORE --profile packed --out OUT",
    "softlabels report": "STORE --out OUT",
    "softlabels export": f"STORE {next(iter(EXPORTS))} --out OUT",
    "softlabels card": "STORE",
    "softlabels reference": "fake:0 --corpus text:CORPUS/*.txt --k 4 --wide-k 9 --out OUT",
    "softlabels kld": "fake:0 --store STORE --bootstrap 0 --out OUT",
    "softtrain run": "--store STORE --student hf-config:STUDENT --steps 1 --batch-size 2 --out OUT "
    "--dtype float32",
    "softtrain student": "hf-config:STUDENT --out OUT",
    "softtrain eval": "RUN --store HELD --bootstrap 0",
    "softtrain export": "RUN --format safetensors --heldout HELD --rows 2 --out OUT",
    "softtrain generate": "RUN --prompts PROMPTS --max-new-tokens 2 --out OUT.parquet",
    "softtrain report": "RUN --store HELD --texts 0 --out OUT",
    "softtrain watch": "RUN --once --out OUT",
}
"""Each command that writes, with what it is given."""
ELSEWHERE = {
    "softlabels demo": "builds and trains for minutes; of the commands above",
    "softlabels check": "reads",
    "softlabels size": "reads",
    "softlabels inspect": "reads",
    "softlabels verify": "reads",
    "softlabels diff": "reads",
    "softlabels status": "reads",
    "softlabels repair": "tests/cli/test_repair.py and tests/faults",
    "softlabels measure": "needs a teacher that tokenises as transformers do; amends as card does",
    "softlabels states": "tests/store/test_states.py and tests/faults",
    "softlabels import": "needs another tool's files; writes as build does",
    "softlabels push": "tests/store/remote",
    "softlabels pull": "tests/store/remote",
    "softlabels sign": "needs a key; amends as card does",
    "softtrain latency": "prints",
    "softtrain opd": "tests/trainers/test_opd.py; of generate, build and run, in folders of its own",
    "softtrain sweep": "tests/trainers/test_sweep.py; of softtrain run, in processes of its own",
}
MAINS = {"softlabels": softlabels, "softtrain": softtrain}


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentences")
    build_tiny(folder / "STORE", write_corpus(folder / "CORPUS"))
    build_tiny(folder / "HELD", write_corpus(folder / "OTHER", documents=1, repeat=1))
    (folder / "STUDENT").write_text(json.dumps(STUDENT))
    (folder / "PROMPTS").write_text("It is\n")
    config = RunConfig(
        store=str(folder / "STORE"),
        student=f"hf-config:{folder / 'STUDENT'}",
        steps=1,
        batch_size=2,
        dtype="float32",
        threads=1,
    )
    train(config, folder / "RUN")
    words = {"it": 0, "is": 1, "[UNK]": 2, "[EOS]": 3}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.save(str(folder / "RUN" / "student" / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "[EOS]"}
    (folder / "RUN" / "student" / "tokenizer_config.json").write_text(json.dumps(settings))
    seal_folder(folder / "RUN" / "student", kind="student", step=1)
    return folder


@pytest.fixture(autouse=True)
def fake_teacher(monkeypatch):
    monkeypatch.setitem(TEACHERS.builtin, "fake", "tests.fakes:load_tiny")


def invoke(ground: Path, command: str, out: Path, more: str = "") -> Result:
    name, _, verb = command.partition(" ")
    words = [verb, *WRITING[command].split(), *more.split()]
    for place in ("STORE", "HELD", "CORPUS", "OTHER", "STUDENT", "PROMPTS", "RUN"):
        words = [re.sub(rf"\b{place}\b", str(ground / place), w) for w in words]
    return CliRunner().invoke(MAINS[name], [re.sub(r"\bOUT\b", str(out), w) for w in words])


def said(result: Result) -> str:
    """The sentence of a command that failed as it should."""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.output
    return next(x for x in result.output.splitlines() if x.lower().startswith("error: "))


def test_every_command_is_tried_or_says_why_not():
    every = {f"{name} {verb}" for name, main in MAINS.items() for verb in main.commands}
    assert every == WRITING.keys() | ELSEWHERE.keys()
    assert not WRITING.keys() & ELSEWHERE.keys()


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
@pytest.mark.parametrize("command", WRITING)
def test_a_full_disk_is_a_sentence(ground, tmp_path, command):
    copy = tmp_path / "ground"
    shutil.copytree(ground, copy)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        result = invoke(copy, command, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    if command == "softtrain eval":  # what it found is shown, if it cannot be kept
        assert result.exit_code == 0, result.output
        assert "the evaluation is not kept in it (File too large)" in result.stderr
    else:
        assert "a file may not be as large here" in said(result)


@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="no folder that even root cannot write")
@pytest.mark.parametrize("command", [c for c, given in WRITING.items() if "OUT" in given])
def test_a_folder_that_cannot_be_written_is_a_sentence(ground, command):
    line = said(invoke(ground, command, Path("/proc/sys/nobody/out")))
    assert "/proc/sys" in line


@pytest.mark.parametrize("device", ["foo", "cuda", "cuda:99", "meta", "xpu"])
@pytest.mark.parametrize("command", ["softtrain run", "softtrain eval", "softtrain generate"])
def test_a_device_that_is_not_here_is_a_sentence(ground, tmp_path, command, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has it")
    line = said(invoke(ground, command, tmp_path / "out", f"--device {device}"))
    assert f"--device {device}" in line or f"--device '{device}'" in line


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "softlabels.json"]
)
@pytest.mark.parametrize("command", ["softtrain eval", "softtrain export", "softtrain generate"])
def test_a_truncated_file_of_a_student_is_a_sentence(ground, tmp_path, command, name):
    copy = tmp_path / "ground"
    shutil.copytree(ground, copy)
    path = copy / "RUN" / "student" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = invoke(copy, command, tmp_path / "out")
    reads = name in ("model.safetensors", "config.json") or (
        name == "tokenizer.json" and "generate" in command
    )
    if reads or result.exit_code:
        assert str(copy / "RUN" / "student") in said(result)


@pytest.mark.parametrize("torn", ["model.safetensors", "config.json", "tokenizer.json", "gguf"])
@pytest.mark.parametrize("by", ["--teacher", "--student"])
def test_a_truncated_model_is_a_sentence(ground, tmp_path, torn, by):
    model = tmp_path / "model"
    shutil.copytree(ground / "RUN" / "student", model)
    if torn == "gguf":
        shutil.rmtree(model)
        model.mkdir()
        (model / "m.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(11))
    else:
        path = model / torn
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    build = f"build --corpus text:{ground}/CORPUS/*.txt --k 5 --seq-len 64 --teacher hf:{model}"
    student = f"student hf:{model}"
    command, main = (build, softlabels) if by == "--teacher" else (student, softtrain)
    result = CliRunner().invoke(main, [*command.split(), "--out", str(tmp_path / "out")])
    if by == "--student" and torn == "tokenizer.json":  # which is not read
        assert result.exit_code == 0
        return
    assert str(model) in said(result)


def test_a_store_at_an_address_without_its_library_is_a_sentence(monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    line = said(CliRunner().invoke(softlabels, ["inspect", "s3://bucket/store"]))
    assert "needs obstore, which is not installed" in line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device"), "the disk is full: free space"),
        (OSError(30, "Read-only file system", "/x/y"), "/x/y: the file system is read-only"),
        (OSError(5, "Input/output error", "/x/y"), "/x/y: Input/output error"),
        (ValueError("Error: I/O error: No space left on device (os error 28)"), "the disk is full"),
    ],
)
def test_an_error_of_the_machine_that_nobody_thought_of_is_a_sentence(error, expected):
    @click.group(cls=Commands)
    def main() -> None:
        """Commands."""

    @main.command()
    def work() -> None:
        raise error

    result = CliRunner().invoke(main, ["work"], prog_name="softlabels")
    assert expected in said(result)


def test_our_own_mistakes_keep_their_traceback():
    @click.group(cls=Commands)
    def main() -> None:
        """Commands."""

    @main.command()
    def work() -> None:
        raise AssertionError

    result = CliRunner().invoke(main, ["work"])
    assert isinstance(result.exception, AssertionError)


def test_errors_of_ours_pass():
    @click.group(cls=Commands)
    def main() -> None:
        """Commands."""

    @main.command()
    def work() -> None:
        raise ConfigError("--x 3: no")

    result = CliRunner().invoke(main, ["work"])
    assert result.exit_code == 2
    assert said(result) == "error: --x 3: no"
