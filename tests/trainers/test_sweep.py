"""`softtrain sweep`: which runs there are, what one table says of them, and a real one that is gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from softlabels.core.progress import Silent
from softlabels.errors import ConfigError, RunError
from tests.fakes import build_tiny, write_corpus
from tests.students import llama
from trainers.cli import main
from trainers.run.sweep import Outcome, entries_of, members_of, read_vary, rows_of, sweep

FLAGS = {"store": ("s",), "student": "new:1M", "heldout": "h"}


def members(*vary: str, toml: Path | None = None, **flags):
    return members_of(toml, FLAGS | flags, read_vary(toml, vary))


# -- what is varied -------------------------------------------------------------------------------


def test_every_combination_is_a_run_with_a_name_of_its_own():
    found = members("lr=0.001", "lr=2e-3", "seed=0", "seed=1")
    assert [m.name for m in found] == [
        "lr-0.001,seed-0",
        "lr-0.001,seed-1",
        "lr-0.002,seed-0",
        "lr-0.002,seed-1",
    ]
    assert [(m.config.lr, m.config.seed) for m in found] == [
        (0.001, 0),
        (0.001, 1),
        (0.002, 0),
        (0.002, 1),
    ]
    assert all(m.config.student == "new:1M" for m in found)


def test_a_file_has_a_table_of_lists_and_flags_win_key_by_key(tmp_path):
    toml = tmp_path / "sweep.toml"
    toml.write_text("alpha = 0.9\n[vary]\nlr = [1e-3, 2e-3]\nseed = [0, 1]\n", encoding="utf-8")
    found = members("seed=7", toml=toml)
    assert [(m.config.lr, m.config.seed, m.config.alpha) for m in found] == [
        (0.001, 7, 0.9),
        (0.002, 7, 0.9),
    ]


def test_students_are_named_by_what_tells_them_apart():
    found = members(
        "student=hf:models/a?lora=r:16,alpha:32",
        "student=layers-of:models/a?keep=0,2",
        student=None,
    )
    assert [m.name for m in found] == ["student-a-lora-r-16-alpha-32", "student-a-keep-0-2"]


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ((), "--vary is missing"),
        (("lr",), "--vary lr: expected SETTING=VALUE"),
        (("lrr=1",), "--vary lrr: is no setting"),
        (("lr=fast",), "--vary lr=fast: "),
        (("seed=1", "seed=1"), "--vary seed: has a value twice"),
        (("lr=-1",), "--lr -1"),
        (("student=new:1M", "student=new-1M"), "two runs would both be kept in student-new-1m"),
    ],
)
def test_what_cannot_be_varied_is_refused_before_anything_is_trained(vary, message):
    with pytest.raises(ConfigError, match=message):
        members(*vary)


def test_without_held_out_rows_there_is_nothing_to_compare_on():
    with pytest.raises(ConfigError, match="--heldout is missing"):
        members("seed=0", "seed=1", heldout=None)


@pytest.mark.parametrize("text", ["vary = 3\n", "[vary]\nlr = 1e-3\n"])
def test_a_table_of_something_else_is_refused(tmp_path, text):
    toml = tmp_path / "sweep.toml"
    toml.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="expected a table of lists"):
        read_vary(toml, ())


# -- what they came to ----------------------------------------------------------------------------


def outcomes(*results: tuple[str, int, float | None, float | None]):
    """Of students and seeds, their best loss and KL; a loss of None: the run failed."""
    vary = {"student": [], "seed": []}
    found = []
    for student, seed, nll, kl in results:
        vary = {"student": [student], "seed": [seed]}
        [member] = members_of(None, FLAGS, vary)
        best = {"step": 10, "nll": nll} | ({} if kl is None else {"kl": kl})
        found.append(Outcome(member, None if nll is None else {"parameters": 9, "best": best}))
    return found


def test_seeds_are_one_entry_with_their_spread_and_the_nearest_comes_first():
    found = entries_of(
        outcomes(("a", 0, 3.0, 0.5), ("a", 1, 3.2, 0.7), ("b", 0, 3.3, 0.2), ("b", 1, 3.3, 0.2))
    )
    assert [(e.settings, e.runs) for e in found] == [({"student": "b"}, 2), ({"student": "a"}, 2)]
    assert rows_of(found)[1][:4] == ["--student a", "9", "0.6000 ± 0.1414", "3.1000 ± 0.1414"]


def test_where_the_store_knows_no_kl_the_loss_decides():
    found = entries_of(outcomes(("a", 0, 3.2, None), ("b", 0, 3.0, None)))
    assert [e.settings["student"] for e in found] == ["b", "a"]
    assert rows_of(found)[0][2] == "-"


def test_a_run_that_failed_is_counted_and_comes_last():
    found = entries_of(outcomes(("a", 0, None, None), ("b", 0, 3.0, 1.0), ("b", 1, None, None)))
    assert [r[-1] for r in rows_of(found)] == ["1 of 2", "0 of 1"]


def test_one_that_fails_does_not_stop_the_others(tmp_path):
    tried = []

    def run(member, out):
        tried.append(out.name)
        return False

    found = sweep(members("seed=0", "seed=1"), tmp_path, reporter=Silent(), run=run)
    assert tried == ["seed-0", "seed-1"]
    assert [o.summary for o in found] == [None, None]


# -- a real one -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_trains_goes_on_and_tells_what_failed(tmp_path):
    build_tiny(tmp_path / "store", write_corpus(tmp_path / "corpus"))
    build_tiny(tmp_path / "heldout", write_corpus(tmp_path / "other", documents=1, repeat=1))
    (tmp_path / "student.json").write_text(json.dumps(llama(max_position_embeddings=512)))
    flags = [
        *("sweep", "--store", str(tmp_path / "store"), "--heldout", str(tmp_path / "heldout")),
        *("--student", f"hf-config:{tmp_path / 'student.json'}", "--steps", "2"),
        *("--batch-size", "2", "--dtype", "float32", "--threads", "1"),
        *("--out", str(tmp_path / "sweep"), "--json"),
    ]
    vary = ["--vary", "lr=0.001", "--vary", "lr=0.01"]
    first = CliRunner().invoke(main, [*flags, *vary])
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert sorted(p.name for p in (tmp_path / "sweep").iterdir()) == ["lr-0.001", "lr-0.01"]
    assert [e["runs"] for e in found["entries"]] == [1, 1]
    logs = {p: p.read_bytes() for p in (tmp_path / "sweep").glob("*/metrics.jsonl")}

    # one more value, and a student that cannot be made: what is there is left as it is
    bad = [
        "--vary",
        f"student=hf-config:{tmp_path / 'student.json'}",
        "--vary",
        "student=hf:nowhere",
    ]
    more = CliRunner().invoke(main, [*flags, *vary[:2], *bad])
    assert more.exit_code == 1
    assert "1 of 2 runs did not end well (lr-0.001,student-hf-nowhere;" in more.output
    assert {p: p.read_bytes() for p in logs} == logs
    assert (tmp_path / "sweep" / "lr-0.001,student-student.json" / "student").is_dir()


@pytest.mark.parametrize("name", ["thesis.tex", "student/config.json", "run.json"])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, name):
    path = tmp_path / "sweep" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(RunError, match=f"holds {name.split('/')[0]}, which is no run of a sweep"):
        sweep(members("seed=0"), tmp_path / "sweep", reporter=Silent(), run=lambda *_: True)
    assert [p.name for p in (tmp_path / "sweep").rglob("*") if p.is_file()] == [path.name]
    assert path.read_text() == "mine"


def test_what_a_killed_run_left_is_gone_on_with(tmp_path):
    (tmp_path / "sweep" / "seed-0").mkdir(parents=True)
    (tmp_path / "sweep" / "seed-0" / ".softtrain.lock").touch()
    found = sweep(members("seed=0"), tmp_path / "sweep", reporter=Silent(), run=lambda *_: False)
    assert [o.member.name for o in found] == ["seed-0"]
