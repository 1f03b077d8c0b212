"""Both command lines: what they print, and how they end: a sentence and an exit code, never a traceback."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import softlabels
from softlabels.cli.main import main as softlabels_main
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.store.made_up import files_of
from trainers.cli import main as softtrain_main

V = 300
"""Of the tiny teacher."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cli")
    corpus = write_corpus(folder / "corpus", documents=2, repeat=1)
    build_tiny(folder / "topk", corpus, temperature=(1.0, 2.0), limit_rows=10, shard_rows=4)
    build_tiny(folder / "sampled", corpus, estimator="sampled", limit_rows=10)
    return {name: folder / name for name in ("topk", "sampled", "corpus")}


@pytest.fixture(autouse=True)
def _restore_sigterm():
    """The commands install a handler of their own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def _invoke(program, arguments, exit_code: int) -> Result:
    result = CliRunner().invoke(program, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    assert result.exit_code == exit_code, result.output
    return result


def softlabels_(*arguments, exit_code: int = 0) -> Result:
    return _invoke(softlabels_main, arguments, exit_code)


def softtrain(*arguments, exit_code: int = 0) -> Result:
    return _invoke(softtrain_main, arguments, exit_code)


def sentence(result: Result) -> str:
    """The one line of an error of ours."""
    assert result.stdout == ""
    (line,) = (x for x in result.stderr.splitlines() if x.startswith("error: "))
    return line.removeprefix("error: ")


# -- both programs --------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "name"), [(softlabels_, "softlabels"), (softtrain, "softtrain")])
def test_version_and_usage(run, name):
    assert run("--version").stdout == f"{name}, version {softlabels.__version__}\n"
    assert "Usage: " in run("--help").stdout
    assert "No such command 'nothing'" in run("nothing", exit_code=2).stderr
    assert "Usage: " in run(exit_code=2).stderr


@pytest.mark.parametrize(
    ("run", "command", "missing"),
    [
        (softlabels_, ["inspect"], "STORE"),
        (softlabels_, ["verify"], "STORE"),
        (softlabels_, ["repair"], "STORE"),
        (softtrain, ["student"], "--out"),
        (softtrain, ["eval"], "RUN"),
        (softtrain, ["eval", "run"], "--store"),
    ],
)
def test_what_click_requires(run, command, missing):
    assert f"'{missing}'" in run(*command, exit_code=2).stderr


@pytest.mark.parametrize(
    ("run", "command"),
    [
        (softlabels_, ["card"]),
        (softlabels_, ["push"]),
        (softlabels_, ["pull", "s3://bucket/x"]),
        (softtrain, ["run", "--out"]),
        (softtrain, ["student", "hf:x", "--out"]),
        (softtrain, ["eval"]),
    ],
)
def test_an_address_is_not_taken_for_a_folder(run, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*command, "s3://bucket/x", exit_code=2)
    assert (
        "'s3://bucket/x': this is written to, or changed, in a local folder only" in result.stderr
    )
    assert list(tmp_path.iterdir()) == []


# -- build ----------------------------------------------------------------------------------------


@pytest.fixture
def build(stores, tmp_path):
    """`build` with flags that would do, but for the teacher: no folder is there."""

    def run(*flags, exit_code: int = 2) -> Result:
        base = ["--corpus", f"text:{stores['corpus']}/*.txt"]
        base += [] if "--teacher" in flags else ["--teacher", f"hf:{tmp_path}/none"]
        return softlabels_("build", *base, "--out", tmp_path / "out", *flags, exit_code=exit_code)

    yield run
    assert not (tmp_path / "out").exists(), "a refused build leaves nothing behind"


@pytest.mark.parametrize("missing", ["teacher", "corpus"])
def test_build_without_a_flag_it_needs(missing, tmp_path):
    flags = {"teacher": "hf:x", "corpus": "text:x"}
    flags.pop(missing)
    given = [x for k, v in flags.items() for x in (f"--{k}", v)]
    result = softlabels_("build", *given, "--out", tmp_path / "out", exit_code=2)
    assert sentence(result) == f"--{missing} is missing (or '{missing}' in the config file)"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--estimator", "best"],
            "--estimator 'best': expected one of dense, rs, sampled, systematic, topk, topp",
        ),
        (["--values", "int8"], "--values 'int8': expected one of companded, counts, float16"),
        (["--corpus", "csv:x"], "softlabels.corpora: nothing is called 'csv'; known: dataset,"),
        (["--corpus", "x.txt"], "--corpus x.txt: no such file"),
        (["--teacher", "gpt:x"], "softlabels.teachers: nothing is called 'gpt'; known: hf,"),
        (["--teacher", "model"], "--teacher 'model': expected NAME:ARGUMENT"),
        (["--k", "0"], "--k 0: at least one id"),
        (["--seq-len", "1"], "--seq-len 1: expected at least 2"),
        (["--temperature", "0"], "--temperature 0.0: expected a finite number above 0"),
        (
            ["--temperature", "1", "--temperature", "2"],
            "--temperature [1.0, 2.0]: a store of the 'sampled' estimator",
        ),
        (["--estimator", "topk", "--temperature", "2"], "--temperature [2.0]: this estimator also"),
    ],
)
def test_build_refuses_bad_usage(build, flags, said):
    assert sentence(build(*flags)).startswith(said)


def test_build_refuses_what_is_not_a_number(build):
    assert "'1.5' is not a valid integer" in build("--k", "1.5").stderr


def test_build_without_files_or_teacher(build):
    assert "no file matches" in sentence(build("--corpus", "text:/none/*.txt", exit_code=1))
    assert "none: no such folder" in sentence(build(exit_code=1))


def test_build_reads_toml_and_flags_win(build, tmp_path):
    (tmp_path / "c.toml").write_text('k = 0\nestimator = "topk"\nsead = 1\n', encoding="utf-8")
    assert "c.toml: unknown key 'sead'" in sentence(build(tmp_path / "c.toml"))
    (tmp_path / "c.toml").write_text('k = 0\nestimator = "best"\n', encoding="utf-8")
    assert "c.toml: key 'estimator': --estimator 'best'" in sentence(build(tmp_path / "c.toml"))
    said = sentence(build(tmp_path / "c.toml", "--estimator", "topk"))
    assert "c.toml: key 'k': --k 0" in said
    assert "No such file" in sentence(build(tmp_path / "none.toml"))


def test_build_refuses_a_folder_that_holds_something_else(stores, tmp_path):
    (tmp_path / "thesis.tex").write_text("x", encoding="utf-8")
    flags = ["--teacher", "hf:x", "--corpus", f"text:{stores['corpus']}/*.txt"]
    result = softlabels_("build", *flags, "--out", tmp_path, exit_code=1)
    assert sentence(result) == (
        f"{tmp_path}: is not empty and not a store (it holds 'thesis.tex'); choose another --out"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_store_whose_plan_is_gone_is_called_one(stores, tmp_path):
    """Finished or not, the sentence says what is there and what can be done with it."""
    store = tmp_path / "store"
    shutil.copytree(stores["topk"], store)
    (store / "plan.json").unlink()
    before = files_of(store)
    flags = ["--teacher", "hf:x", "--corpus", f"text:{stores['corpus']}/*.txt", "--out", store]
    assert sentence(softlabels_("build", *flags, exit_code=1)) == (
        f"{store}: is a finished store whose plan.json is gone: it can be read and trained from as it is, but not gone "
        "on with; copy plan.json again from the store's source, or choose another --out"
    )
    (store / "manifest.json").unlink()
    del before["manifest.json"]
    assert sentence(softlabels_("build", *flags, exit_code=1)) == (
        f"{store}: is an unfinished store whose plan.json is gone, without which nobody knows what its shards must be; "
        "put plan.json back, or choose another --out"
    )
    assert files_of(store) == before


def test_build_refuses_a_file_as_out(stores, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    flags = ["--teacher", "hf:x", "--corpus", f"text:{stores['corpus']}/*.txt"]
    result = softlabels_("build", *flags, "--out", tmp_path / "file", exit_code=1)
    assert "is a file, not a folder" in sentence(result)


# -- inspect --------------------------------------------------------------------------------------


def test_inspect(stores):
    text = softlabels_("inspect", stores["topk"]).stdout
    for fact in ("tiny", "topk k=5, T in 1, 2, V=300", "10 rows", "float16", "in 3 shards"):
        assert fact in text


def test_inspect_json(stores):
    found = json.loads(softlabels_("inspect", stores["topk"], "--json").stdout)
    store = softlabels.open_store(stores["topk"])
    assert found["store"] == str(stores["topk"])
    assert (found["rows"], found["shards"]) == (len(store), 3)
    assert found["positions"] == store.manifest.identity.corpus.positions
    assert found["digest"] == store.digest
    assert found["identity"]["targets"]["temperatures"] == [1.0, 2.0]
    assert found["dense_fp16_bytes_per_position"] == 2 * V


def test_inspect_a_row(stores):
    lines = softlabels_("inspect", stores["topk"], "--row", 3).stdout.splitlines()
    assert lines[0] == "row 3: 64 tokens, 63 positions"
    assert lines[1] == "       At T=1. tail: mass of all ids that are not kept."
    head = next(i for i, line in enumerate(lines) if "its p" in line)
    assert len(lines[head + 1 :]) == 63
    assert "\x1b" not in "".join(lines)  # colours are for terminals
    stored = softlabels.open_store(stores["topk"]).row(3)
    p = torch.softmax(TinyTeacher().dense(stored.row).double(), 1)
    for n, line in enumerate(lines[head + 1 :]):
        t, label = stored.targets, int(stored.row.labels[n])
        assert line.count("[") == (t.ids[n] == label).sum()
        words = line.split()
        at = words.index("tail")
        assert float(words[at + 1]) == pytest.approx(float(t.tail(1.0)[n]), abs=6e-4, rel=0.5)
        known = [w for w in words if w.replace(".", "").replace("e-", "").isdigit()]
        assert float(p[n, label]) == pytest.approx(float(known[1]), abs=6e-4, rel=0.5)
        assert float(torch.special.entr(p[n]).sum()) == pytest.approx(float(known[2]), abs=0.05)


def test_inspect_a_row_of_a_sample_speaks_of_a_sample(stores):
    """Not of the likeliest ids with a tail of 0.000, which a sample has not."""
    said = softlabels_("inspect", stores["sampled"], "--row", 3).stdout
    assert "A sample at T=" in said
    assert "drawn by" in said
    assert "tail" not in said
    stored = softlabels.open_store(stores["sampled"]).row(3)
    flags = ["--row", 3, "--position", 9]
    (found,) = json.loads(softlabels_("inspect", stores["sampled"], *flags, "--json").stdout)[
        "positions"
    ]
    assert found["tail"] is None
    p = torch.softmax(TinyTeacher().dense(stored.row).double(), 1)[9]
    assert found["label_p"] == pytest.approx(float(p[stored.row.labels[9]]), rel=1e-2)
    assert found["top"]["id"] == int(p.argmax())
    assert found["entropy"] == pytest.approx(float(torch.special.entr(p).sum()), rel=0.03)
    kept = {k["id"] for k in found["kept"] + found["drawn"]}
    assert kept == set(stored.targets.ids[9][stored.targets.kept[9]].tolist())
    assert len({k["weight"] for k in found["drawn"]}) == 1
    assert all(k["p"] > found["drawn"][0]["weight"] for k in found["kept"])
    full = softlabels_("inspect", stores["sampled"], *flags).stdout
    assert "each standing for" in full
    assert ("the teacher is right" in full) == found["right"]


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_inspect_a_position(stores, temperature):
    flags = [] if temperature is None else ["--temperature", temperature]
    flags += ["--row", 3, "--position", 7]
    found = json.loads(softlabels_("inspect", stores["topk"], *flags, "--json").stdout)
    stored = softlabels.open_store(stores["topk"]).row(3)
    t = temperature or 1.0
    assert (found["row"], found["temperature"]) == (3, t)
    (position,) = found["positions"]
    assert position["position"] == 7
    assert position["token"] == stored.row.positions[7]
    assert position["label"] == stored.row.labels[7]
    assert position["tail"] == pytest.approx(float(stored.targets.tail(t)[7]))
    expected = dict(zip(stored.targets.ids[7].tolist(), stored.targets.probs(t)[7], strict=True))
    assert {k["id"]: k["p"] for k in position["kept"]} == pytest.approx(expected)
    shown = [k["p"] for k in position["kept"]]
    assert shown == sorted(shown, reverse=True)
    assert f"T={t:g}" in softlabels_("inspect", stores["topk"], *flags).stdout


@pytest.mark.parametrize(
    ("flags", "said", "exit_code"),
    [
        (["--row", "10"], "--row 10: {store} has rows 0..9", 2),
        (["--row", "-1"], "--row -1: {store} has rows 0..9", 2),
        (["--row", "0", "--position", "63"], "--position 63: row 0 has positions 0..62", 2),
        (["--row", "0", "--position", "-1"], "--position -1: row 0 has positions 0..62", 2),
        (["--position", "0"], "--position needs --row", 2),
        (["--temperature", "1"], "--temperature needs --row", 2),
        (
            ["--row", "0", "--temperature", "3"],
            "temperature 3 is not in the store's grid (1, 2)",
            1,
        ),
    ],
)
def test_inspect_refuses(stores, flags, said, exit_code):
    result = softlabels_("inspect", stores["topk"], *flags, exit_code=exit_code)
    assert sentence(result).startswith(said.format(store=stores["topk"]))


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_not_a_store(command, stores, tmp_path):
    for path in (tmp_path, tmp_path / "none", stores["corpus"] / "0.txt"):
        said = sentence(softlabels_(command, path, exit_code=1))
        assert said == f"{path}: not a store (no manifest.json); is the path right?"


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_an_unfinished_store(command, stores, tmp_path):
    store = Path(shutil.copytree(stores["topk"], tmp_path / "store"))
    (store / "manifest.json").unlink()
    assert "the build has not finished" in sentence(softlabels_(command, store, exit_code=1))


# -- verify ---------------------------------------------------------------------------------------


def test_verify_a_whole_store(stores):
    for flags in ([], ["--quick"]):
        result = softlabels_("verify", stores["topk"], *flags)
        assert f"{stores['topk']}: whole; " in result.stdout
        assert "10 rows" in result.stdout
    found = json.loads(softlabels_("verify", stores["topk"], "--json").stdout)
    assert found["ok"] is True
    assert found["problems"] == []
    assert found["rows"] == 10


@pytest.mark.parametrize("flags", [[], ["--quick"], ["--json"]])
def test_verify_finds_a_flipped_byte_and_a_stranger(stores, tmp_path, flags):
    store = Path(shutil.copytree(stores["topk"], tmp_path / "store"))
    shard = sorted((store / "data").iterdir())[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (store / "notes.txt").write_text("x", encoding="utf-8")
    result = softlabels_("verify", store, *flags, exit_code=1)
    problems = [x for x in result.stderr.splitlines() if x.startswith("error: ")]
    assert len(problems) == 2
    assert str(shard) in problems[0]
    assert "sha256 is" in problems[0]
    assert f"{store}/notes.txt: no record of the store names it" in problems[1]
    if flags == ["--json"]:
        found = json.loads(result.stdout)
        assert found["ok"] is False
        assert [f"error: {p}" for p in found["problems"]] == problems
    else:
        assert "2 problems" in result.stdout


# -- softtrain ------------------------------------------------------------------------------------


@pytest.fixture
def student(tmp_path):
    """A spec of a student with so many ids."""

    def spec(vocab_size: int = V) -> str:
        config = {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
            "vocab_size": vocab_size,
        }
        path = tmp_path / f"student-{vocab_size}.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        return f"hf-config:{path}"

    return spec


@pytest.fixture
def train(stores, student, tmp_path):
    """`run` with flags that do: two steps on the topk store."""
    pytest.importorskip("transformers")

    def run(*flags, exit_code: int = 0) -> Result:
        base = [] if "--store" in flags else ["--store", stores["topk"]]
        base += ["--student", student(), "--steps", 2, "--batch-size", 2]
        base += ["--dtype", "float32", "--threads", 1, "--out", tmp_path / "run"]
        return softtrain("run", *base, *flags, exit_code=exit_code)

    return run


@pytest.mark.parametrize("missing", ["store", "student"])
def test_run_without_a_flag_it_needs(missing, tmp_path):
    flags = {"store": "s", "student": "hf:x"}
    flags.pop(missing)
    given = [x for k, v in flags.items() for x in (f"--{k}", v)]
    result = softtrain("run", *given, "--out", tmp_path / "run", exit_code=2)
    expected = f"--{missing} is missing (or '{missing}' in the config file)"
    assert sentence(result).startswith(expected)


@pytest.mark.parametrize(
    ("flags", "said", "exit_code"),
    [
        (["--loss", "l2"], "--loss 'l2': known are forward_kl, jsd, reverse_kl", 2),
        (["--alpha", "2"], "--alpha 2.0: expected 0", 2),
        (["--beta1", "2"], "--beta1 2.0: expected", 2),
        (["--accumulate", "3"], "--accumulate 3: must divide --batch-size 2", 2),
        (["--temperature", "3"], "--temperature 3 is not in the store's grid (1, 2)", 1),
        (["--student", "gpt:x"], "trainers.students: nothing is called 'gpt'", 2),
        (["--student", "hf-config:/none.json"], "--student hf-config:/none.json: no such file", 2),
        (["--store", "/none"], "/none: not a store", 1),
        (["--store", "ftp://x"], "ftp://x: ftp:// is not known", 2),
        (["--cache-gib", "-1"], "--cache-gib -1: expected a number of GiB", 2),
        (["--device", "abacus"], "--device 'abacus': not a device", 2),
    ],
)
def test_run_refuses(train, tmp_path, flags, said, exit_code):
    assert sentence(train(*flags, exit_code=exit_code)).startswith(said)
    assert not (tmp_path / "run").exists(), "a refused run leaves nothing behind"


def test_run_refuses_reverse_kl_on_samples(train, stores):
    said = sentence(train("--store", stores["sampled"], "--loss", "reverse_kl", exit_code=1))
    assert said.startswith("--loss reverse_kl does not go with a 'sampled' store: ")
    assert "--loss forward_kl" in said


def test_run_refuses_another_temperature_than_the_samples(train, stores):
    said = sentence(train("--store", stores["sampled"], "--temperature", 2, exit_code=1))
    assert said.startswith("--temperature 2 is not in the store's grid (1)")


def test_run_refuses_another_vocabulary(train, student, tmp_path):
    said = sentence(train("--student", student(V - 1), exit_code=1))
    assert f"vocabulary has {V - 1} ids, the store's {V}; set vocab_size to {V}" in said
    assert not (tmp_path / "run").exists()


def test_run_refuses_a_folder_that_holds_something_else(train, tmp_path, stores):
    said = sentence(train("--out", stores["corpus"], exit_code=1))
    assert said == f"{stores['corpus']}: is not empty and not a run; choose another --out"
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "is a file" in train("--out", tmp_path / "file", exit_code=2).stderr


def test_a_run_from_begin_to_end(train, stores, tmp_path):
    run = tmp_path / "run"
    found = json.loads(train("--json").stdout)
    assert (found["run"], found["student"]) == (str(run), str(run / "student"))
    assert (found["steps"], found["rows"]) == (2, 4)
    assert (run / "student" / "model.safetensors").exists()

    said = sentence(train(exit_code=1))
    assert said.startswith(f"{run}: holds a run already; pass --resume")
    said = sentence(train("--resume", "--alpha", "0.25", exit_code=1))
    assert said.startswith(f"{run}: was begun with alpha = 0.5, this has 0.25")
    assert train("--resume").stdout.startswith(f"student: {run / 'student'}\n")

    evaluation = json.loads(softtrain("eval", run, "--store", stores["topk"], "--json").stdout)
    assert (
        evaluation["positions"]
        == softlabels.open_store(stores["topk"]).manifest.identity.corpus.positions
    )
    assert evaluation["kl"] > 0
    text = softtrain("eval", run, "--store", stores["sampled"]).stdout
    assert "nll  " in text
    assert "kl  " not in text, "samples do not determine it"


def test_run_reads_toml_and_flags_win(train, tmp_path):
    (tmp_path / "c.toml").write_text("alpha = 2\nsteps = 0\n", encoding="utf-8")
    said = sentence(train(tmp_path / "c.toml", exit_code=2))
    assert "c.toml: key 'alpha': --alpha 2.0" in said, "the flag --steps 2 won"


def test_eval_of_what_is_not_a_run(stores, tmp_path):
    said = sentence(softtrain("eval", tmp_path, "--store", stores["topk"], exit_code=1))
    assert said.startswith(f"{tmp_path}: not a run")


def test_student(student, tmp_path):
    pytest.importorskip("transformers")
    out = tmp_path / "made"
    found = json.loads(softtrain("student", student(), "--out", out, "--json").stdout)
    assert found["student"] == str(out)
    assert found["parameters"] > 16 * V
    assert (out / "config.json").exists()
    said = sentence(softtrain("student", student(), "--out", out, exit_code=2))
    assert said == f"--out {out}: is there already; choose another"
    for spec in ("hf:/none", "layers-of:/none", "nothing"):
        result = softtrain("student", spec, "--out", tmp_path / "other", exit_code=2)
        assert sentence(result)
        assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("own", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_threads_wait_briefly_unless_the_user_says_how(own):
    """torch reads it when it is imported, so it must stand before."""
    code = (
        "import os, sys\n"
        "from softlabels.console.terminal import wait_briefly\n"
        "wait_briefly()\n"
        "assert 'torch' not in sys.modules\n"
        "print({k: v for k, v in os.environ.items() if 'OMP_' in k})"
    )
    bare = {k: v for k, v in os.environ.items() if "OMP_" not in k}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=bare | own
    )
    expected = own or {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}
    assert ast.literal_eval(found.stdout) == expected
