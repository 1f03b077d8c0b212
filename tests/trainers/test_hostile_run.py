"""A run's folder that came from somebody else: nothing outside it changes, nothing is read without end."""

import json
import os
import shutil

import pytest

from softlabels.core.folder_lock import LOCK, FolderLock
from softlabels.core.folder_record import RECORD, check_folder
from softlabels.core.records import canonical, digest_of
from softlabels.errors import RunError, SoftLabelsError, StoreError
from tests.fakes import build_tiny, write_corpus
from tests.trainers.test_run_folder import STUDENT, config_of
from trainers.evaluation.evaluations import find_assessments, weights_digest
from trainers.run.finished import open_finished
from trainers.run.folder import read_run
from trainers.run.metrics import Metrics, curves_of
from trainers.run.setup import train
from trainers.run.summary import summary_of


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_lock_that_is_another_file_is_left_as_it_is(tmp_path, link):
    precious = tmp_path / "precious"
    precious.write_text("mine\n")
    run = tmp_path / "run"
    run.mkdir()
    getattr(run / LOCK, link)(precious)
    with pytest.raises(RunError, match="is not a lock of ours"):
        FolderLock(run, [].append).acquire()
    assert precious.read_text() == "mine\n"


def test_a_pipe_or_a_folder_in_the_place_of_a_lock_is_refused(tmp_path):
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(SoftLabelsError, match="is not a lock of ours"):
        FolderLock(tmp_path, [].append).acquire()
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).mkdir()
    with pytest.raises(RunError, match="is not a lock of ours"):
        FolderLock(tmp_path, [].append).acquire()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile-run")
    build_tiny(folder / "store", write_corpus(folder / "corpus"))
    (folder / "student.json").write_text(json.dumps(STUDENT))
    train(config_of(folder), folder / "run")
    return folder


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def check_empty(run):
    """A record that says of a file that it is empty, as the system does of pipes and devices."""
    folder = run / "checkpoints" / "step-00000004"
    record = json.loads((folder / RECORD).read_text())
    record["files"]["model.safetensors"]["bytes"] = 0
    record["digest"] = digest_of(record)
    (folder / RECORD).write_bytes(canonical(record))
    check_folder(folder)


def endless(path, kind):
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("run.json", open_finished),
        ("run.json", lambda run: read_run(run, resume=True)),
        ("student/model.safetensors", open_finished),
        ("student/tokenizer.json", open_finished),
        ("metrics.jsonl", lambda run: Metrics(run).open(4)),
        ("metrics.jsonl", curves_of),
        ("metrics.jsonl", summary_of),
        ("evaluations/student-0123456789ab.json", find_assessments),
        ("student/model.safetensors", lambda run: weights_digest(run / "student")),
        ("checkpoints/step-00000004/model.safetensors", check_empty),
    ],
)
def test_what_has_no_end_is_not_read(run, kind, name, read):
    (run / name).parent.mkdir(exist_ok=True)
    endless(run / name, kind)
    with pytest.raises((RunError, StoreError), match="not a regular file"):
        read(run)


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
@pytest.mark.parametrize("content", [b"", b'{"step": 1}\n'])
def test_metrics_go_into_no_file_outside_the_run(run, tmp_path, link, content):
    outside = tmp_path / "outside"
    outside.write_bytes(content)
    (run / "metrics.jsonl").unlink()
    getattr(run / "metrics.jsonl", link)(outside)
    metrics = Metrics(run)
    metrics.open(4)
    metrics.write(5, {"loss": 1.0})
    metrics.close()
    assert outside.read_bytes() == content
    written = (run / "metrics.jsonl").read_bytes()
    assert written.startswith(content + b'{"step": 5, "loss": 1.0, "elapsed": ')
    assert written.count(b"\n") == content.count(b"\n") + 1


RECORDED = [
    ("config", None),
    ("config", []),
    ("view", "x"),
    ("length", [1]),
    ("trust", "x"),
    ("init", "x"),
    ("store_digest", 1),
    ("dtype", None),
]


@pytest.mark.parametrize(("field", "value"), RECORDED)
def test_a_record_of_a_run_that_says_anything_is_a_sentence(trained, run, field, value):
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, field: value}))
    with pytest.raises(RunError, match="not the record of a run"):
        open_finished(run)
    with pytest.raises(RunError, match="not the record of a run"):
        train(config_of(trained), run, resume=True)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "1", '{"config": 1}', "{"])
def test_json_that_is_no_record_is_a_sentence(run, text):
    (run / "run.json").write_text(text)
    with pytest.raises(RunError, match="not the record of a run"):
        open_finished(run)
