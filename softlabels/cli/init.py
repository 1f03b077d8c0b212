"""`softlabels init`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlabels.console.options import Command
from softlabels.console.tables import in_columns
from softlabels.console.terminal import Bar, LocalPath, emit, json_option, wants_json
from softlabels.core.progress import duration
from softlabels.errors import ConfigError

if TYPE_CHECKING:
    from softlabels.start.job import Begun

POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command("init", cls=Command)
@click.option(
    "--corpus",
    help="Text to teach on: book.txt, chats.jsonl, a folder, KIND:PATTERN, or a data set of the local hub cache.",
)
@click.option(
    "--teacher",
    help="Model that teaches: a folder, a .gguf file, ORG/NAME of the local hub cache, or KIND:PATH as of build.",
)
@click.option(
    "--heldout",
    metavar="CORPUS",
    help="Text to test on; or none. Default: a twentieth of the corpus.",
)
@click.option(
    "--student",
    metavar="SPEC",
    help="Student, as of softtrain run. Default: a new one, sized to text and vocabulary.",
)
@click.option("--licence", default="unknown", help="Licence of the targets, an SPDX expression.")
@click.option(
    "--disk-gb",
    type=POSITIVE,
    help="Most GB that the store may take. Default: half of what is free.",
)
@click.option("--hours", type=POSITIVE, help="Most hours that the teacher may take. Default: any.")
@click.option(
    "--tokens-per-second",
    type=POSITIVE,
    help="Tokens that the teacher reads in a second, if you know. Default: estimated from its size.",
)
@click.option("--out", type=LocalPath(), help="Folder to write, not there yet. Default: distil.")
@json_option
def init_command(corpus: str | None, teacher: str | None, out: Path | None, **flags: Any) -> None:
    """Begin with your own text: write a commented job.toml and run.toml that fit corpus, teacher and budget.

    Looks at the text and at the teacher's tokenizer and configuration; its weights are not loaded. On a terminal, asks
    for what was not given. Nothing is fetched, and nothing that is there is overwritten.

    \b
    Examples:
      softlabels init
      softlabels init --corpus my.jsonl --teacher models/teacher --out distil
      softlabels init --corpus 'text:books/*.txt' --teacher org/name --disk-gb 20 --hours 8 --out distil
    """
    asking = sys.stdin.isatty() and not wants_json()
    corpus = corpus or _ask("corpus", "Text to teach on (a file, a folder)", asking)
    teacher = teacher or _ask("teacher", "Teacher (a folder, a .gguf file, org/name)", asking)
    if asking and flags["hours"] is None:
        hours = click.prompt("Hours that the teacher may take (0: any)", 0.0, err=True)
        flags["hours"] = hours if hours > 0 else None
    if out is None:
        asked = click.prompt("Folder to write", default="distil", err=True) if asking else "distil"
        out = Path(asked)
    from softlabels.start.job import Asked, begin_job

    with Bar() as bar:
        begun = begin_job(Asked(corpus=corpus, teacher=teacher, **flags), out, bar)
    chosen = {c.key: c.value for c in (*begun.presets.job, *begun.presets.run)}
    value = {
        "folder": str(out),
        "tokens": round(begun.presets.tokens),
        "data_bytes": round(begun.presets.data_bytes),
        "hours": begun.presets.hours,
        "chosen": chosen,
        "heldout": begun.split.heldout,
        "commands": begun.commands,
    }
    emit(value, _text(begun, out, chosen))


def _ask(flag: str, question: str, asking: bool) -> str:
    if not asking:
        raise ConfigError(f"--{flag} is missing")
    return str(click.prompt(question, err=True))


def _text(begun: Begun, out: Path, chosen: dict[str, object]) -> str:
    presets, teacher = begun.presets, begun.teacher
    lines = {}
    if teacher is not None:
        lines["teacher"] = f"{teacher.record.name}, {teacher.record.vocab_size:,} ids"
    lines |= {
        "text": f"about {presets.tokens:,.0f} tokens, in rows of at most {presets.seq_len}",
        "held out": begun.split.why,
        "store": f"about {presets.data_bytes / 1e6:,.1f} MB: {chosen['estimator']}, k={chosen['k']}, packed",
    }
    if presets.hours is not None:
        lines["teacher runs"] = (
            f"about {duration(presets.hours * 3600)}, estimated from its size; `softlabels build … --dry-run` measures"
        )
    lines["student"] = f"{chosen['student']}, {chosen['epochs']} epochs"
    named = sorted(p.name for p in out.iterdir())
    lines["written"] = f"{out}: {', '.join(named)}"
    commands = "\n".join(f"  {c}" for c in begun.commands)
    return f"{in_columns(lines)}\neach setting says why in {shlex.quote(str(out))}/*.toml; next:\n{commands}"
