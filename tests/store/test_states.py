"""A teacher's states: written once, found by the digest of a row, whole or refused."""

import json
import shutil

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from softlabels.builder import states as writer
from softlabels.builder.config import StatesConfig
from softlabels.builder.states import write_states
from softlabels.cli.main import main
from softlabels.core.records import canonical, seal
from softlabels.errors import (
    FormatError,
    IntegrityError,
    NonFiniteError,
    PairingError,
    PlanError,
    TeacherError,
)
from softlabels.store.reader import open_store
from softlabels.store.states import TeacherStates
from tests.fakes import LinearTeacher, Notices, Steps, TinyTeacher, build_tiny, write_corpus

CONFIG = StatesConfig(teacher="hf:x")


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    corpus = write_corpus(folder / "corpus")
    build_tiny(folder / "store", corpus, teacher=LinearTeacher(), shard_rows=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "PIECE_BYTES", 7 * 64 * 12 * 4)
        write_states(folder / "store", CONFIG, folder / "states", teacher=LinearTeacher())
    return folder


@pytest.fixture
def copied(ground, tmp_path):
    return shutil.copytree(ground / "states", tmp_path / "states")


def logits(states, rows):
    """From the folder alone, in float64."""
    found = states.of([r.digest() for r in rows], [r.n for r in rows], where="test")
    weight, bias, scale, cap = states.head()
    z = found.double() @ weight.double().T
    z = scale * (z if bias is None else z + bias.double())
    return z if cap is None else cap * torch.tanh(z / cap)


def test_states_and_head_are_the_teachers_logits(ground):
    store, states = open_store(ground / "store"), TeacherStates(ground / "states")
    assert len([n for n in states.record.files if n.startswith("states/")]) > 3
    rows = [store.row(i).row for i in (17, 3, 3, 38, 0)]  # any rows, in any order
    expected = torch.cat([LinearTeacher().dense(r) for r in rows])
    torch.testing.assert_close(logits(states, rows).float(), expected, rtol=1e-5, atol=1e-5)
    assert states.record.positions == store.manifest.identity.corpus.positions
    assert states.record.rows == len(store)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers_are_kept_as_they_are(ground, tmp_path, dtype):
    teacher = LinearTeacher(dtype=dtype)
    write_states(ground / "store", CONFIG, tmp_path / "states", teacher=teacher)
    states = TeacherStates(tmp_path / "states")
    row = open_store(ground / "store").row(5).row
    found = states.of([row.digest()], [row.n], where="test")
    assert found.dtype == states.head().weight.dtype == dtype
    assert torch.equal(found, teacher.states([row]))


def test_a_teacher_whose_head_is_plain(ground, tmp_path):
    build_tiny(tmp_path / "store", write_corpus(tmp_path / "corpus", documents=1, repeat=1))
    write_states(tmp_path / "store", CONFIG, tmp_path / "states", teacher=TinyTeacher())
    row = open_store(tmp_path / "store").row(0).row
    found = logits(TeacherStates(tmp_path / "states"), [row])
    torch.testing.assert_close(found.float(), TinyTeacher().dense(row))


def test_it_goes_on_where_it_was_killed_and_makes_the_same(ground, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "PIECE_BYTES", 7 * 64 * 12 * 4)
    teacher, seen = LinearTeacher(), []
    given = teacher.states

    def dying(rows):
        seen.append(len(rows))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return given(rows)

    teacher.states = dying
    with pytest.raises(KeyboardInterrupt):
        write_states(ground / "store", CONFIG, tmp_path / "states", teacher=teacher)
    with pytest.raises(FormatError, match=r"no finished states.*softlabels states STORE"):
        TeacherStates(tmp_path / "states")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "states/states").iterdir()}
    assert len(before) == 2
    steps = Steps()
    record = write_states(
        ground / "store", CONFIG, tmp_path / "states", teacher=teacher, reporter=steps
    )
    assert steps.done == steps.total == record.rows
    assert sum(seen[3:]) < record.rows
    assert record == TeacherStates(ground / "states").record
    for name, when in before.items():
        assert (tmp_path / "states/states" / name).stat().st_mtime_ns == when
    again = write_states(ground / "store", CONFIG, tmp_path / "states", teacher=teacher)
    assert again == record


def test_another_job_or_teacher_is_refused(ground, copied, tmp_path):
    other = LinearTeacher()
    other.record = msgspec.structs.replace(other.record, engine="tests 2")
    with pytest.raises(PlanError, match="was begun with another corpus, teacher, engine"):
        write_states(ground / "store", CONFIG, copied, teacher=other, reporter=Notices())
    with pytest.raises(TeacherError, match="give --teacher the model that made it"):
        write_states(ground / "store", CONFIG, tmp_path / "a", teacher=TinyTeacher(seed=1))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    with pytest.raises(PlanError, match=r"holds 'notes.txt' and no states"):
        write_states(ground / "store", CONFIG, tmp_path / "foreign", teacher=LinearTeacher())
    silent = LinearTeacher()
    silent.head = None
    with pytest.raises(TeacherError, match="does not show what its head is given"):
        write_states(ground / "store", CONFIG, tmp_path / "b", teacher=silent)
    assert not (tmp_path / "b").exists()


def test_states_that_are_not_finite_are_refused_before_they_are_written(ground, tmp_path):
    teacher = LinearTeacher()
    teacher.tables[0][:, 3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"a state of the rows 0 to \d+ is NaN"):
        write_states(ground / "store", CONFIG, tmp_path / "states", teacher=teacher)
    assert not list((tmp_path / "states").rglob("*.safetensors"))


# -- a folder that came from somewhere ----------------------------------------------------------------


def test_a_row_that_is_not_there_is_refused(ground, tmp_path):
    build_tiny(tmp_path / "other", write_corpus(tmp_path / "c", documents=1), seq_len=50)
    row = open_store(tmp_path / "other").row(1).row
    with pytest.raises(
        PairingError, match=r"here: 1 of 1 rows have no states in .*digest [0-9a-f]"
    ):
        TeacherStates(ground / "states").of([row.digest()], [row.n], where="here")
    row = open_store(ground / "store").row(1).row
    with pytest.raises(IntegrityError, match=rf"a row of 3 positions has {row.n} states"):
        TeacherStates(ground / "states").of([row.digest()], [3], where="here")


@pytest.mark.parametrize("name", ["head.safetensors", "piece"])
def test_a_flipped_bit_is_found_when_the_file_is_read(ground, copied, name):
    path = sorted((copied / "states").iterdir())[0] if name == "piece" else copied / name
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    states = TeacherStates(copied)
    row = open_store(ground / "store").row(0).row
    with pytest.raises(IntegrityError, match=rf"{path.name}: sha256 is .* altered"):
        states.head() if name == "head.safetensors" else logits(states, [row])


def test_a_missing_or_cut_piece_is_found_at_once(copied):
    path = sorted((copied / "states").iterdir())[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=rf"{path.name}: \d+ bytes, states.json says"):
        TeacherStates(copied)
    path.unlink()
    with pytest.raises(IntegrityError, match=path.name):
        TeacherStates(copied)


def test_an_altered_record_is_refused(copied):
    record = json.loads((copied / "states.json").read_text())
    record["scale"] = 2.0
    (copied / "states.json").write_bytes(canonical(record))
    with pytest.raises(IntegrityError, match="the file was altered"):
        TeacherStates(copied)


@pytest.mark.parametrize("change", [{"width": 11}, {"rows": 7}])
def test_a_record_that_claims_other_shapes_is_refused(copied, change):
    record = msgspec.structs.replace(TeacherStates(copied).record, **change)
    (copied / "states.json").write_bytes(canonical(seal(record)))
    with pytest.raises(IntegrityError, match=r"no piece of states of width 11|hold \d+ rows"):
        TeacherStates(copied)


def test_the_command(ground, tmp_path, monkeypatch):
    asked = []

    def opened(spec, options):
        asked.append((spec, options.device, options.dtype))
        return LinearTeacher()

    monkeypatch.setattr(writer, "open_teacher", opened)
    out = tmp_path / "states"
    done = CliRunner().invoke(
        main, ["states", f"{ground}/store", "--teacher", "hf:x", "--out", str(out), "--json"]
    )
    assert done.exit_code == 0, done.output
    store = open_store(ground / "store").manifest.identity
    assert asked == [
        ("hf:x", "auto", store.teacher.dtype)
    ]  # what was not given is what it is by default
    found = json.loads(done.stdout)
    assert found["width"] == 12
    assert found["digest"] == TeacherStates(out).digest
    assert np.isclose(found["bytes"], found["positions"] * 48, rtol=0.5)
