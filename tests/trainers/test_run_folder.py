"""A run has the store's discipline: what it leaves is whole, proven, finite, and nobody else's files go."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from softlabels.core.folder_lock import LOCK, FolderLock
from softlabels.core.folder_record import RECORD, check_folder
from softlabels.core.processes import this_process
from softlabels.core.records import canonical, seal
from softlabels.errors import IntegrityError, RunError, StoreError, TokenizerError
from softlabels.format.manifest import FileRecord, load_manifest
from softlabels.store.reader import open_store
from tests.fakes import Notices, TinyTeacher, build_tiny, write_corpus
from tests.students import llama
from trainers.run import saved
from trainers.run.checkpoint import newest_intact
from trainers.run.config import RunConfig
from trainers.run.ema import Ema
from trainers.run.finished import open_finished
from trainers.run.folder import read_run
from trainers.run.metrics import Metrics, curves_of, read_metrics
from trainers.run.setup import train
from trainers.run.step import Optimisation
from trainers.students import make_student

STUDENT = llama()


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run-folder")
    build_tiny(folder / "store", write_corpus(folder / "corpus"))
    build_tiny(folder / "heldout", write_corpus(folder / "other", documents=1, repeat=1))
    (folder / "student.json").write_text(json.dumps(STUDENT))
    return folder


def config_of(ground: Path, **changes) -> RunConfig:
    values = {
        "store": str(ground / "store"),
        "student": f"hf-config:{ground / 'student.json'}",
        "steps": 4,
        "batch_size": 2,
        "lr": 1e-2,
        "log_every": 1,
        "checkpoint_every": 2,
        "dtype": "float32",
        "threads": 1,
        "ema": 0.9,
    }
    return RunConfig(**(values | changes))


@pytest.fixture(scope="module")
def trained(ground):
    train(config_of(ground), ground / "run")
    return ground / "run"


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def flip(path: Path, at: int = -3) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


# -- digests --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", RECORD]
)
def test_a_flipped_bit_in_a_checkpoint_is_found_and_the_one_before_is_taken(run, name):
    flip(checkpoint(run, 4) / name)
    notices = []
    assert newest_intact(run, notices.append) == checkpoint(run, 2)
    (said,) = notices
    assert "passed over a damaged checkpoint, for step-00000002" in said
    assert str(checkpoint(run, 4)) in said
    flip(checkpoint(run, 2) / name)
    with pytest.raises(RunError, match=r"none of its 2 checkpoints is intact .*begin again"):
        newest_intact(run, notices.append)


def test_a_run_goes_on_from_the_checkpoint_before_to_the_same_student(ground, run):
    whole = contents(run / "student")
    flip(checkpoint(run, 4) / "model.safetensors")
    shutil.rmtree(run / "student")
    told = Notices()
    train(config_of(ground), run, resume=True, reporter=told)
    assert contents(run / "student") == whole
    check_folder(checkpoint(run, 4))
    assert any("passed over a damaged checkpoint" in line for line in told.lines)
    assert (checkpoint(run, 4).with_name("step-00000004.kept-1") / "model.safetensors").exists()
    assert [json.loads(x)["step"] for x in (run / "metrics.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
    ]


def test_a_checkpoint_without_a_record_still_loads_and_is_said(ground, run):
    for step in (2, 4):
        (checkpoint(run, step) / RECORD).unlink()
    notices = []
    assert newest_intact(run, notices.append) == checkpoint(run, 4)
    assert "made by an earlier version, without digests" in notices[0]
    (checkpoint(run, 4) / "optimizer.safetensors").write_bytes(b"torn")
    assert newest_intact(run, [].append) == checkpoint(run, 2)


def test_only_exact_names_are_checkpoints(run):
    folder = run / "checkpoints"
    for name in ("step-00000009.bad", "step-00000001-keep", "step-1", "step-000000001", "notes"):
        shutil.copytree(checkpoint(run, 2), folder / name)
    assert newest_intact(run, [].append) == checkpoint(run, 4)
    shutil.copytree(checkpoint(run, 2), checkpoint(run, 9))
    notices = []
    assert newest_intact(run, notices.append) == checkpoint(run, 4)
    assert "holds the state after step 2; it was renamed" in notices[0]


def test_only_proven_checkpoints_are_pruned(ground, run):
    folder = run / "checkpoints"
    shutil.copytree(checkpoint(run, 2), folder / "step-00000001-keep")
    shutil.copytree(checkpoint(run, 2), folder / "step-00000002.bad")
    (checkpoint(run, 2) / "notes.txt").write_text("mine")
    shutil.rmtree(checkpoint(run, 4))
    shutil.rmtree(run / "student")
    before = contents(checkpoint(run, 2))
    told = Notices()
    train(config_of(ground, keep_last=1), run, resume=True, reporter=told)
    assert sorted(p.name for p in folder.iterdir()) == [
        "step-00000001-keep",
        "step-00000002.bad",
        "step-00000002.kept-1",
        "step-00000004",
    ]
    assert contents(folder / "step-00000002.kept-1") == before
    assert any("step-00000002.kept-1" in line for line in told.lines)


def test_what_is_written_is_read_back_before_older_checkpoints_go(ground, run, monkeypatch):
    shutil.rmtree(checkpoint(run, 4))
    from trainers.run import checkpoint as module

    def lying(tensors, path):
        save_file(tensors, path)
        flip(path)

    save_file = module.save_file
    monkeypatch.setattr(module, "save_file", lying)
    with pytest.raises(IntegrityError, match=r"what was read back of .* is not what was written"):
        train(config_of(ground, keep_last=1), run, resume=True)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000002"]


# -- NaN ------------------------------------------------------------------------------------------


def poison(monkeypatch, step, where, value=float("nan")):
    """NaN in a gradient of one step, or in what the step leaves."""
    compute, optimise, update = Optimisation._gradients, torch.optim.AdamW.step, Ema.update
    taken = 0

    def gradients(self, loss, batch, at, lr):
        nonlocal taken
        out = compute(self, loss, batch, at, lr)
        taken = at + 1
        if where == "gradient" and taken == step:
            next(self._tree._parameters.__iter__()).grad[0, 0] = value
        return out

    def optimiser(self, *args, **options):
        out = optimise(self, *args, **options)
        if taken == step and where in ("weight", "moment"):
            p = self.param_groups[0]["params"][0]
            with torch.no_grad():
                (p if where == "weight" else self.state[p]["exp_avg_sq"])[0, 0] = value
        return out

    def average(self, at):
        update(self, at)
        if where == "average" and at == step:
            next(iter(self.weights.values()))[0, 0] = value

    monkeypatch.setattr(Optimisation, "_gradients", gradients)
    monkeypatch.setattr(torch.optim.AdamW, "step", optimiser)
    monkeypatch.setattr(Ema, "update", average)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["gradient", "weight", "moment", "average"])
def test_what_is_not_finite_reaches_no_checkpoint(ground, tmp_path, monkeypatch, where, value):
    poison(monkeypatch, 3, where, value)
    with pytest.raises(RunError) as caught:
        train(config_of(ground, keep_last=1, checkpoint_every=1), tmp_path / "run")
    said = str(caught.value)
    assert "step 3: " in said
    assert "at a learning rate of 0.00" in said
    assert "begin again in another --out with a lower --lr" in said
    run = tmp_path / "run"
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000002"]
    assert newest_intact(run, [].append) == checkpoint(run, 2)
    assert not (run / "student").exists()


@pytest.mark.parametrize("where", ["weight", "average"])
def test_what_is_not_finite_becomes_no_best_student(ground, tmp_path, monkeypatch, where):
    poison(monkeypatch, 3, where)
    config = config_of(ground, heldout=str(ground / "heldout"), eval_every=1, checkpoint_every=10)
    with pytest.raises(RunError, match=r"step 3: .*"):
        train(config, tmp_path / "run")
    best = load_file(tmp_path / "run" / "best" / "model.safetensors")
    assert all(torch.isfinite(t).all() for t in best.values())
    assert check_folder(tmp_path / "run" / "best").step in (1, 2)


# -- metrics --------------------------------------------------------------------------------------


def test_cutting_the_metrics_loses_nothing_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    lines = "".join(f'{{"step": {i}, "loss": 1.5}}\n' for i in range(1, 13))
    path.write_text(lines)

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr("os.fsync", full)
        with pytest.raises(StoreError, match="the disk is full"):
            Metrics(tmp_path).open(8)
    assert path.read_text() == lines
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
    metrics = Metrics(tmp_path)
    metrics.open(8)
    metrics.write(9, {"loss": 2.0})
    metrics.close()
    assert [json.loads(x)["step"] for x in path.read_text().splitlines()] == list(range(1, 10))


def test_metrics_are_json_whatever_the_numbers_are(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    metrics = Metrics(tmp_path)
    metrics.open(2)
    metrics.write(3, {"loss": float("nan"), "grad_norm": float("inf"), "lr": 0.5})
    metrics.close()

    def strict(word):
        raise AssertionError(word)

    records = [json.loads(x, parse_constant=strict) for x in path.read_text().splitlines()]
    assert records[0] == {"step": 1, "loss": None}
    assert records[2].pop("elapsed") >= 0
    assert records[2] == {"step": 3, "loss": None, "grad_norm": None, "lr": 0.5}
    curves = curves_of(tmp_path)
    assert curves["loss"] == [(2.0, 1.0)]
    assert curves["lr"] == [(3.0, 0.5)]


def test_the_time_of_a_run_goes_on_from_the_line_that_it_goes_on_from(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "elapsed": 100.5}\n{"step": 2, "elapsed": 900.0}\n'
    )
    metrics = Metrics(tmp_path)
    metrics.open(1)
    metrics.write(2, {"loss": 1.0})
    metrics.close()
    assert 100.5 <= read_metrics(tmp_path)[-1]["elapsed"] < 160


def test_a_line_of_metrics_that_is_none_stops_the_run_instead_of_cutting(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nhello\n{"step": 2}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl:2: not a line of metrics"):
        Metrics(tmp_path).open(2)
    assert path.read_text().count("\n") == 3


# -- the folder -----------------------------------------------------------------------------------


def test_a_run_that_was_killed_before_its_record_begins_again(ground, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert read_run(run, resume=False) is None
    (run / LOCK).write_text(f"{this_process()}\n")
    (run / ".tmp-host-abc.1.2.3-0123abcd-run.json").write_text("{")
    (run / ".tmp-run.json").write_text("{")
    assert read_run(run, resume=False) is None
    (run / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty and not a run"):
        read_run(run, resume=False)
    (run / "notes.txt").unlink()
    folder = train(config_of(ground, steps=1, ema=None), run)
    assert (folder / "config.json").is_file()


def test_two_runs_in_one_folder_refuse_and_readers_go_on(ground, run):
    before = contents(run)
    with FolderLock(run, [].append) as lock:
        lock.acquire()
        with pytest.raises(RunError, match="another run is writing there"):
            train(config_of(ground), run, resume=True)
        assert open_finished(run).folder == run / "student"
    after = contents(run)
    assert after.pop(LOCK) == b""
    before.pop(LOCK)
    assert after == before


def test_a_finished_run_resumes_to_nothing_and_what_lies_in_student_stays(ground, run):
    (run / "student" / "notes.txt").write_text("mine")
    (run / "student" / "README.md").write_text("my card")
    flip(run / "student" / "config.json", 3)
    before = contents(run)
    told = Notices()
    assert train(config_of(ground), run, resume=True, reporter=told) == run / "student"
    assert contents(run) == before | {LOCK: (run / LOCK).read_bytes()}
    assert any("has finished, after step 4; nothing is left to do" in x for x in told.lines)


def test_a_student_that_is_not_as_it_was_published_is_refused(run):
    flip(run / "student" / "model.safetensors")
    with pytest.raises(RunError, match="If you changed the student on purpose"):
        open_finished(run)
    (run / "student" / RECORD).unlink()  # what the user vouches for
    assert open_finished(run).folder == run / "student"
    assert open_finished(run, "ema").folder == run / "student-ema"


def test_a_finished_run_of_an_earlier_version_resumes_to_nothing(ground, run):
    for name in ("student", "student-ema"):
        (run / name / RECORD).unlink()
    (run / "student" / "notes.txt").write_text("mine")
    before = contents(run / "student")
    train(config_of(ground), run, resume=True)
    assert contents(run / "student") == before


def test_a_student_that_was_not_published_is_and_another_in_its_place_is_kept(ground, run):
    whole = contents(run / "student")
    weights = load_file(run / "student" / "model.safetensors")
    (run / "student" / RECORD).unlink()
    flip(run / "student" / "model.safetensors")
    told = Notices()
    train(config_of(ground), run, resume=True, reporter=told)
    assert contents(run / "student") == whole
    assert any("student.kept-1" in line for line in told.lines)
    assert (run / "student.kept-1" / "model.safetensors").exists()
    assert weights.keys() == load_file(run / "student" / "model.safetensors").keys()


# -- what is published ----------------------------------------------------------------------------


def with_tokenizer_files(store: Path, files: dict[str, bytes]) -> None:
    """As a hostile maker would: files among the tokenizer's, in a manifest that vouches for them."""
    import hashlib

    records = {}
    for name, data in files.items():
        path = store / "tokenizer" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        records[f"tokenizer/{name}"] = FileRecord(
            sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)
        )
    manifest = load_manifest(store)
    amended = seal(msgspec.structs.replace(manifest, files=manifest.files | records))
    (store / "manifest.json").write_bytes(canonical(amended))


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "evil.py",
        "pytorch_model.bin",
        "model.safetensors.index.json",
        "additional_chat_templates/evil.py",
        "inner/tokenizer.json",
        RECORD,
    ],
)
def test_a_store_cannot_put_its_own_files_into_a_student(ground, tmp_path, name):
    shutil.copytree(ground / "store", tmp_path / "store")
    with_tokenizer_files(tmp_path / "store", {name: b"{}"})
    open_store(tmp_path / "store")
    with pytest.raises(TokenizerError, match=rf"holds '{name}' among the tokenizer's files"):
        train(config_of(ground, store=str(tmp_path / "store")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nested_chat_templates_are_taken_and_programs_are_not(ground, tmp_path):
    shutil.copytree(ground / "store", tmp_path / "store")
    settings = {"model_max_length": 9, "auto_map": {"AutoTokenizer": ["evil.T", None]}}
    with_tokenizer_files(
        tmp_path / "store",
        {
            "additional_chat_templates/tools.jinja": b"{{ messages }}",
            "tokenizer_config.json": json.dumps(settings).encode(),
        },
    )
    told = Notices()
    config = config_of(ground, store=str(tmp_path / "store"), steps=1, ema=None)
    folder = train(config, tmp_path / "run", reporter=told)
    assert (folder / "additional_chat_templates" / "tools.jinja").read_bytes() == b"{{ messages }}"
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {"model_max_length": 9}
    assert any("(auto_map); they are left out" in line for line in told.lines)
    assert "additional_chat_templates/tools.jinja" in check_folder(folder).files


def test_a_tokenizer_config_that_is_no_json_is_refused_before_training(ground, tmp_path):
    shutil.copytree(ground / "store", tmp_path / "store")
    with_tokenizer_files(tmp_path / "store", {"tokenizer_config.json": b"[1]"})
    with pytest.raises(TokenizerError, match="not a JSON object"):
        train(config_of(ground, store=str(tmp_path / "store")), tmp_path / "run")


def test_a_builder_puts_no_such_file_into_a_store(tmp_path):
    class Hostile(TinyTeacher):
        def __init__(self):
            super().__init__()
            self.tokenizer.files = lambda: {"tokenizer.json": b"{}", "evil.py": b"import os"}

    with pytest.raises(TokenizerError, match=r"the teacher's tokenizer: holds 'evil.py'"):
        build_tiny(tmp_path / "store", write_corpus(tmp_path / "corpus"), teacher=Hostile())


def test_the_published_student_is_the_one_in_memory(ground, tmp_path, monkeypatch):
    from trainers.students import Student

    save = Student.save

    def lying(self, folder, weights=None):
        save(self, folder, weights)
        flip(folder / "model.safetensors")

    monkeypatch.setattr(Student, "save", lying)
    with pytest.raises(IntegrityError, match="is not the one in memory; nothing was published"):
        train(config_of(ground, steps=1, ema=None), tmp_path / "run")
    assert not (tmp_path / "run" / "student").exists()
    assert newest_intact(tmp_path / "run", [].append) == checkpoint(tmp_path / "run", 1)


def test_a_student_saved_under_other_names_is_loaded_back(ground, tmp_path):
    from safetensors.torch import save_file

    from trainers.data.tasks import CAUSAL

    student = make_student(f"hf-config:{ground / 'student.json'}", seed=0)
    student.save(tmp_path)
    path = tmp_path / "model.safetensors"
    assert saved.holds_student(tmp_path, student, CAUSAL, None)
    tensors = load_file(path)
    assert "lm_head.weight" not in tensors  # tied
    first = next(iter(tensors))
    save_file({**tensors, "strange": torch.zeros(1)}, path, {"format": "pt"})
    assert saved.holds_student(tmp_path, student, CAUSAL, None)  # loads, and is the same
    del tensors[first]
    save_file(tensors, path, {"format": "pt"})
    assert not saved.holds_student(tmp_path, student, CAUSAL, None)
