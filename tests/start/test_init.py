"""`softlabels init`: from a text and a teacher to files that build and train as they are."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from softlabels.builder.config import BuildConfig
from softlabels.builder.purposes import purpose_of
from softlabels.cli.main import main
from softlabels.start.presets import SIZES, Known, choose
from tests.fakes import TEXT
from tests.teachers.tiny import write_model
from trainers.cli import main as softtrain
from trainers.run.config import RunConfig


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def init(teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*flags: str, exit_code: int = 0, out: str = "d", model: object = teacher):
        words = ["init", "--teacher", str(model), "--out", out, "--json", *flags]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout) if exit_code == 0 else result.stderr

    return run


def paragraphs(n: int) -> str:
    return "\n\n".join(f"Chapter {i}. {TEXT}" for i in range(n))


def read(name: str) -> dict[str, object]:
    return tomllib.loads(Path(name).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_what_it_writes_builds_trains_and_is_reported_as_it_is(init, tmp_path):
    Path("my book.txt").write_text(paragraphs(60), encoding="utf-8")
    value = init("--corpus", "my book.txt", "--student", "new:60k")
    assert sorted(p.name for p in Path("d").iterdir()) == [
        *("heldout.toml", "heldout.txt", "job.toml", "run.toml", "train.txt"),
    ]
    text = Path("my book.txt").read_bytes()
    train, held = (Path(f"d/{n}.txt").read_bytes() for n in ("train", "heldout"))
    assert train + held == text
    assert held.startswith(b"Chapter ")
    assert 0.02 < len(held) / len(text) < 0.06
    mains = {"softlabels": main, "softtrain": softtrain}
    assert [c.split()[:2] for c in value["commands"]] == [
        ["softlabels", "check"],
        ["softlabels", "build"],
        ["softlabels", "build"],
        ["softtrain", "run"],
        ["softtrain", "report"],
    ]
    for command in value["commands"]:
        program, *words = command.replace("'", "").split()
        result = CliRunner().invoke(mains[program], words)
        assert result.exit_code == 0, f"{command}\n{result.output}"
    assert Path("d/report.html").stat().st_size > 1000
    assert Path("d/run/best/model.safetensors").is_file()


def test_lines_are_held_out_of_one_file_of_them(init):
    lines = [json.dumps({"text": f"{i} {TEXT}"}) + "\n" for i in range(60)]
    Path("c.jsonl").write_text("".join(lines))
    init("--corpus", "c.jsonl")
    held = Path("d/heldout.jsonl").read_text().splitlines(keepends=True)
    train = Path("d/train.jsonl").read_text().splitlines(keepends=True)
    assert held == lines[19::20]
    assert sorted(held + train) == sorted(lines)
    assert read("d/job.toml")["corpus"] == ["jsonl:d/train.jsonl"]
    assert read("d/run.toml")["heldout"] == "d/heldout"


def test_the_last_of_several_files_are_held_out_where_they_are(init):
    Path("c").mkdir()
    for i in range(5):
        Path(f"c/{i}.txt").write_text(paragraphs(3))
    init("--corpus", "c")
    assert read("d/job.toml")["corpus"] == [f"text:c/{i}.txt" for i in range(4)]
    assert read("d/heldout.toml")["corpus"] == ["text:c/4.txt"]
    assert sorted(p.name for p in Path("d").iterdir()) == ["heldout.toml", "job.toml", "run.toml"]


def test_without_held_out_text(init):
    Path("a.txt").write_text(paragraphs(60))
    value = init("--corpus", "a.txt", "--heldout", "none")
    assert value["heldout"] == []
    assert read("d/job.toml")["corpus"] == ["text:a.txt"]
    assert "heldout" not in read("d/run.toml")
    init("--corpus", "a.txt", "--heldout", "a.txt", out="e")
    assert read("e/heldout.toml")["corpus"] == ["text:a.txt"]


def test_each_value_says_why_and_each_file_is_valid(init):
    Path("a.txt").write_text(paragraphs(60))
    init("--corpus", "a.txt", "--licence", "CC-BY-4.0")
    for name, config in (("job", BuildConfig), ("heldout", BuildConfig), ("run", RunConfig)):
        toml = Path(f"d/{name}.toml")
        purpose = {} if name != "heldout" else {"purpose": purpose_of(None, toml, {})}
        config.from_sources(toml, {}, **purpose)
    lines = Path("d/job.toml").read_text().splitlines()
    for key in ("seq_len", "estimator", "k", "temperature", "profile", "licence"):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{key} = "))
        assert lines[at - 1].startswith("# "), key
    lines = Path("d/run.toml").read_text().splitlines()
    for key in ("student", "epochs", "batch_size", "lr", "alpha", "heldout"):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{key} = "))
        assert lines[at - 1].startswith("# "), key


@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_nothing_that_is_there_is_overwritten(init, there):
    Path("a.txt").write_text(paragraphs(60))
    if there == "file":
        Path("d").write_text("mine")
    elif there == "link":
        Path("e").mkdir()
        Path("d").symlink_to("e")
    else:
        Path("d").mkdir()
        Path("d/mine").write_text("mine")
    assert "is there already" in init("--corpus", "a.txt", exit_code=2)
    assert sorted(p.name for p in Path().iterdir())[:2] == ["a.txt", "d"]


def test_the_folder_one_is_in_is_not_taken(init, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    said = init("--corpus", "../a.txt", exit_code=2, out=".")
    assert "is the folder you are in" in said


def test_an_empty_folder_is_filled(init):
    Path("a.txt").write_text(paragraphs(60))
    Path("d").mkdir()
    init("--corpus", "a.txt")
    assert Path("d/job.toml").is_file()


def test_what_is_not_here_is_refused_with_the_way_to_get_it(init):
    said = init("--corpus", "nobody/texts", exit_code=2)
    assert "hf download nobody/texts --repo-type dataset --local-dir texts" in said
    Path("a.txt").write_text(paragraphs(1))
    said = init("--corpus", "a.txt", exit_code=1, model="nobody/model")
    assert "hf download nobody/model --local-dir model" in said
    assert not Path("d").exists()


def test_a_data_set_of_the_hub_in_the_local_cache(init, tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    snapshot = tmp_path / "cache"
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        (snapshot / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": [TEXT] * 3}), snapshot / "data" / f"{name}.parquet")
    monkeypatch.setattr("softlabels.start.places._cached", lambda _: snapshot)
    init("--corpus", "org/texts")
    assert "train-00000" in read("d/job.toml")["corpus"][0]
    assert "test-00000" in read("d/heldout.toml")["corpus"][0]


def test_what_is_missing_is_said_where_nobody_can_be_asked():
    result = CliRunner().invoke(main, ["init"])
    assert result.exit_code == 2
    assert "--corpus is missing" in result.stderr


def test_what_is_missing_is_asked_on_a_terminal(init, teacher, monkeypatch):
    Path("a.txt").write_text(paragraphs(60))
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    result = CliRunner().invoke(main, ["init"], input=f"a.txt\n{teacher}\n\nmade\n")
    assert result.exit_code == 0, result.output
    assert Path("made/job.toml").is_file()
    assert "softlabels build made/job.toml" in result.stdout


# -- the rule -------------------------------------------------------------------------------------


def presets(student=None, **changes):
    values = {
        "tokens": 1e6,
        "documents": [],
        "vocab_size": 49_152,
        "context": 2048,
        "teacher_parameters": 135e6,
        "tokens_per_second": 1000.0,
        "disk": 1e12,
        "hours": None,
    }
    made = choose(Known(**(values | changes)), student=student)
    return made, {c.key: c.value for c in (*made.job, *made.run)}


def test_a_small_text_is_read_several_times():
    _, chosen = presets()
    assert (chosen["estimator"], chosen["k"], chosen["epochs"]) == ("rs", 35, 3)
    assert chosen["student"] == "new:10M"
    assert chosen["lr"] == 2e-3


def test_a_large_text_is_read_once():
    _, chosen = presets(tokens=1e10, teacher_parameters=8e9)
    assert chosen["epochs"] == 1
    assert chosen["student"] == "new:300M"
    assert chosen["batch_size"] == 64


def test_a_student_that_has_learnt_takes_the_near_targets_and_a_low_rate():
    _, chosen = presets(student="hf:models/student")
    assert (chosen["estimator"], chosen["k"], chosen["lr"]) == ("sampled", 12, 1e-4)
    assert presets(student="hf:m?lora=r:16")[1]["lr"] == 2e-4


def test_a_small_disk_takes_fewer_ids():
    assert presets(disk=19e6)[1]["estimator"] == "sampled"


def test_a_budget_leaves_text_out_and_says_so():
    made, chosen = presets(tokens=1e9, disk=1e8)
    assert made.data_bytes == pytest.approx(1e8)
    assert chosen["limit_rows"] * made.seq_len == pytest.approx(made.tokens, rel=0.01)
    assert "disk allow" in next(c.why for c in made.job if c.key == "limit_rows")
    made, chosen = presets(tokens=1e9, hours=1)
    assert made.hours == pytest.approx(1)
    assert made.tokens == pytest.approx(3.6e6)
    assert "limit_rows" not in presets()[1]


@pytest.mark.parametrize(
    ("documents", "context", "expected"),
    [
        ([100] * 99 + [5000], 2048, 128),
        ([100] * 90 + [700] * 10, 2048, 1024),
        ([100] * 90 + [700] * 10, 512, 512),
        ([10**6], 8192, 512),
        ([], 256, 256),
    ],
)
def test_rows_are_as_long_as_most_documents(documents, context, expected):
    assert presets(documents=documents, context=context)[0].seq_len == expected


@pytest.mark.parametrize("vocab", [300, 32_000, 49_152, 152_000, 262_144])
@pytest.mark.parametrize("tokens", [1e3, 1e6, 1e9, 1e12])
def test_a_student_of_the_chosen_size_can_be_made(vocab, tokens):
    from trainers.data.tasks import CAUSAL
    from trainers.students.made import parse_size, shape_of

    _, chosen = presets(vocab_size=vocab, tokens=tokens)
    size = parse_size(str(chosen["student"]).removeprefix("new:"), where="")
    assert size in SIZES
    task = dataclasses.replace(CAUSAL, vocab_size=vocab)
    shape = shape_of(size, task, where="")
    assert shape.depth >= 2
    assert vocab * shape.width < 0.9 * size


def test_enough_steps_whatever_the_size():
    for tokens in (2e3, 1e5, 1e7, 1e9):
        made, chosen = presets(tokens=tokens)
        rows = -(-made.tokens // made.seq_len)
        steps = chosen["epochs"] * rows / chosen["batch_size"]
        assert steps >= 100 or chosen["epochs"] == 20
