"""`softtrain opd`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlabels.console.options import Command, config_options
from softlabels.console.tables import table
from softlabels.console.terminal import Bar, LocalPath, emit, json_option
from softlabels.core.settings import from_sources
from trainers.generation.opd_config import OpdConfig

if TYPE_CHECKING:
    from trainers.generation.opd import OwnText, Unscored


@click.command("opd", cls=Command)
@click.argument("run", type=LocalPath())
@click.option(
    "--out", required=True, type=LocalPath(file_okay=False), help="Folder for texts, stores, runs."
)
@config_options(OpdConfig, file=False)
@json_option
def opd_command(run: Path, out: Path, **flags: Any) -> None:
    """Teach a finished run's student on text that it writes itself, scored once by the teacher that taught it.

    The student writes, the teacher scores that in a process of its own, and the student goes on from there with
    the reverse KL of the tokens that it drew. A store of another teacher is refused. The same command goes on
    after an interruption, and with more --rounds.

    \b
    Examples:
      softtrain opd run --prompts store --teacher hf:teacher --n 4 --judge --out own
      softtrain opd run --prompts store --n 4 --out own      # says how to score the text elsewhere
    """
    config = from_sources(OpdConfig, None, flags)
    from trainers.generation.opd import opd

    with Bar() as bar:
        texts, unscored = opd(run, out, config, bar)
    found = {
        "out": str(out),
        "texts": [
            {**asdict(t), "reverse_kl": t.reverse_kl, "store": str(t.store)}
            | {"student": t.student and str(t.student)}
            for t in texts
        ],
        "unscored": unscored and {**asdict(unscored), "text": str(unscored.text)},
    }
    emit(found, _said(texts, unscored))


def _said(texts: list[OwnText], unscored: Unscored | None) -> str:
    parts = []
    if texts:
        rows = [
            [
                f"{t.round}",
                f"{t.sequences:,}",
                f"{t.tokens:,}",
                f"{t.reverse_kl:.4f}",
                "-" if t.student is None else str(t.student),
            ]
            for t in texts
        ]
        columns = ["round", "sequences", "tokens", "reverse KL", "learnt from by"]
        title = "Text of each student, nats a token from its teacher"
        parts.append(table(title, columns, rows))
    if unscored is not None:
        parts.append(
            f"{unscored.text}: awaits the teacher. Score it where that is, then give this command again:\n"
            f"  {unscored.command} --teacher TEACHER"
        )
    return "\n".join(parts)
