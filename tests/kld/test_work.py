"""`softlabels kld --work DIR`: stopped anywhere, the same command goes on to the very same figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from softlabels.cli.main import main
from softlabels.core.durable import alone
from softlabels.errors import IntegrityError, StoreError
from softlabels.kld import work
from softlabels.kld.compare import compare
from softlabels.kld.config import KldConfig
from softlabels.kld.run import kld
from softlabels.store.reader import open_store
from softlabels.teachers import TEACHERS
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.kld.test_kld_command import Near


class Killed(BaseException):
    """What no code of ours catches."""


@pytest.fixture(autouse=True)
def _back_ends(monkeypatch):
    monkeypatch.setitem(TEACHERS.builtin, "fake", "tests.fakes:load_tiny")
    monkeypatch.setitem(TEACHERS.builtin, "near", "tests.kld.test_kld_command:load_near")
    monkeypatch.setattr(work, "SECONDS", 0.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    build_tiny(folder / "s", write_corpus(folder / "t"), estimator="topk", k=20)
    return folder / "s"


def asked(store: Path, folder: Path | None, **changes) -> KldConfig:
    given = {"batch_tokens": 100, "bootstrap": 50} | changes
    return KldConfig(store=str(store), work=None if folder is None else str(folder), **given)


def figures_of(found):
    """All but the time."""
    return [(c.figures, c.kl_least, c.kl_most, c.curve, c.by_document) for c in found.candidates]


class Stops:
    """A reporter that kills after so many batches."""

    def __init__(self, after: int) -> None:
        self.left = after
        self.lines: list[str] = []

    def stage(self, *_: object) -> None: ...

    def notice(self, text: str) -> None:
        self.lines.append(text)

    def advance(self, _: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.mark.parametrize("after", [1, 3])
def test_it_goes_on_to_the_very_same_figures(store, tmp_path, after, monkeypatch):
    whole = kld(["near:0.2"], asked(store, None))
    with pytest.raises(Killed):
        kld(["near:0.2"], asked(store, tmp_path / "w"), reporter=Stops(after))
    (folder,) = (tmp_path / "w").iterdir()
    assert len(list(folder.iterdir())) == after
    asked_for: list[int] = []
    logits = Near.logits
    monkeypatch.setattr(
        Near, "logits", lambda self, rows: asked_for.append(len(rows)) or logits(self, rows)
    )
    said = Stops(-1)
    again = kld(["near:0.2"], asked(store, tmp_path / "w"), reporter=said)
    assert figures_of(again) == figures_of(whole)
    assert 0 < sum(asked_for) < len(open_store(store))
    assert any("rows are finished already" in line for line in said.lines)
    asked_for.clear()
    assert figures_of(kld(["near:0.2"], asked(store, tmp_path / "w"))) == figures_of(whole)
    assert asked_for == []  # all of it was there


def test_another_candidate_reference_or_setting_has_a_folder_of_its_own(store, tmp_path):
    kld(["near:0.2"], asked(store, tmp_path / "w"))
    kld(["fake:0"], asked(store, tmp_path / "w"))
    kld(["near:0.2"], asked(store, tmp_path / "w", limit_rows=2))
    assert len(list((tmp_path / "w").iterdir())) == 3


def test_a_part_that_was_altered_is_refused_and_made_again_once_it_is_gone(store, tmp_path):
    whole = kld(["near:0.2"], asked(store, tmp_path / "w"))
    (folder,) = (tmp_path / "w").iterdir()
    part = min(folder.iterdir())
    data = bytearray(part.read_bytes())
    data[-9] ^= 1
    part.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"is not what was written; remove this file"):
        kld(["near:0.2"], asked(store, tmp_path / "w"))
    part.unlink()
    assert figures_of(kld(["near:0.2"], asked(store, tmp_path / "w"))) == figures_of(whole)


def test_two_at_once_are_told_and_what_is_not_ours_stays(store, tmp_path):
    kld(["near:0.2"], asked(store, tmp_path / "w", limit_rows=2))
    (folder,) = (tmp_path / "w").iterdir()
    (folder / "mine.txt").write_text("mine")
    with alone(folder), pytest.raises(StoreError, match="another `softlabels kld` works here"):
        kld(["near:0.2"], asked(store, tmp_path / "w", limit_rows=2))
    kld(["near:0.2"], asked(store, tmp_path / "w", limit_rows=2))
    assert (folder / "mine.txt").read_text() == "mine"


def test_a_folder_that_is_a_file_is_a_sentence(store, tmp_path):
    (tmp_path / "w").write_text("")
    result = CliRunner().invoke(
        main, ["kld", "near:0.2", "--store", str(store), "--work", str(tmp_path / "w"), "--json"]
    )
    assert result.exit_code == 1
    assert "is no folder" in result.stderr


def test_the_command_takes_it(store, tmp_path):
    command = ["kld", "near:0.2", "--store", str(store), "--work", str(tmp_path / "w"), "--json"]
    first, second = (json.loads(CliRunner().invoke(main, command).stdout) for _ in range(2))
    for found in (first, second):
        del found["candidates"][0]["model"]["seconds"]
        del found["candidates"][0]["model"]["tokens_per_second"]
    assert first == second


def test_without_it_nothing_is_written(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compare(open_store(store), TinyTeacher(), limit_rows=1)
    assert list(tmp_path.iterdir()) == []
