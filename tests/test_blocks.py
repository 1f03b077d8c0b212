"""Each block of code on each page is run, read as data, or says to us why not."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tests import page_ground
from tests.blocks import (
    CODE,
    DATA,
    DOCS,
    FENCE,
    OUTPUT,
    OWN,
    PAGES,
    ROOT,
    Block,
    blocks_in,
    blocks_of,
    commands,
    text_of,
)

BLOCKS = [b for page in PAGES for b in blocks_of(page)]
RUN_HERE = [b for b in BLOCKS if b.runs and b.page not in OWN]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
GROUNDS: dict[str, Callable[[Path], None]] = {
    "seq2seq.md": page_ground.write_seq2seq,
    "recipes-text.md": page_ground.write_encoders,
}
"""Pages that stand on other models and stores than those of causal LMs."""
TEACHERS = {"A class for a text": "classifier", "Hidden words: DistilBERT's recipe": "masked"}
"""Which model TEACHER is, under a heading."""


# -- every block --------------------------------------------------------------------------------------


def test_there_are_blocks_and_most_are_run():
    assert len(BLOCKS) > 100
    assert len([b for b in BLOCKS if b.runs]) > 55
    assert OWN.keys() <= set(PAGES)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_has_a_language_and_no_mark_without_a_reason(block):
    assert block.language in (*OUTPUT, *DATA, *CODE), f"{block}: say what language it is"
    if block.reason is not None:
        assert len(block.reason.split()) > 1 or block.reason in ("hours",), (
            f"{block}: {block.reason}"
        )
        for path in re.findall(r"\btests/[\w/]+(?:\.py)?", block.reason):
            assert (ROOT / path).exists(), f"{block}: there is no {path}"


@pytest.mark.parametrize("page", PAGES)
def test_marks_are_spelled_so_that_they_are_seen(page):
    text = text_of(page)
    marks = re.findall(r"<!-- .*not run.* -->", text)
    seen = {b.reason for b in blocks_in(text, page)}
    for mark in marks:
        match = re.fullmatch(r"<!-- (?:page )?not run: ([^>]+) -->", mark)
        assert match is not None, f"{page}: {mark}"
        assert match[1] in seen, f"{page}: {mark} stands before no block"


@pytest.mark.parametrize("page", PAGES)
def test_no_code_is_indented_instead_of_fenced(page):
    """For an indented block nobody can say what it is."""
    if page == "format.md":
        pytest.skip("the specification, whose indented lines are formulas")
    paragraphs = FENCE.sub("", text_of(page)).split("\n\n")
    before = ""
    for paragraph in paragraphs:
        listed = re.match(r"\s*(?:-|\d+\.) ", before) or before.startswith(":::")
        assert not paragraph.strip("\n").startswith("    ") or listed, f"{page}: {paragraph[:80]}"
        before = paragraph.strip("\n")


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in DATA], ids=str)
def test_data_is_read(block):
    if block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "yaml":
        assert list(yaml.safe_load_all(block.text))
    else:
        try:
            json.loads(block.text)
        except json.JSONDecodeError:
            assert [json.loads(line) for line in block.text.splitlines()]


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_python_compiles(block):
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("page", OWN)
def test_a_page_with_a_test_of_its_own_is_taken_by_it(page):
    assert f'to_run("{page}"' in (ROOT / OWN[page]).read_text(encoding="utf-8")


# -- commands, without running them -------------------------------------------------------------------


def _flags(program: str, verb: str) -> set[str]:
    command = page_ground.MAINS[program].commands[verb]
    opts = {
        o
        for p in command.params
        if isinstance(p, click.Option)
        for o in (*p.opts, *p.secondary_opts)
    }
    return opts | {"--help", "-h", "--version"}


def _printed(text: str) -> list[str]:
    lines = commands(text.replace("\n$ ", "\n"))
    return [line for line in lines if re.match(r"(softlabels|softtrain) [a-z]", line)]


@pytest.mark.parametrize("page", [*PAGES, "../README.md", "../CONTRIBUTING.md"])
def test_the_flags_of_every_printed_command_are_there(page):
    for block in blocks_in(text_of(page), page):
        if page == "cli.md" or block.language in (*DATA, "python", "sql"):
            continue
        for line in _printed(block.text):
            program, verb, *words = line.replace("…", "").split()
            assert verb in page_ground.MAINS[program].commands, f"{block}: {line}"
            known = _flags(program, verb)
            given = {w.partition("=")[0] for w in words if re.match(r"--[a-z]", w)}
            assert given <= known, f"{block}: {line}: {given - known}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "sh"], ids=str)
def test_every_extra_that_is_installed_is_one(block):
    for extras in re.findall(r"-e '\.\[([\w,]+)\]'", block.text):
        assert set(extras.split(",")) <= EXTRAS.keys(), str(block)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "sh"], ids=str)
def test_every_script_of_ours_is_there(block):
    for path in re.findall(r"python (tests/[\w/]+\.py|docs/\w+\.py)", block.text):
        assert (ROOT / path).is_file(), f"{block}: {path}"
    for name in re.findall(r"python -m (tests(?:\.\w+)+)", block.text):
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or path.is_dir(), f"{block}: {name}"


# -- running them -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grounds(tmp_path_factory) -> Callable[[str], Path]:
    """The folder that a page stands on, made when it is asked for."""
    pytest.importorskip("transformers")
    made: dict[Any, Path] = {}

    def ground(page: str) -> Path:
        write = GROUNDS.get(page, page_ground.write_ground)
        if write not in made:
            folder = tmp_path_factory.mktemp("ground")
            before = Path.cwd()
            os.chdir(folder)
            try:
                write(folder)
            finally:
                os.chdir(before)
            made[write] = folder
        return made[write]

    return ground


def makes(block: Block) -> set[str]:
    """The names that a block's commands make; a run that is resumed is there before."""
    if "--resume" in block.text:
        return set()
    return {name.partition("/")[0] for name in re.findall(r"--out (\S+)", block.text)}


def expanded(word: str, line: str) -> list[str]:
    """What a shell makes of a word: the names that a bare pattern matches."""
    bare = "*" in word and f"'{word}'" not in line
    return (sorted(str(p) for p in Path().glob(word)) if bare else []) or [word]


def run_line(line: str) -> None:
    if line.startswith("pip install") or re.match(r"\w+=\$\(", line):
        return  # extras are looked at above; a name is set by `smaller`
    program, *words = [name for word in shlex.split(line) for name in expanded(word, line)]
    if words[:1] == ["run"] and not {"--steps", "--epochs"} & set(words):
        words += ["--steps", "2"]  # instead of the default, a thousand
    if program in page_ground.MAINS:
        result = page_ground.invoke(program, words)
        if "which is not installed" in result.output:
            pytest.skip(result.output.strip().splitlines()[-1])
        assert result.exit_code == 0, (line, result.output, result.exception)
    else:
        subprocess.run([program, *words], check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("block", RUN_HERE, ids=str)
def test_a_block_runs(block, grounds, tmp_path, monkeypatch):
    """As printed, but for a tiny teacher, a tiny student and two steps; a name on the page is what the ground has."""
    page_ground.lay(grounds(block.page), tmp_path, without=makes(block))
    monkeypatch.chdir(tmp_path)
    if block.heading in TEACHERS:
        (tmp_path / "TEACHER").symlink_to(tmp_path / TEACHERS[block.heading])
    if "latency.json" in block.text:
        page_ground.write_latency(tmp_path)
    if "seed*" in block.text:
        page_ground.write_seeds(tmp_path)
    text = page_ground.smaller(block.text)
    if block.language == "sh":
        for line in commands(text):
            run_line(line)
        return
    shard = next(iter(sorted((tmp_path / "heldout" / "data").iterdir())), None)
    names: dict[str, Any] = {"__name__": "snippet", "STORE": "heldout", "SHARD": shard}
    if block.heading == "Zarr":
        page_ground.done("softlabels convert heldout --container zarr --out zarr")
        names["SHARD"] = next(iter(sorted((tmp_path / "zarr" / "data").iterdir())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the libraries warn each other of
        exec(compile(text, str(block), "exec"), names)


def test_the_ground_lacks_what_a_block_makes_and_has_the_rest(tmp_path):
    ground, folder = tmp_path / "ground", tmp_path / "folder"
    for name in ("store", "run"):
        (ground / name).mkdir(parents=True)
    folder.mkdir()
    (block,) = blocks_in("```sh\nsoftlabels build --out store\n```\n", "x.md")
    page_ground.lay(ground, folder, without=makes(block))
    assert [p.name for p in folder.iterdir()] == ["run"]


def test_a_bare_pattern_is_the_names_that_it_matches(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b1", "a1", "a2"):
        Path(name).touch()
    assert expanded("a*", "report a*") == ["a1", "a2"]
    assert expanded("a*", "build 'a*'") == ["a*"]
    assert expanded("c*", "report c*") == ["c*"]


def test_marks_languages_and_lines_are_seen():
    text = "# A\n\n<!-- not run: two words -->\n```sh\na \\\n  b # c\n```\n\n## B\n\n```python\nx = 1\n```\n"
    first, second = blocks_in(text, "x.md")
    assert (first.line, first.language, first.reason, first.heading) == (5, "sh", "two words", "A")
    assert (second.reason, second.heading, second.runs, first.runs) == (None, "B", True, False)
    assert commands(first.text) == ["a b"]
    assert DOCS.is_dir()
