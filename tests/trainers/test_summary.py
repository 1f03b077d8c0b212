"""What a run says when it is done, and on its way, in a log file."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from softlabels.errors import RunError
from tests.fakes import build_tiny, write_corpus
from trainers.cli import main
from trainers.run.summary import summary_of

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("summary")
    build_tiny(folder / "store", write_corpus(folder / "corpus", documents=2, repeat=2))
    build_tiny(folder / "heldout", write_corpus(folder / "other", documents=1, repeat=1))
    return folder


def softtrain(*arguments, **environment):
    result = CliRunner().invoke(main, [str(a) for a in arguments], env=environment)
    assert result.exit_code == 0, result.output
    return result


def flags(stores: Path, run: Path, *more):
    given = [
        "run",
        "--store",
        stores / "store",
        "--student",
        "new:300k",
        "--steps",
        3,
        "--out",
        run,
    ]
    return [*given, "--batch-size", 2, "--dtype", "float32", "--threads", 1, *more]


def test_a_log_file_tells_how_a_run_goes_and_what_it_came_to(stores, tmp_path):
    run = tmp_path / "a run"
    more = ["--heldout", stores / "heldout", "--eval-every", 2, "--log-every", 1]
    result = softtrain(*flags(stores, run, *more), SOFTLABELS_PROGRESS_SECONDS="0")
    log = result.stderr.splitlines()
    (first,) = (x for x in log if x.startswith("train: 3 steps to do"))
    lines = log[log.index(first) + 1 :]
    assert re.match(r"train: 1 of 3 steps \(33%\), .*/s, .* left, loss \d+\.\d+, hard ", lines[0])
    assert re.search(r", held-out \d+\.\d+$", lines[1])
    assert lines[3].startswith("train: done, 3 steps in ")
    said = result.stdout
    metrics = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert said.startswith(f"student: {run / 'student'}\n")
    assert f"(new:300k) on {stores / 'store'}" in said
    assert "  steps     3 of 2 rows (" in said
    assert f"  loss      {metrics[-1]['loss']:.3f} in the last step" in said
    assert f"{metrics[-1]['heldout_nll']:.3f} nats a label after step 3; lowest " in said
    assert f"kept in {run}/best" in said


def test_the_next_commands_that_it_names_run(stores, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = softtrain(*flags(stores, Path("a run"), "--heldout", stores / "heldout")).stdout
    commands = [shlex.split(x) for x in said.partition("next:\n")[2].splitlines()]
    assert [c[:2] for c in commands] == [["softtrain", x] for x in ("eval", "export", "report")]
    for command in commands:
        softtrain(*command[1:])
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "student" / "model.safetensors").is_file()


def test_json_gives_the_results_as_one_object(stores, tmp_path):
    run = tmp_path / "run"
    result = softtrain(*flags(stores, run, "--heldout", stores / "heldout", "--json"))
    found = json.loads(result.stdout)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {n: found[n] for n in ("loss", "soft", "hard")} == {
        n: last[n] for n in ("loss", "soft", "hard")
    }
    assert found["heldout"] == {"step": 3, "nll": last["heldout_nll"], "kl": last["heldout_kl"]}
    assert found["best"]["nll"] <= found["heldout"]["nll"]
    assert (found["steps"], found["rows"]) == (3, 6)
    assert found["parameters"] == pytest.approx(300_000, rel=0.03)
    assert found["seconds"] > 0
    assert Path(found["student"]).is_dir()
    without = json.loads(softtrain(*flags(stores, tmp_path / "other", "--json")).stdout)
    assert "heldout" not in without


def test_what_is_not_a_run_is_not_summed_up(tmp_path):
    with pytest.raises(RunError, match=r"cannot be summed up, for run\.json or metrics\.jsonl"):
        summary_of(tmp_path)
