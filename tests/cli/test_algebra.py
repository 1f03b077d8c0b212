"""The commands that make stores from stores, from outside."""

from __future__ import annotations

import json
import signal

import pytest
from click.testing import CliRunner

from softlabels.cli.main import main
from softlabels.store.reader import open_store
from tests.algebra.compare import varied_corpus
from tests.fakes import build_tiny, load_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("algebra")
    for name in ("a", "b"):
        corpus = varied_corpus(made / f"text-{name}", documents=8, seed=ord(name))
        build_tiny(made / name, corpus, shard_rows=4, k=9, temperature=(1.0, 2.0))
    return made


@pytest.fixture(autouse=True)
def _restore_sigterm():
    """The commands install a handler of their own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.output


def test_each_command_says_what_it_made(folder, tmp_path):
    a, b = folder / "a", folder / "b"
    assert "by merge of a (" in run("merge", a, b, "--out", tmp_path / "m")
    rows = len(open_store(a)) + len(open_store(b))
    found = json.loads(
        run("subset", tmp_path / "m", "--first", 3, "--out", tmp_path / "s", "--json")
    )
    assert (found["rows"], found["store"]) == (3, str(tmp_path / "s"))
    found = json.loads(
        run("subset", a, "--where", "row > 1", "--k", 3, "--out", tmp_path / "w", "--json")
    )
    assert (found["rows"], found["k"]) == (len(open_store(a)) - 2, 3)
    assert "dropped" in run("view", a, "--vocab", "trim:260", "--out", tmp_path / "v")
    found = json.loads(run("view", a, "--vocab", "trim:260", "--out", tmp_path / "v", "--json"))
    assert found["dropped"]["positions"] > 0
    run(
        "convert",
        tmp_path / "m",
        "--profile",
        "packed",
        "--values",
        "nat16",
        "--out",
        tmp_path / "p",
    )
    found = json.loads(run("diff", tmp_path / "m", tmp_path / "p", "--json"))
    assert found["rows_common"] == rows
    assert "in common" in run("diff", tmp_path / "m", tmp_path / "p")
    for name in "mswvp":
        run("verify", tmp_path / name)


def test_append(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("softlabels.builder.build.open_teachers", lambda s, a, o: load_tiny("0", o))
    out = run(
        *("append", folder / "a", "--teacher", "fake:0", "--out", tmp_path / "g1"),
        *("--corpus", f"text:{folder}/text-b/*.txt"),
    )
    assert "by append of a (" in out
    assert run("verify", tmp_path / "g1")


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (("merge", "a"), 2, "at least two"),
        (("append", "a", "--teacher", "hf:x"), 2, "Missing option '--corpus'"),
        (("subset", "a"), 2, "say what stays"),
        (("subset", "a", "--where", "nothing = 1"), 2, "the columns are row"),
        (("convert", "a"), 2, "already"),
        (("view", "a", "--vocab", "trim:9999"), 2, "has 300 ids"),
        (("view", "a", "--vocab", "trim:100"), 1, "not in the vocabulary"),
        (("merge", "a", "none"), 1, "not a store"),
    ],
)
def test_mistakes_end_in_a_sentence(folder, tmp_path, monkeypatch, arguments, code, what):
    monkeypatch.chdir(folder)
    said = run(*arguments, "--out", tmp_path / "x", code=code)
    assert "error: " in said.lower()
    assert what in said
    assert not (tmp_path / "x").exists()
