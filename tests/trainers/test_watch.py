"""The live page: what it says of a run at work, from files that are being written; and that it ends with the run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from softlabels.core.folder_lock import LOCK, FolderLock
from softlabels.core.processes import this_process
from softlabels.errors import RunError
from tests.pages import HOSTILE, check_page
from trainers.cli import main
from trainers.report.watch_page import render
from trainers.report.watching import State, Watch

RECORD = {
    "config": {"store": "s", "student": "new:1M", "steps": 100, "batch_size": 2, "alpha": 0.5},
    "store_digest": "0" * 64,
    "tokenizer_sha256": "0" * 64,
    "dtype": "float32",
    "parameters": 100,
}


def write_run(folder: Path, *, steps: int = 4, process: object = None, **config: object) -> Path:
    """A run that has taken some steps of 2 s each."""
    folder.mkdir()
    record = RECORD | {"config": RECORD["config"] | config}
    (folder / "run.json").write_text(json.dumps(record))
    lines = [
        {"step": i * 5, "loss": 9.0 - i, "seconds": 1.5, "elapsed": 10.0 * i, "peak_rss_mib": 99.0}
        for i in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    if process is not None:
        (folder / LOCK).write_text(f"{process}\n")
    return folder


@pytest.fixture(scope="module")
def gone():
    """A process that has ended."""
    code = "from softlabels.core.processes import this_process; print(this_process())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def look(run: Path, now: float = 0.0):
    return Watch(run=run, name=run.name).look(now)


def page_of(*looks, every: float | None = 7) -> str:
    return check_page(render(looks, every=every, at=0))


def test_a_run_at_work(tmp_path):
    found = look(write_run(tmp_path / "run", process=this_process()))
    assert (found.state, found.ended) == (State.RUNS, False)
    assert (found.step, found.steps, found.share) == (20, 100, 0.2)
    assert found.rate == pytest.approx(0.5)  # evaluations included: not 1 / 1.5 s
    assert found.seconds_left == pytest.approx(160)
    text = page_of(found)
    for said in ("run: step 20 of 100, about 2 min 40 s left.", "5.000", "0.5", "every 7 s", "20%"):
        assert said in text
    assert '<meta http-equiv="refresh" content="7">' in render([found], every=7, at=0)
    assert "refresh" not in render([found], every=None, at=0).split("</head>")[0]


def test_a_line_that_is_being_written_is_not_read_yet(tmp_path):
    run = write_run(tmp_path / "run", process=this_process())
    whole = (run / "metrics.jsonl").read_text()
    last = '{"step": 25, "loss": 1.0, "elapsed": 60.0}\n'
    for n in range(len(last)):
        (run / "metrics.jsonl").write_text(whole + last[:n])
        found = look(run)
        assert found.step == (25 if n == len(last) - 1 else 20)
        page_of(found)


def test_a_run_whose_process_is_gone_has_stopped_or_finished(tmp_path, gone):
    stopped = look(write_run(tmp_path / "stopped", process=gone))
    assert (stopped.state, stopped.ended, stopped.seconds_left) == (State.STOPPED, True, None)
    assert "stopped has stopped after step 20 of 100." in page_of(stopped)
    run = write_run(tmp_path / "done", process=gone)
    (run / "student").mkdir()
    (run / "student" / "config.json").write_text("{}")
    done = look(run)
    assert (done.state, done.ended) == (State.FINISHED, True)
    (run / LOCK).write_text(f"{this_process()}\n")  # it is being lengthened
    assert look(run).state is State.RUNS
    assert look(write_run(tmp_path / "none")).state is State.STOPPED


def test_a_run_has_finished_though_its_process_lives_on(tmp_path):
    run = write_run(tmp_path / "run")
    with FolderLock(run, [].append) as lock:
        lock.acquire()
        assert look(run).state is State.RUNS
        other = FolderLock(run, [].append)
        with pytest.raises(RunError, match="another run"):
            other.acquire()
        assert look(run).state is State.RUNS  # who was refused does not give back what another has
        (run / "student").mkdir()
        (run / "student" / "config.json").write_text("{}")
    assert look(run).state is State.FINISHED


def test_a_process_of_another_host_is_judged_by_what_we_saw(tmp_path):
    run = write_run(tmp_path / "run", process="elsewhere-0123456789ab.4026531836.7.11")
    watch = Watch(run=run, name="run")
    assert watch.look(100.0).silent == 0
    assert watch.look(130.0).silent == 30
    with (run / "metrics.jsonl").open("a") as f:
        f.write('{"step": 25, "elapsed": 60}\n')
    found = watch.look(160.0)
    assert (found.state, found.silent, found.ended) == (State.ELSEWHERE, 0, False)
    assert "nothing new for 30 s" in page_of(watch.look(190.0))


def test_before_the_first_line_nothing_is_known(tmp_path):
    run = write_run(tmp_path / "run", process=this_process())
    (run / "metrics.jsonl").unlink()
    found = look(run)
    assert (found.step, found.rate, found.seconds_left) == (0, None, None)
    assert "not known yet" in page_of(found)


def test_a_run_of_before_tells_its_rate_by_its_steps(tmp_path):
    run = write_run(tmp_path / "run", process=this_process())
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    text = "".join(f"{json.dumps({k: v for k, v in x.items() if k != 'elapsed'})}\n" for x in lines)
    (run / "metrics.jsonl").write_text(text)
    assert look(run).rate == pytest.approx(1 / 1.5)


@pytest.mark.parametrize("number", ["1e308", "NaN", "-1", "1" + "0" * 400, "true", '"x"', "[]"])
def test_hostile_files_make_no_page_that_does_anything(tmp_path, number):
    run = write_run(tmp_path / "<img src=x>", process=HOSTILE.replace("\x00", ""))
    text = '{"step": 25, "loss": N, "elapsed": N, "seconds": N, "positions_per_second": N}\n'
    with (run / "metrics.jsonl").open("a") as f:
        f.write(text.replace("N", number))
    assert look(run).state is State.ELSEWHERE
    page_of(look(run))
    page_of(look(run), look(run), every=None)


def test_the_command_ends_with_its_runs(tmp_path, gone, monkeypatch):
    run = write_run(tmp_path / "run", process=this_process())
    out = tmp_path / "watch.html"
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert "http-equiv" in out.read_text()
        assert f"step {20 + 5 * (len(slept) - 1)} of 100" in out.read_text()
        with (run / "metrics.jsonl").open("a") as f:
            f.write(f'{{"step": {20 + 5 * len(slept)}, "elapsed": {40 + 10 * len(slept)}}}\n')
        if len(slept) == 3:
            (run / LOCK).write_text(f"{gone}\n")

    monkeypatch.setattr("trainers.cli.watch.time.sleep", sleep)
    words = ["watch", str(run), "--out", str(out), "--every", "3"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert slept == [3.0, 3.0, 3.0]
    assert done.stdout == f"{run}: has stopped, step 35 of 100\n"
    last = out.read_text()
    assert 'http-equiv="refresh"' not in last
    assert re.search(r"Drawn .* for the last time", check_page(last))


def test_an_interrupted_watch_leaves_a_page_that_does_not_load_itself(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", process=this_process())

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainers.cli.watch.time.sleep", stop)
    done = CliRunner().invoke(main, ["watch", str(run), "--out", str(tmp_path / "w.html")])
    assert done.exit_code == 130
    assert 'http-equiv="refresh"' not in (tmp_path / "w.html").read_text()


def test_json_once_and_mistakes(tmp_path):
    run = write_run(tmp_path / "run", process=this_process())
    out = tmp_path / "w.html"
    done = CliRunner().invoke(main, ["watch", str(run), "--once", "--json", "--out", str(out)])
    assert json.loads(done.stdout)["runs"] == [
        {"run": str(run), "state": "runs", "step": 20, "steps": 100}
    ]
    with pytest.raises(RunError, match="not a run"):
        look(tmp_path)
    done = CliRunner().invoke(main, ["watch", str(run), "--every", "0"])
    assert done.exit_code == 2
    assert "--every" in done.stderr
