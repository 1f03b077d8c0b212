"""`softtrain generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import trainers
from softlabels.console.options import Command, config_options
from softlabels.console.terminal import Bar, LocalPath, emit, json_option
from softlabels.core.settings import from_sources
from trainers.generation.config import GenerateConfig


@click.command("generate", cls=Command)
@click.argument("run", type=LocalPath())
@click.option(
    "--out",
    required=True,
    type=LocalPath(),
    help="FILE.jsonl (texts) or FILE.parquet (the very ids).",
)
@config_options(GenerateConfig, file=False)
@json_option
def generate_command(run: Path, out: Path, **flags: Any) -> None:
    """Sample sequences from a finished run's student: a corpus for softlabels build.

    \b
    Examples:
      softtrain generate run --prompts store --limit 1000 --out own.parquet
      softlabels build --teacher hf:teacher --corpus ids:own.parquet --out own-store
    """
    config = from_sources(GenerateConfig, None, flags)
    with Bar() as bar:
        found = trainers.generate(run=run, out=out, progress=bar, **vars(config))
    text = (
        f"{out}: {found.sequences:,} sequences, {found.tokens:,} tokens; {found.unfinished:,} were cut at "
        f"--max-new-tokens, {found.empty:,} ended at once"
    )
    if found.retokenised is not None:
        text += f"; the text of {found.retokenised:,} has other tokens than were sampled (a .parquet keeps them)"
    emit({"run": str(run), "out": str(out), **found._asdict()}, text)
