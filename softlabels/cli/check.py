"""`softlabels check`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlabels.builder.config import BuildConfig
from softlabels.builder.purposes import purpose_of
from softlabels.cli.purpose import config_for, for_option
from softlabels.console.options import Command, config_options
from softlabels.console.terminal import Bar, LocalPath, emit, json_option
from softlabels.core.settings import out_if_said

if TYPE_CHECKING:
    from softlabels.start.check import Checked


@click.command("check", cls=Command)
@click.argument(
    "config_file", metavar="[JOB.toml]", required=False, type=click.Path(path_type=Path)
)
@click.option("--out", type=LocalPath(), help="Folder of the store, to look at the disk it is on.")
@click.option(
    "--heldout",
    multiple=True,
    metavar="CORPUS",
    help="Held-out text, or the TOML of its build: nothing of it may be trained on (repeatable).",
)
@click.option(
    "--student",
    metavar="SPEC",
    help="Student whose context and vocabulary the rows must fit, as of softtrain run.",
)
@for_option
@config_options(BuildConfig)
@json_option
def check_command(
    config_file: Path | None,
    out: Path | None,
    heldout: tuple[str, ...],
    student: str | None,
    purpose: str | None,
    **flags: Any,
) -> None:
    """Check a build before the teacher is loaded: the text, its fields and lengths, overlap, licence, disk.

    Reads the whole corpus once, tokenises its first megabyte with the teacher's tokenizer, and writes nothing. JOB.toml
    and flags are those of `softlabels build`. Exit code 1: something must be mended.

    \b
    Examples:
      softlabels check job.toml
      softlabels check job.toml --heldout heldout.toml --student hf:models/student
      softlabels check --teacher hf:models/teacher --corpus chats.jsonl
    """
    from softlabels.start.check import check_job
    from softlabels.start.findings import Level, worst

    config = config_for(purpose, config_file, flags)
    out = out_if_said(config_file, out)
    with Bar() as bar:
        checked = check_job(config, out, bar, heldout=_heldout(heldout), student=student)
    level = worst(checked.findings)
    value = {"ok": level != Level.MEND, "findings": [asdict(f) for f in checked.findings]}
    emit(value, _text(checked))
    if level == Level.MEND:
        click.get_current_context().exit(1)


def _heldout(given: tuple[str, ...]) -> tuple[str, ...]:
    """Corpora; of a TOML file those of its build."""
    corpora: list[str] = []
    for one in given:
        if one.endswith(".toml"):
            toml = Path(one)
            corpora += BuildConfig.from_sources(toml, {}, purpose=purpose_of(None, toml, {})).corpus
        else:
            corpora.append(one)
    return tuple(corpora)


def _text(checked: Checked) -> str:
    from softlabels.start.findings import Level

    lines = []
    for f in checked.findings:
        mark = {Level.FINE: "ok", Level.LOOK: "look", Level.MEND: "MEND"}[f.level]
        lines.append(f"{mark:>5}  {f.subject:<9}  {_indented(f.found)}")
        if f.way_out:
            lines.append(f"{'':>5}  {'':<9}  -> {_indented(f.way_out, 3)}")
    wrong = sum(f.level == Level.MEND for f in checked.findings)
    looks = sum(f.level == Level.LOOK for f in checked.findings)
    closing = f"{wrong} to mend, {looks} to look at" if wrong or looks else "nothing to mend"
    return "\n".join([*lines, closing])


def _indented(text: str, more: int = 0) -> str:
    return text.replace("\n", "\n" + " " * (18 + more))
