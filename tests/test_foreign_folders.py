"""Nothing under a foreign folder changes: every command that has `--out`, or writes a folder, at folders of others.

The list is generated from the two command trees: a command that is not in `INVOCATIONS` fails the first test.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import softlabels.builder.build
import softlabels.builder.states
import softlabels.interchange.importing
import softlabels.kld.candidates
from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.cli.main import main as softlabels_main
from softlabels.core.durable import publish
from softlabels.core.processes import this_process
from softlabels.errors import ConfigError, IntegrityError
from softlabels.store.remote.pull import MARKER, pull
from softlabels.store.verify import verify_store
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.students import llama
from trainers.cli import main as trainers_main
from trainers.run.config import RunConfig
from trainers.run.setup import train

MAINS = {"softlabels": softlabels_main, "softtrain": trainers_main}
PULL = "softlabels pull"
"""Writes a folder that is an argument of it."""


LOOKS = {"softlabels check"}
"""Take a build's `--out`, and write nothing (tests/start/test_check.py)."""


def commands(main: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command of a tree, by its words."""
    if isinstance(main, click.Group):
        context = click.Context(main)
        for child in main.list_commands(context):
            command = main.get_command(context, child)
            assert command is not None
            yield from commands(command, f"{name} {child}")
    else:
        yield name, main


def has_out(command: click.Command) -> bool:
    return any("--out" in p.opts for p in command.params if isinstance(p, click.Option))


WRITERS = sorted(
    name
    for program, main in MAINS.items()
    for name, command in commands(main, program)
    if (has_out(command) or name == PULL) and name not in LOOKS
)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """Two stores, a run, a sampled store's corpus, a file to import."""
    folder = tmp_path_factory.mktemp("ground")
    corpus = write_corpus(folder / "corpus")
    build_tiny(folder / "store", corpus)
    build_tiny(folder / "other", write_corpus(folder / "texts", documents=1, repeat=1))
    (folder / "student.json").write_text(json.dumps(llama()))
    config = RunConfig(
        store=str(folder / "store"),
        student=f"hf-config:{folder / 'student.json'}",
        steps=1,
        batch_size=2,
        dtype="float32",
    )
    train(config, folder / "run")
    ids = np.tile(np.arange(4), (2, 5, 1))
    np.savez(
        folder / "foreign.npz",
        input_ids=np.ones((2, 5), np.int64),
        ids=ids,
        logp=np.full(ids.shape, -2.0, np.float32),
    )
    (folder / "prompts.jsonl").write_text('{"text": "It was"}\n')
    (folder / "corpus-spec").write_text(corpus)
    return folder


INVOCATIONS: dict[str, Callable[[Path], list[str]]] = {
    "softlabels append": lambda g: [
        *("append", f"{g}/store", "--teacher", "hf:x"),
        *("--corpus", f"text:{g}/texts/*.txt"),
    ],
    "softlabels build": lambda g: [
        *("build", "--teacher", "hf:x", "--corpus", (g / "corpus-spec").read_text()),
        *("--seq-len", "48", "--estimator", "topk", "--k", "4"),
    ],
    "softlabels convert": lambda g: ["convert", f"{g}/store", "--profile", "packed"],
    "softlabels demo": lambda _: ["demo"],
    "softlabels export": lambda g: ["export", f"{g}/store", "topk"],
    "softlabels import": lambda g: ["import", "arrays", f"{g}/foreign.npz", "--teacher", "hf:x"],
    "softlabels init": lambda g: [
        *("init", "--teacher", "py:x.y", "--corpus", (g / "corpus-spec").read_text()),
    ],
    "softlabels kld": lambda g: ["kld", "py:x.y", "--store", f"{g}/store", "--bootstrap", "0"],
    "softlabels merge": lambda g: ["merge", f"{g}/store", f"{g}/other"],
    "softlabels reference": lambda g: [
        *("reference", "py:x.y", "--corpus", (g / "corpus-spec").read_text()),
        *("--seq-len", "48", "--k", "4", "--wide-k", "9", "--wide-every", "2"),
    ],
    "softlabels report": lambda g: ["report", f"{g}/store"],
    "softlabels states": lambda g: ["states", f"{g}/store", "--teacher", "hf:x"],
    "softlabels subset": lambda g: ["subset", f"{g}/store", "--first", "2"],
    "softlabels view": lambda g: ["view", f"{g}/store", "--vocab", "trim:280"],
    PULL: lambda _: ["pull", "URL"],
    "softtrain export": lambda g: [
        *("export", f"{g}/run", "--heldout", f"{g}/other", "--format", "safetensors"),
    ],
    "softtrain generate": lambda g: ["generate", f"{g}/run", "--prompts", f"{g}/prompts.jsonl"],
    "softtrain opd": lambda g: ["opd", f"{g}/run", "--prompts", f"{g}/prompts.jsonl"],
    "softtrain report": lambda g: ["report", f"{g}/run", "--store", f"{g}/other"],
    "softtrain watch": lambda g: ["watch", f"{g}/run", "--once"],
    "softtrain run": lambda g: [
        *("run", "--store", f"{g}/store", "--student", f"hf-config:{g}/student.json"),
        *("--steps", "1", "--batch-size", "2", "--resume"),
    ],
    "softtrain sweep": lambda g: [
        *("sweep", "--store", f"{g}/store", "--heldout", f"{g}/other"),
        *("--student", f"hf-config:{g}/student.json", "--steps", "1", "--vary", "seed=0"),
    ],
    "softtrain student": lambda g: ["student", f"hf-config:{g}/student.json"],
}
"""A valid call of each, but for `--out`."""
FILES = {
    "softlabels export": "theirs.parquet",
    "softlabels kld": "theirs.html",
    "softlabels report": "theirs.html",
    "softtrain generate": "theirs.jsonl",
    "softtrain report": "theirs.html",
    "softtrain watch": "theirs.html",
}
"""Their `--out` is a file, of such a name."""

UNTRIED = {"softlabels demo", "softtrain generate", "softtrain opd", "softtrain sweep"}
"""Minutes with the real teacher; a tokenizer that is more than bytes (twice); writes as `run` does, into folders of its
own."""

SHAPES = {
    "a dataset": ["data/train-00000-of-00001.parquet", "README.md"],
    "a data file": ["data/train-00000-of-00001.parquet"],
    "a record": ["commits/00000.json"],
    "a tokenizer": ["tokenizer/tokenizer.json"],
    "a dictionary": ["dictionaries/00000.bin"],
    "a claim": ["claims/00000-0.json"],
    "a card": ["README.md"],
    "a manifest": ["manifest.json"],
    "a student": ["student/model.safetensors", "student/config.json"],
    "a model": ["model.safetensors", "config.json"],
    "a checkpoint": ["checkpoints/step-00000001/state.safetensors", "metrics.jsonl"],
    "a run": ["run.json"],
    "temporary files": [".tmp-x", ".tmp-pull-x", "data/.tmp-x"],
    "a checkout": [".git/HEAD", ".gitignore", "src/main.py"],
    "a file": [""],
}


def plant(out: Path, shape: str) -> None:
    """Make a foreign folder, a day and more old."""
    for name in SHAPES[shape]:
        path = out / name if name else out
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{name}, which nobody else has a copy of\n".encode())
    for path in [out, *out.rglob("*")]:
        os.utime(path, (1_000_000_000, 1_000_000_000))


def snapshot(out: Path) -> dict[str, tuple[bytes, int]]:
    """Path, bytes and time of every file and folder."""
    return {
        path.relative_to(out).as_posix(): (
            path.read_bytes() if path.is_file() else b"",
            path.lstat().st_mtime_ns,
        )
        for path in [out, *out.rglob("*")]
    }


def test_every_command_that_writes_is_tried():
    assert set(INVOCATIONS) == set(WRITERS)


@pytest.fixture(scope="module")
def served(ground):
    """The store at an address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args):
            pass

    handler = functools.partial(Quiet, directory=str(ground / "store"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def _teacher(monkeypatch):
    """The commands' teacher is at hand."""
    for module, name in (
        (softlabels.builder.build, "open_teachers"),
        (softlabels.builder.states, "open_teacher"),
        (softlabels.interchange.importing, "open_teacher"),
        (softlabels.kld.candidates, "open_teacher"),
    ):
        monkeypatch.setattr(module, name, lambda *_args, **_options: TinyTeacher())


def invoke(name: str, ground: Path, out: Path, request):
    program, _ = name.split(" ")
    if name == PULL:
        arguments = ["pull", request.getfixturevalue("served"), str(out)]
    else:
        arguments = [*INVOCATIONS[name](ground), "--out", str(out)]
    return CliRunner().invoke(MAINS[program], arguments)


@pytest.mark.parametrize("name", sorted({*WRITERS} - UNTRIED))
@pytest.mark.usefixtures("_teacher")
def test_each_call_is_a_valid_one(ground, tmp_path, name, request):
    """Otherwise the next test would show nothing."""
    out = tmp_path / FILES.get(name, "theirs")
    result = invoke(name, ground, out, request)
    assert result.exit_code == 0, result.output
    assert out.exists()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.usefixtures("_teacher")
def test_nothing_under_a_foreign_folder_changes(ground, tmp_path, name, shape, request):
    out = tmp_path / FILES.get(name, "theirs")
    plant(out, shape)
    before, around = snapshot(out), sorted(tmp_path.iterdir())
    result = invoke(name, ground, out, request)
    assert snapshot(out) == before
    assert sorted(tmp_path.iterdir()) == around
    assert result.exit_code != 0, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert str(out) in result.stderr


# -- a cache in a foreign folder ------------------------------------------------------------------

CACHING = {
    "softlabels inspect": lambda url: ["inspect", url, "--row", "0"],
    "softtrain run": lambda url: ["run", "--store", url, "--steps", "1", "--batch-size", "2"],
}
"""A command that has the folder from `SOFTLABELS_CACHE`, and one that is given `--cache`."""


def plant_old(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.utime(path, (1_000_000_000, 1_000_000_000))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("command", CACHING)
def test_a_cache_leaves_a_foreign_folder_as_it_is(
    ground, served, tmp_path, monkeypatch, command, shape
):
    out = tmp_path / "theirs"
    plant(out, shape)
    if folder := out.is_dir():
        plant_old(out / "weights.bin", b"w" * 100_000)  # more than the cache may hold
    before = snapshot(out)
    result = invoke_caching(command, ground, served, tmp_path, monkeypatch)
    assert (result.exit_code == 0) is folder, result.output
    after = snapshot(out)
    if folder:
        del before["."]  # its time tells of the files that the cache has made in it
        assert "lock" in after.keys() - before.keys()
    assert before.items() <= after.items()


@pytest.mark.parametrize("command", CACHING)
def test_a_cache_is_not_begun_among_files_that_are_called_like_its_own(
    ground, served, tmp_path, monkeypatch, command
):
    out = tmp_path / "theirs"
    out.mkdir()
    for data in (b"0" * 100_000, b"1" * 100_000):
        plant_old(out / hashlib.sha256(data).hexdigest(), data)
    before = snapshot(out)
    result = invoke_caching(command, ground, served, tmp_path, monkeypatch)
    assert result.exit_code != 0
    assert "no `lock`, so it may be another program's" in result.output
    assert snapshot(out) == before


def invoke_caching(command: str, ground: Path, url: str, folder: Path, monkeypatch):
    program = command.split()[0]
    arguments = CACHING[command](url)
    gib = 50_000 / 2**30
    if program == "softtrain":
        arguments += ["--student", f"hf-config:{ground}/student.json", "--out", f"{folder}/run"]
        arguments += ["--cache", f"{folder}/theirs", "--cache-gib", f"{gib:.9f}"]
    else:
        monkeypatch.setenv("SOFTLABELS_CACHE", f"{folder}/theirs")
        monkeypatch.setenv("SOFTLABELS_CACHE_GIB", f"{gib:.9f}")
    return CliRunner().invoke(MAINS[program], arguments)


# -- a store and the files that it is made from ---------------------------------------------------


def config(corpus: str) -> BuildConfig:
    return BuildConfig(teacher="hf:x", corpus=(corpus,), estimator="topk", k=4, seq_len=48)


def test_a_store_is_not_built_over_the_dataset_that_it_is_made_from(tmp_path):
    out = tmp_path / "dataset"
    (out / "data").mkdir(parents=True)
    file = out / "data" / "train-00000-of-00001.parquet"
    pq.write_table(pa.table({"text": ["It was the best of times"]}), file)
    before = snapshot(out)
    with pytest.raises(ConfigError, match="holds a file of --corpus"):
        build(config(f"parquet:{out}/data/*.parquet"), out, teacher=TinyTeacher())
    assert snapshot(out) == before


@pytest.mark.parametrize(
    ("pattern", "refused"),
    [
        ("**/*", True),
        ("**/*.txt", True),
        ("*/tokenizer/*", True),
        ("*.txt", False),
        ("*/*.txt", False),
    ],
)
def test_a_corpus_that_would_take_in_the_stores_own_files_is_refused(tmp_path, pattern, refused):
    for name in ("a.txt", "text/0.txt", "text/tokenizer/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"It was the best of times, said {name}. " * 9)
    job, out = config(f"text:{tmp_path}/{pattern}"), tmp_path / "store"
    if refused:
        with pytest.raises(ConfigError, match="would take in the store's own"):
            build(job, out, teacher=TinyTeacher())
        assert not out.exists()
    else:
        build(job, out, teacher=TinyTeacher())


# -- what a builder of ours left before its plan --------------------------------------------------


def test_a_build_that_died_before_its_plan_goes_on(tmp_path):
    corpus, out = write_corpus(tmp_path / "corpus"), tmp_path / "out"
    publish(out / "tokenizer" / "tokenizer.json", TinyTeacher().tokenizer.files()["tokenizer.json"])
    dead = dataclasses.replace(this_process(), started="1")
    left = out / "tokenizer" / f".tmp-{dead}-0a1b2c3d-vocab.json"
    left.write_bytes(b"half")
    (out / "data").mkdir()
    build(config(corpus), out, teacher=TinyTeacher())
    assert not left.exists()
    assert verify_store(out).problems == []


def test_a_pull_that_died_goes_on_and_takes_over_only_what_it_brought(ground, served, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    pull(served, whole)
    assert not list(whole.glob(".tmp-*"))
    manifest = (whole / "manifest.json").read_bytes()
    shard = next((whole / "data").iterdir()).relative_to(whole)
    for name, data in ((MARKER, manifest), (str(shard), b"torn")):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    pull(served, out)
    assert verify_store(out).problems == []
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / shard).parent.mkdir()
    (tmp_path / "bare" / shard).write_bytes(b"torn")  # by whom, nothing says
    with pytest.raises(IntegrityError, match="is not of the store that is pulled"):
        pull(served, tmp_path / "bare")


@pytest.mark.parametrize("name", sorted(INVOCATIONS))
def test_nothing_is_written_into_a_store(ground, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    store = Path(shutil.copytree(ground / "store", tmp_path / "store"))
    (store / "plan.json").unlink()  # as in one that was pulled
    (tmp_path / "link").symlink_to(store)
    before = snapshot(store)
    arguments = INVOCATIONS[name](ground)
    for out in ("store/data/new", "link/new.jsonl"):
        place = [out] if name == PULL else ["--out", out]
        done = CliRunner().invoke(MAINS[name.split()[0]], [*arguments, *place])
        assert done.exit_code == 2, done.output
        assert f"{out}: lies in the store {store}; choose a place outside of it" in done.output
    assert snapshot(store) == before
