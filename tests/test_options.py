"""Flags of both command lines: aliases reach them, headings order them, and help texts stand alone."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_type_hints

import click
import pytest
from click.testing import CliRunner

from softlabels.builder.config import BuildConfig
from softlabels.cli.main import main as softlabels_main
from softlabels.console.options import ALIASES, ALIASES_LINE, OTHERWISE, Command
from softlabels.core.settings import Group
from trainers.cli import main as softtrain_main
from trainers.run.config import RunConfig

MAINS = {"softlabels": softlabels_main, "softtrain": softtrain_main}
COMMANDS = [
    pytest.param(command, id=f"{program} {name}")
    for program, main in MAINS.items()
    for name, command in main.commands.items()
]
ALIASED = [
    pytest.param(command, option, alias, id=f"{program} {name} {alias}")
    for program, main in MAINS.items()
    for name, command in main.commands.items()
    for option in command.params
    for flag in option.opts
    for alias in ALIASES.get(flag, ())
]
SAMPLES = {"integer": "3", "float": "0.25", "directory": "somewhere", "path": "somewhere"}


def help_of(command: click.Command) -> str:
    context = click.Context(command, info_name=command.name, **command.context_settings)
    return command.get_help(context)


def parsed(command: click.Command, *arguments: str) -> dict[str, object]:
    """What the flags come to, without what is missing."""
    return command.make_context(
        command.name, list(arguments), resilient_parsing=True, ignore_unknown_options=False
    ).params


# -- aliases --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_part(command):
    assert isinstance(command, Command)


@pytest.mark.parametrize(("command", "option", "alias"), ALIASED)
def test_an_alias_reaches_its_flag(command, option, alias):
    (flag,) = (f for f in option.opts if f in ALIASES)
    value = SAMPLES.get(option.type.name, "some")
    found = parsed(command, alias, value)
    assert found == parsed(command, flag, value)
    assert found[option.name] not in (None, ()), "it was given"
    assert found != parsed(command)
    if alias.startswith("--"):
        assert parsed(command, f"{alias}={value}") == found


@pytest.mark.parametrize(("command", "option", "alias"), ALIASED)
def test_an_alias_is_not_shown(command, option, alias):
    assert f"{alias} " not in help_of(command).replace("\n", " ")


def test_every_alias_is_of_some_command_and_said_once():
    flags = {f for c in COMMANDS for p in c.values[0].params for f in p.opts}
    assert set(ALIASES) <= flags
    page = Path(__file__).parents[1].joinpath("docs/cli.md").read_text(encoding="utf-8")
    for main in MAINS.values():
        text = help_of(main).partition("Commands:")[2]
        assert "".join(ALIASES_LINE.split()) in "".join(text.split()), "but for where lines break"
    assert page.count("--learning-rate") == len(MAINS)


@pytest.mark.parametrize("flag", OTHERWISE)
def test_a_flag_that_means_something_else_is_explained(flag):
    result = CliRunner().invoke(softtrain_main, ["run", flag, "4", "--out", "x"])
    assert result.exit_code == 2
    instead, how = OTHERWISE[flag]
    assert f"No such option: {flag}; {instead} {how}." in result.stderr
    other = CliRunner().invoke(softlabels_main, ["verify", flag, "4"])
    assert instead not in other.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_h_is_help(command):
    result = CliRunner().invoke(
        next(m for m in MAINS.values() if command in m.commands.values()), [command.name, "-h"]
    )
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")


# -- headings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [BuildConfig, RunConfig])
def test_every_field_stands_under_a_heading(cls):
    hints = get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        marks = getattr(hints[field.name], "__metadata__", ())
        assert [m for m in marks if isinstance(m, Group)], field.name


@pytest.mark.parametrize(
    ("command", "flag", "heading"),
    [
        (softtrain_main.commands["run"], "--alpha ", "Loss"),
        (softtrain_main.commands["run"], "--store ", "Data"),
        (softtrain_main.commands["run"], "--lr ", "Schedule and optimiser"),
        (softtrain_main.commands["run"], "--resume ", "Options"),
        (softlabels_main.commands["build"], "--estimator ", "Targets"),
        (softlabels_main.commands["build"], "--corpus ", "Corpus"),
    ],
)
def test_help_is_grouped(command, flag, heading):
    text = help_of(command)
    (section,) = (s for s in text.split("\n\n") if f"\n  {flag}" in s)
    assert section.startswith(f"{heading}:\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_shown_once(command):
    text = help_of(command).partition("\nOptions:\n")[2]
    for option in command.params:
        if isinstance(option, click.Option):
            assert len(re.findall(rf"^  {option.opts[0]}(?= |$)", text, re.MULTILINE)) == 1


# -- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_texts_stand_alone(command):
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert option.help.split()[0] not in {"Of", "Likewise,", "Likewise"}, option.help
            assert option.help.endswith("."), option.help
