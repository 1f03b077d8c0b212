"""`softtrain run`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

import trainers
from softlabels.console.options import Command, config_options
from softlabels.console.terminal import Bar, LocalPath, emit, json_option
from softlabels.core.settings import out_from
from trainers.run.config import RunConfig


@click.command("run", cls=Command)
@click.argument(
    "config_file", metavar="[CONFIG.toml]", required=False, type=click.Path(path_type=Path)
)
@click.option(
    "--out",
    type=LocalPath(file_okay=False),
    help="Folder of the run (needed, here or in the file).",
)
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint, to the bit.")
@config_options(RunConfig)
@json_option
def run_command(config_file: Path | None, out: Path | None, resume: bool, **flags: Any) -> None:
    """Train a student from a store.

    Flags win over CONFIG.toml, whose keys are the flags' names with underscores.

    \b
    Examples:
      softtrain run --store store --student new:10M --steps 2000 --out run
      softtrain run --store store --student hf:student --temperature 2 --alpha 0.9 --out run
      softtrain run --init run --store new=0.8 --store store=0.2 --forgetting heldout --out next
      torchrun --nproc-per-node 4 $(which softtrain) run --store store --student hf:student --out run
    """
    config = RunConfig.from_sources(config_file, flags)
    out = out_from(config_file, out)
    from trainers.evaluation.forgetting import read_forgetting
    from trainers.run.record import read_run_record
    from trainers.run.reduce import is_first
    from trainers.run.summary import summary_of, summary_text
    from trainers.run.vocabulary import read_dropped

    begun = time.monotonic()
    with Bar(quiet=not is_first()) as bar:
        trainers.train(out=out, resume=resume, progress=bar, **vars(config))
    if not is_first():
        return
    seconds = time.monotonic() - begun
    result = summary_of(out)
    text = summary_text(result, read_run_record(out)["config"], seconds)
    result["seconds"] = seconds
    if config.vocab is not None:
        result |= read_dropped(out)
    if config.forgetting:
        result["forgetting"] = read_forgetting(out)
    emit(result, text)
