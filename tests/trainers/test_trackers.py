"""Trackers: one protocol, each library through it, and a run that goes on whatever they do."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from softlabels.errors import ConfigError, MissingExtraError
from trainers.run.config import RunConfig
from trainers.run.metrics import Metrics, read_metrics
from trainers.testing import check_tracker
from trainers.trackers import TRACKERS, Tracked, check_track, open_trackers

FACTS = {"config": {"lr": 0.5}, "store_digest": "0" * 64}


class Listing:
    """Keeps what it is given, and fails when it is told to."""

    made: list[Listing]

    def __init__(self, tracked: Tracked, *, fails: str = "", begins: bool = True) -> None:
        if not begins:
            raise RuntimeError("no project\nhas that name")
        self.tracked, self.fails = tracked, fails
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.calls: list[str] = []
        Listing.made.append(self)

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.fails == name:
            raise RuntimeError("the server said no")
        if self.fails == f"disk {name}":
            raise OSError(28, "No space left on device")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._call("log")
        self.logged.append((step, dict(values)))

    def flush(self) -> None:
        self._call("flush")

    def close(self) -> None:
        self._call("close")


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch):
    Listing.made = []
    monkeypatch.setitem(TRACKERS.builtin, "listing", f"{__name__}:Listing")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    return Listing


def logged(run: Path, *track: str) -> tuple[Listing, list[str]]:
    """The tracker of two steps, and what was said of it."""
    said: list[str] = []
    metrics = Metrics(run, track, said.append)
    metrics.open(0)
    try:
        metrics.write(1, {"loss": 2.0})
        metrics.flush()
        metrics.write(2, {"loss": math.nan})
    finally:
        metrics.close()
    assert [r["step"] for r in read_metrics(run)] == [1, 2]
    return Listing.made[-1], said


def test_a_tracker_gets_what_is_logged_and_knows_its_run(listing, tmp_path):
    record = {"config": {"store": "s", "steps": 2, "batch_size": 2}, "store_digest": "d"}
    record |= {"tokenizer_sha256": "t", "dtype": "float32", "parameters": 1}
    (tmp_path / "run.json").write_text(json.dumps(record))
    found, said = logged(tmp_path, "listing")
    assert said == []
    assert found.calls == ["log", "flush", "log", "close"]
    assert found.logged[0] == (1, {"loss": 2.0})
    assert math.isnan(found.logged[1][1]["loss"])
    assert found.tracked.settings == record["config"] | {"store_digest": "d"}
    assert found.tracked.name == tmp_path.name


@pytest.mark.parametrize("call", ["log", "flush", "close"])
def test_a_library_that_fails_is_left_out_and_that_is_said_once(listing, tmp_path, call):
    found, said = logged(tmp_path, f"listing?fails={call}")
    assert len(said) == 1
    assert "failed (RuntimeError: the server said no), and gets nothing from now on" in said[0]
    assert found.calls.count(call) == 1


def test_a_full_disk_ends_the_run_as_everywhere(listing, tmp_path):
    with pytest.raises(Exception, match="the disk is full"):
        logged(tmp_path, "listing?fails=disk log")


def test_one_that_cannot_begin_is_refused_in_a_sentence(listing, tmp_path):
    with pytest.raises(ConfigError, match=r"--track listing\?begins=false: cannot begin"):
        logged(tmp_path, "listing?begins=false")
    with pytest.raises(ConfigError, match="has no parameter 'colour'"):
        logged(tmp_path, "listing?colour=red")


@pytest.mark.parametrize(
    ("track", "said"),
    [
        (("tensorbord",), "--track tensorbord: expected one of mlflow, tensorboard"),
        (("none", "wandb"), "none alone"),
        (("wandb", "wandb?project=x"), "each goes once"),
    ],
)
def test_what_is_no_tracker_is_refused_before_anything_is_done(track, said):
    with pytest.raises(ConfigError, match=said):
        RunConfig(store="s", student="new:1M", track=track)
    check_track(["tensorboard", "mlflow?experiment=x"])


def test_none_is_none_and_the_default_is_tensorboard_where_it_is(tmp_path):
    tracked = Tracked(run=tmp_path, step=0, facts=FACTS)
    assert open_trackers(["none"], tracked, print) == []
    (board,) = open_trackers([], tracked, print)
    board.close()
    assert (tmp_path / "tensorboard").is_dir()


@pytest.mark.parametrize(
    ("name", "module"),
    [("wandb", "wandb"), ("trackio", "trackio"), ("mlflow", "mlflow.tracking")],
)
def test_a_library_that_is_not_installed_names_its_extra(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"--track {name} needs {name}"):
        open_trackers([name], Tracked(run=tmp_path, step=0, facts=FACTS), print)


def test_without_tensorboard_the_default_is_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    tracked = Tracked(run=tmp_path, step=0, facts=FACTS)
    assert open_trackers([], tracked, print) == []
    with pytest.raises(MissingExtraError, match="needs tensorboard"):
        open_trackers(["tensorboard"], tracked, print)


def test_a_run_that_is_resumed_is_the_same_and_another_is_not(tmp_path):
    one, again = (Tracked(run=tmp_path / "a", step=s, facts=FACTS) for s in (0, 7))
    other = Tracked(run=tmp_path / "b", step=0, facts=FACTS)
    assert one.id == again.id != other.id


# -- the libraries themselves, where they are installed; none asks a network ------------------------


def test_tensorboard_keeps_the_contract(tmp_path):
    check_tracker("tensorboard", tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_the_contract(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_tracker("wandb?project=tests", tmp_path)
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) >= 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_the_contract(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    run = tmp_path / "run"
    run.mkdir()
    check_tracker("mlflow?experiment=tests", run)
    client = MlflowClient()
    number = client.get_experiment_by_name("tests").experiment_id
    (found,) = client.search_runs([number])
    assert found.info.run_name == "run"
    assert found.data.params["lr"] == "0.1"
    steps = [m.step for m in client.get_metric_history(found.info.run_id, "loss")]
    assert sorted(set(steps)) == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trackio_keeps_the_contract(tmp_path, monkeypatch):
    """In a process of its own: it reads its folder when it is imported."""
    import os
    import subprocess

    pytest.importorskip("trackio")
    code = "import sys; from pathlib import Path; from trainers.testing import check_tracker\n"
    code += "check_tracker('trackio?project=tests', Path(sys.argv[1]))"
    env = os.environ | {"TRACKIO_DIR": str(tmp_path / "kept"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kept" / "tests.db").stat().st_size > 0
