"""Students that are made to fit a store, and the check that rows fit a student."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from softlabels.errors import ConfigError, PairingError
from softlabels.store.reader import open_store
from tests.fakes import build_tiny, write_corpus
from trainers.cli import main
from trainers.data.tasks import Task
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import make_student
from trainers.students.context import check_context, context_of
from trainers.students.made import CLOSE, parse_size, shape_of

pytest.importorskip("transformers")

CAUSAL = Task(vocab_size=300, row_tokens=64, special_ids={"eos": 256})
TASKS = [
    CAUSAL,
    Task(domain="masked-lm", vocab_size=500, row_tokens=100, special_ids={"pad": 0}),
    Task(domain="sequence-classification", classes=("a", "b", "c"), vocab_size=500, row_tokens=100),
    Task(domain="token-classification", classes=("a", "b"), vocab_size=500, row_tokens=64),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    build_tiny(folder / "store", write_corpus(folder / "corpus", documents=1, repeat=2))
    return folder / "store"


def close(student, size: int) -> bool:
    return abs(student.parameter_count / size - 1) <= CLOSE


# -- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.domain)
@pytest.mark.parametrize("size", ["300k", "1M", "2_000_000"])
def test_a_student_of_each_domain_is_as_large_as_asked_and_fits(task, size):
    student = make_student(f"new:{size}", seed=0, task=task)
    wanted = parse_size(size, where="")
    assert close(student, wanted)
    shape = shape_of(wanted, task, where="")
    assert student.parameter_count == shape.parameters, "counted, not estimated"
    assert student.vocab_size == (len(task.classes) or task.vocab_size)
    assert student.model.config.vocab_size == task.vocab_size
    assert context_of(student.model) >= task.row_tokens
    assert student.model.config.pad_token_id == task.special_ids.get("pad")
    assert student.model.config.eos_token_id == task.special_ids.get("eos")
    if task.classes:
        assert tuple(student.model.config.id2label.values()) == task.classes


@pytest.mark.parametrize("size", ["4M", "10M", "30M", "100M", "1B"])
@pytest.mark.parametrize("vocab_size", [32000, 49152, 151936])
def test_shapes_at_real_vocabularies(size, vocab_size):
    """By the count alone: close to what was asked, or refused with a size that is then made."""
    task = Task(vocab_size=vocab_size, row_tokens=512)
    wanted = parse_size(size, where="")
    try:
        shape = shape_of(wanted, task, where="--student new:SIZE")
    except ConfigError as e:
        nearest = int(str(e).rpartition("ask for new:")[2])
        shape, wanted = shape_of(nearest, task, where=""), nearest
    assert abs(shape.parameters / wanted - 1) <= CLOSE
    assert 2 <= shape.width / shape.depth <= 160


def test_ten_million_is_what_the_help_shows():
    shape = shape_of(10**7, Task(vocab_size=49152, row_tokens=512), where="")
    shown = CliRunner().invoke(main, ["student", "--help"]).stdout
    assert f'"hidden_size": {shape.width}' in shown
    assert f'"num_hidden_layers": {shape.depth}' in shown


def test_the_configuration_that_the_help_shows_works(tmp_path):
    shown = CliRunner().invoke(main, ["student", "--help"]).stdout
    text = shown[shown.index("{") : shown.index("}") + 1]
    (tmp_path / "student.json").write_text(text, encoding="utf-8")
    student = make_student(f"hf-config:{tmp_path / 'student.json'}", seed=0)
    made = make_student("new:10M", seed=0, task=Task(vocab_size=49152, row_tokens=512))
    assert student.parameter_count == made.parameter_count
    assert close(student, 10**7)
    for name, value in json.loads(text).items():
        assert getattr(made.model.config, name) == value


def test_a_vocabulary_too_large_for_the_size_is_said_with_the_nearest():
    with pytest.raises(ConfigError) as error:
        make_student("new:100k", seed=0, task=Task(vocab_size=49152, row_tokens=512))
    said = str(error.value)
    assert said.startswith(
        "--student new:100k: no student of this store comes within 3% of 100,000 parameters; "
    )
    assert "786,432 are the embeddings of 49,152 ids at a width of 16; ask for new:" in said


@pytest.mark.parametrize("text", ["", "M", "-1M", "0", "10X", "1e6", "9999999B"])
def test_what_is_not_a_size_is_refused(text):
    with pytest.raises(ConfigError, match="expected a number of parameters, such as 10M"):
        parse_size(text, where="--params")


def test_a_size_needs_a_store_and_images_have_other_students():
    with pytest.raises(ConfigError, match="is sized to a store; name one with --like STORE"):
        make_student("new:1M", seed=0)
    task = Task(domain="image-classification", classes=("a", "b"))
    with pytest.raises(ConfigError, match="for image-classification use cnn:WIDTHxDEPTH"):
        make_student("new:1M", seed=0, task=task)


def test_the_seed_decides_the_weights():
    one, same, other = (
        make_student("new:300k", seed=seed, task=CAUSAL).model.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert not all(torch.equal(one[n], other[n]) for n in one)


# -- commands -------------------------------------------------------------------------------------


def softtrain(*arguments, exit_code: int = 0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == exit_code, result.output
    return result


def test_the_command_makes_a_student_that_the_run_it_names_trains(store, tmp_path):
    made = softtrain("student", "--params", "300k", "--like", store, "--out", tmp_path / "student")
    config = json.loads((tmp_path / "student/config.json").read_text(encoding="utf-8"))
    assert (config["vocab_size"], config["eos_token_id"]) == (300, 256)
    line, following = made.stdout.splitlines()
    assert "vocabulary 300, context 512)" in line
    assert (
        following
        == f"next: softtrain run --store {store} --student hf:{tmp_path / 'student'} --out run"
    )
    words = following.split()[2:-1]
    softtrain(*words, tmp_path / "run", "--steps", 1, "--batch-size", 2, "--dtype", "float32")
    printed = json.loads(
        softtrain(
            "student", "new:300k", "--like", store, "--out", tmp_path / "again", "--json"
        ).stdout
    )
    assert printed["shape"]["vocabulary"] == 300
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("student", "again"))
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_a_run_makes_its_own_and_goes_on_with_it(store, tmp_path):
    config = RunConfig(
        store=str(store), student="new:300k", steps=2, batch_size=2, dtype="float32", seed=4
    )
    folder = train(config, tmp_path / "run")
    assert close(make_student(f"hf:{folder}", seed=0), 300_000)
    train(config, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "SPEC is missing: name a student (see --help), or have one made with --params"),
        (["hf:x", "--params", "1M"], "--params 1M: makes the student; leave out hf:x"),
        (["--params", "1M"], "--student new:1M: is sized to a store; name one with --like STORE"),
    ],
)
def test_the_command_says_what_is_missing(flags, said, tmp_path):
    result = softtrain("student", *flags, "--out", tmp_path / "student", exit_code=2)
    assert f"error: {said}" in result.stderr
    assert not (tmp_path / "student").exists()


# -- rows that are longer than a student's context -------------------------------------------------


def narrow(tmp_path: Path, **settings) -> str:
    config = {
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 40,
        **settings,
    }
    (tmp_path / "narrow.json").write_text(json.dumps(config), encoding="utf-8")
    return f"hf-config:{tmp_path / 'narrow.json'}"


@pytest.mark.parametrize("where", ["train", "heldout"])
def test_rows_longer_than_the_context_are_refused_before_training(store, tmp_path, where):
    short = tmp_path / "short"
    build_tiny(
        short, write_corpus(tmp_path / "corpus", documents=1, repeat=1), seq_len=40, limit_rows=4
    )
    stores = (
        {"store": str(store)} if where == "train" else {"store": str(short), "heldout": str(store)}
    )
    config = RunConfig(**stores, student=narrow(tmp_path), steps=1, batch_size=2, dtype="float32")
    with pytest.raises(PairingError) as error:
        train(config, tmp_path / "run")
    assert str(error.value) == (
        f"--student {config.student}: reads 40 tokens at most (its max_position_embeddings), and row 0 of {store} has "
        "64, of up to 64 that rows may have; use a student with a context of 64, or build the store with --seq-len 40"
    )
    assert not (tmp_path / "run").exists()


def test_rows_that_are_short_fit_whatever_the_store_would_allow(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", documents=1, repeat=0)
    build_tiny(tmp_path / "store", corpus, seq_len=512)
    store = open_store(tmp_path / "store")
    assert all(len(s.inputs["input_ids"]) < 40 for s in store)
    check_context(make_student(narrow(tmp_path), seed=0), store, where="x")


def test_positions_that_begin_after_the_padding_are_not_counted(tmp_path):
    roberta = narrow(tmp_path, model_type="roberta", pad_token_id=1, max_position_embeddings=42)
    task = Task(domain="masked-lm")
    assert context_of(make_student(roberta, seed=0, task=task).model) == 40
    assert context_of(torch.nn.Linear(1, 1)) is None


# -- the page -------------------------------------------------------------------------------------


def test_the_shapes_that_the_page_lists_are_those_that_are_made():
    page = (Path(__file__).parents[2] / "docs/students.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) % \|$", page, re.MULTILINE)
    assert len(rows) == 4
    for size, width, depth, share in rows:
        task = Task(vocab_size=49152, row_tokens=512)
        shape = shape_of(parse_size(size, where=""), task, where="")
        table = round(100 * 49152 * shape.width / shape.parameters)
        assert (shape.width, shape.depth, table) == (int(width), int(depth), int(share))
