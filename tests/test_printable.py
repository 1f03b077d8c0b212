r"""Whatever a store says, a terminal shows it and does nothing, and a card's page has no HTML of it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from softlabels.cli.main import main
from softlabels.console.terminal import Bar
from softlabels.core.printable import (
    emphasis,
    for_markdown,
    for_terminal,
    printable,
    printable_record,
)
from softlabels.errors import SoftLabelsError
from softlabels.format.manifest import MANIFEST, load_manifest
from softlabels.making.card import card
from softlabels.making.croissant import croissant
from tests.fakes import build_tiny, write_corpus
from tests.store.made_up import write_sealed

EVIL = (
    "\x1b]0;owned\x07\x1b[2J\x9b31m\x00\r\n\u202eable.exe\u2066 <script>alert(1)</script>"
    "|`x`[y](javascript:z)![t](http://e/p.png)\ue000"
)
"""Renames the window, clears it, begins a line, turns it round; runs a script, adds a cell, a link, a picture."""
HARM = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
FIELDS = [
    "created_by",
    "identity.licence",
    "identity.teacher.spec",
    "identity.teacher.name",
    "identity.teacher.revision",
    "identity.teacher.dtype",
    "identity.teacher.device",
    "identity.teacher.engine",
    "identity.corpus.specs",
    "identity.targets.positions",
    "identity.classes",
    "identity.domain",
    "identity.encoding.profile",
    "identity.encoding.values",
    "identity.targets.estimator",
    "provenance",
    "column_bytes",
    "version",
    "shards",
]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("printable")
    build_tiny(folder / "store", write_corpus(folder / "c", documents=2), limit_rows=2)
    return folder / "store"


def evil_store(good: Path, out: Path, field: str) -> Path:
    shutil.copytree(good, out)
    raw: dict[str, Any] = json.loads((out / MANIFEST).read_bytes())
    if field == "provenance":
        source = {"name": EVIL, "content_digest": "0" * 64, "rows": 1}
        raw[field] = {"operation": EVIL, "parameters": {EVIL: EVIL}, "sources": [source]}
    elif field == "column_bytes":
        raw[field] = {EVIL: 10**6}
    elif field == "shards":
        raw["shards"][0]["name"] = EVIL
    else:
        at, *steps = raw, *field.split(".")
        for step in steps[:-1]:
            at = at[step]
        at[steps[-1]] = [EVIL] * 300 if field.endswith(("specs", "classes")) else EVIL
    write_sealed(out / MANIFEST, raw)
    return out


@pytest.mark.parametrize("field", FIELDS)
def test_a_terminal_does_nothing_of_what_a_store_says(good, tmp_path, field):
    store = str(evil_store(good, tmp_path / "bad", field))
    for command in (
        ["inspect", store],
        ["inspect", store, "--row", "0"],
        ["verify", store],
        ["diff", store, str(good)],
        ["card", store, "--licence", "MIT"],
        ["export", store, "topk", "--out", str(tmp_path / "x.parquet")],
    ):
        done = CliRunner().invoke(main, command, color=True)
        assert done.exception is None or isinstance(done.exception, SystemExit), command
        own = done.output.replace("\x1b[1;32m", "").replace("\x1b[0m", "")  # emphasis, no more
        assert not HARM.search(own.replace("\n", "").replace("\t", "")), command
        lines = [line for line in own.splitlines() if line.startswith(("able.exe", "\\u202eable"))]
        assert not lines, "it began a line of its own"


@pytest.mark.parametrize("field", [f for f in FIELDS if f not in ("shards", "version")])
def test_a_card_has_no_html_and_no_link_of_a_store(good, tmp_path, field):
    manifest = load_manifest(evil_store(good, tmp_path / "bad", field))
    for page in (card(manifest), croissant(manifest)):
        assert "<script" not in page
        assert "](" not in page
        assert not HARM.search(page.replace("\n", ""))
    head = card(manifest).partition("\n\n")[0].splitlines()
    words = r"(- )?[\w.+-]*(: ?[\w.+*/-]*)?"
    assert all(re.fullmatch(words, line.strip()) for line in head), head
    widths = {line.count("|") for line in card(manifest).splitlines() if line.startswith("|")}
    assert widths == {3}


def test_cards_of_ordinary_stores_stay_as_they_were():
    for store in sorted((Path(__file__).parent / "fixtures").glob("*-v1.[012]")):
        manifest = load_manifest(store)
        identity, fidelity = manifest.identity, manifest.fidelity
        assert printable_record(identity, for_markdown) == identity, store.name
        assert printable_record(fidelity, for_markdown) == fidelity, store.name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain — ü 汉 🙂", "plain — ü 汉 🙂"),
        ("\x1b[31m", r"\x1b[31m"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\u202ea\u2066", r"\u202ea\u2066"),
        ("\U000e0041", r"\U000e0041"),
        ("\ud800", r"\ud800"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
    ],
)
def test_what_is_shown(text, shown):
    assert printable(text) == shown


def test_lines_stay_where_they_are_ours():
    assert printable("a\n\tb\r", lines=True) == "a\n\tb\\r"


@given(st.text())
def test_nothing_harmful_is_left(text):
    assert not HARM.search(printable(text))
    assert not HARM.search(
        for_terminal(text).replace("\x1b[1;32m", "").replace("\x1b[0m", "").replace("\n", "")
    )
    assert not re.search(
        r"[<`|\[\]\\]", re.sub(r"\\[xuUntr]", "", for_markdown(text)).replace("&#", "")
    )
    assert printable(printable(text)) == printable(text)


def test_emphasis_is_the_only_style():
    assert for_terminal(f"{emphasis('x')}\x1b[8m") == "\x1b[1;32mx\x1b[0m\\x1b[8m"


def test_errors_and_notices_pass_through_the_same(monkeypatch, capsys):
    import click

    from softlabels.console.terminal import Bar, Commands, say

    @click.group(cls=Commands)
    def group() -> None: ...

    @group.command("x")
    def fail() -> None:
        raise SoftLabelsError(EVIL)

    done = CliRunner().invoke(group, ["x"], color=True)
    assert done.stderr.startswith(r"error: \x1b]0;owned\x07\x1b[2J")
    assert len(done.stderr.splitlines()) == 1
    with Bar() as bar:
        bar.notice(EVIL)
    say(EVIL)
    assert not HARM.search(capsys.readouterr().err.replace("\n", ""))


def test_an_evaluation_is_no_markup():
    from softlabels.console.tables import table
    from trainers.cli.evaluation_text import GROUPED, _group
    from trainers.evaluation.evaluations import Group

    fields = dict.fromkeys(Group.__struct_fields__)
    group = Group(**(fields | {"name": "[/nothing][link=x]" + EVIL, "positions": 1}))
    shown = table("x", GROUPED, [_group(group)])
    assert "[/nothing][link=x]" in shown
    assert not HARM.search(shown.replace("\n", ""))


# -- the one way out ---------------------------------------------------------------------------------------------------

PRINTS = re.compile(r"\b(click\.s?echo|(?<![\w.])print|std(out|err)\.write|warnings\.warn)\(")
ELSEWHERE = {
    "softlabels/console/terminal.py": "the one place, which makes it safe",
    "trainers/exports/latency_worker.py": "JSON, for the process that started it",
    "trainers/integrations/__init__.py": "a warning of the library's, with the path that its caller gave",
    "trainers/integrations/lm_eval.py": "in another tool's process; through `printable`",
}


def test_nothing_is_printed_but_through_the_terminal():
    root = Path(__file__).parents[1]
    found = {
        path.relative_to(root).as_posix()
        for package in ("softlabels", "trainers")
        for path in (root / package).rglob("*.py")
        if any(PRINTS.search(line.partition("#")[0]) for line in code_lines(path))
    }
    assert found == ELSEWHERE.keys()


def code_lines(path: Path) -> list[str]:
    """Without what is in docstrings."""
    return re.sub(r'"""[\s\S]*?"""', "", path.read_text(encoding="utf-8")).splitlines()


def test_a_notice_is_one_line_and_so_is_progress(capsys, monkeypatch):
    monkeypatch.setenv("SOFTLABELS_PROGRESS_SECONDS", "0")
    bar = Bar()
    bar.notice(f"waiting for {EVIL}")
    bar.stage(EVIL, 2, "rows")
    bar.advance(1, EVIL)
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4, "a notice, and three lines of progress"
    assert not HARM.search("".join(lines))
