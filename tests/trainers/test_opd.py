"""`softtrain opd`: the rounds in one command, each part of which is what the commands by themselves make."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
from click.testing import CliRunner

import trainers
from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.cli.main import main as softlabels_main
from softlabels.core.progress import Silent
from softlabels.errors import ConfigError, PairingError, RunError
from softlabels.teachers import TeacherOptions, open_teacher
from tests.students import llama
from tests.teachers.tiny import VOCAB, write_model, write_texts
from trainers.cli import main
from trainers.generation.opd import opd
from trainers.generation.opd_config import OpdConfig
from trainers.run.config import RunConfig
from trainers.run.finished import open_finished
from trainers.run.setup import train

STUDENT = llama(vocab_size=VOCAB, max_position_embeddings=512, eos_token_id=0)
SCORE = ("--estimator", "topk", "--k", "1", "--dtype", "float32")


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A teacher, another one, a store, and a run that it taught."""
    folder = tmp_path_factory.mktemp("opd")
    write_model(folder / "teacher")
    write_model(folder / "other", seed=1)
    teacher = open_teacher(f"hf:{folder}/teacher", TeacherOptions(dtype="float32"))
    settings = {"estimator": "topk", "k": 4, "seq_len": 48}
    corpus = (write_texts(folder / "corpus"),)
    build(BuildConfig(teacher="hf:x", corpus=corpus, **settings), folder / "store", teacher=teacher)
    (folder / "student.json").write_text(json.dumps(STUDENT))
    config = RunConfig(
        store=str(folder / "store"),
        student=f"hf-config:{folder}/student.json",
        steps=2,
        batch_size=2,
        dtype="float32",
    )
    train(config, folder / "run")
    return folder


def asked(ground, **changes) -> OpdConfig:
    values = {"limit": 3, "prompt_tokens": 4, "max_new_tokens": 6, "lr": 1e-3, "batch_size": 2}
    what = {"prompts": str(ground / "store"), "device": "cpu", "dtype": "float32"}
    return OpdConfig(**(what | values | changes))


def scored(ground, unscored, *, teacher="teacher", corpus=None) -> None:
    """Have a text scored as the command says."""
    words = shlex.split(unscored.command)
    assert words[:2] == ["softlabels", "build"]
    if corpus is not None:
        words[words.index("--corpus") + 1] = corpus
    done = CliRunner().invoke(
        softlabels_main, [*words[1:], *SCORE, "--teacher", f"hf:{ground}/{teacher}"]
    )
    assert done.exit_code == 0, done.output


def test_without_a_teacher_it_waits_for_the_store_and_goes_on(ground, tmp_path):
    out = tmp_path / "out [1]"  # a folder's name is no pattern
    texts, unscored = opd(ground / "run", out, asked(ground, rounds=2), Silent())
    assert texts == []
    assert unscored.text == out / "round-1" / "text.parquet"
    written = unscored.text.read_bytes()
    scored(ground, unscored)
    texts, unscored = opd(ground / "run", out, asked(ground, rounds=2), Silent())
    assert unscored.text == out / "round-2" / "text.parquet"
    assert (out / "round-1" / "text.parquet").read_bytes() == written
    (first,) = texts
    assert (first.round, first.sequences) == (1, 3)
    assert first.reverse_kl == pytest.approx(first.teacher_nll - first.student_nll)
    facts = json.loads((out / "round-1/run/run.json").read_text())
    before = open_finished(ground / "run").digest()
    assert facts["init"]["weights_sha256"] == before
    assert open_finished(out / "round-1/run").digest() != before
    # the student of round 1 wrote round 2's text, by draws of its own
    texts_of = [out / f"round-{i}" / "text.parquet" for i in (1, 2)]
    assert texts_of[0].read_bytes() != texts_of[1].read_bytes()


def test_the_last_student_is_judged_by_a_text_that_none_learns_from(ground, tmp_path):
    config = asked(ground, judge=True)
    for _ in range(2):
        _, unscored = opd(ground / "run", tmp_path / "out", config, Silent())
        scored(ground, unscored)
    texts, unscored = opd(ground / "run", tmp_path / "out", config, Silent())
    assert unscored is None
    assert [t.student for t in texts] == [tmp_path / "out/round-1/run/student", None]
    assert not (tmp_path / "out/round-2/run").exists()


@pytest.fixture(scope="module")
def waiting(ground, tmp_path_factory):
    """A folder whose first text awaits its teacher."""
    out = tmp_path_factory.mktemp("waiting") / "out"
    return out, opd(ground / "run", out, asked(ground), Silent())[1]


def test_the_store_of_another_teacher_is_refused(ground, waiting, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(waiting[0], out)
    _, unscored = opd(ground / "run", out, asked(ground), Silent())
    scored(ground, unscored, teacher="other")
    with pytest.raises(
        PairingError, match=r"was taught by another teacher .*; remove .*/round-1/store, and the"
    ):
        opd(ground / "run", out, asked(ground), Silent())
    assert not (out / "round-1" / "run").exists()


def test_the_store_of_another_text_is_refused(ground, waiting, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(waiting[0], out)
    _, unscored = opd(ground / "run", out, asked(ground), Silent())
    scored(ground, unscored, corpus=f"text:{ground}/corpus/*.txt")
    with pytest.raises(PairingError, match="it is of another text; remove"):
        opd(ground / "run", out, asked(ground), Silent())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"lr": 1e-2}, "begun with lr = 0.001, this has 0.01"), ({"n": 2}, "begun with n = 1")],
)
def test_it_goes_on_as_it_was_begun(ground, waiting, changes, message):
    with pytest.raises(RunError, match=message):
        opd(ground / "run", waiting[0], asked(ground, **changes), Silent())
    opd(ground / "run", waiting[0], asked(ground, rounds=3, judge=True), Silent())


def test_another_student_is_refused(ground, waiting, tmp_path):
    again = RunConfig(
        store=str(ground / "store"), student=f"hf-config:{ground}/student.json", steps=1, seed=1
    )
    train(again, tmp_path / "run")
    with pytest.raises(RunError, match="was begun with a student whose weights have sha256"):
        opd(tmp_path / "run", waiting[0], asked(ground), Silent())


@pytest.mark.parametrize("content", ["{", "[]", '{"config": 3}'])
def test_a_record_of_something_else_is_refused_and_left(ground, tmp_path, content):
    (tmp_path / "opd.json").write_text(content)
    with pytest.raises(RunError, match="not the record of softtrain opd"):
        opd(ground / "run", tmp_path, asked(ground), Silent())
    assert (tmp_path / "opd.json").read_text() == content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "--rounds 0"),
        ({"n": 0}, "--n 0"),
        ({"lr": 0.0}, "--lr 0"),
        ({"generate_batch_size": 0}, "--generate-batch-size 0"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        OpdConfig(prompts="store", **changes)


def test_two_runs_of_other_seeds_never_write_by_the_same_draws():
    seeds = [
        OpdConfig(prompts="s", seed=s, rounds=3).text_of(i).seed for s in (0, 1) for i in (1, 2, 3)
    ]
    assert len(set(seeds)) == 6


@pytest.mark.slow
def test_one_command_is_the_three_and_the_teacher_is_in_a_process_of_its_own(ground, tmp_path):
    """Weights of the student, to the bit; and a second call changes nothing."""
    out = tmp_path / "out"
    flags = ["--prompts", ground / "store", "--limit", 3, "--prompt-tokens", 4]
    flags += ["--max-new-tokens", 6, "--seed", 5, "--device", "cpu"]
    teacher = ["--teacher", f"hf:{ground}/teacher", "--lr", 1e-3, "--batch-size", 2]
    words = ["opd", ground / "run", *flags, *teacher, "--judge", "--dtype", "float32"]
    command = [*map(str, words), "--out", str(out), "--json"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [t["round"] for t in found["texts"]] == [1, 2]
    assert found["unscored"] is None

    own = {"prompts": str(ground / "store"), "prompt_tokens": 4, "limit": 3}
    trainers.generate(
        run=ground / "run", out=tmp_path / "t.parquet", max_new_tokens=6, seed=5000, **own
    )
    assert (tmp_path / "t.parquet").read_bytes() == (out / "round-1/text.parquet").read_bytes()
    score = {"teacher": f"hf:{ground}/teacher", "corpus": (f"ids:{tmp_path}/t.parquet",)}
    build(BuildConfig(**score, estimator="topk", device="cpu"), tmp_path / "own")
    trainers.train(
        store=tmp_path / "own",
        init=str(ground / "run"),
        loss="sampled_reverse_kl",
        alpha=1.0,
        lr=1e-3,
        batch_size=2,
        epochs=1.0,
        seed=5,
        device="cpu",
        dtype="float32",
        out=tmp_path / "next",
    )
    assert open_finished(tmp_path / "next").digest() == open_finished(out / "round-1/run").digest()

    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.suffix != ".lock"}
    again = CliRunner().invoke(main, command)
    assert json.loads(again.stdout) == found
    assert {p: p.read_bytes() for p in files} == files
