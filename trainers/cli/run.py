"""`softtrain run`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from softlabels.cli.options import Command, config_options
from softlabels.cli.terminal import Bar, LocalPath, emit, json_option
from softlabels.core.settings import out_from
from trainers.run.config import RunConfig

__all__ = ["run_command"]


class _RunBar:
    """A run's progress as a bar."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.heldout = ""

    def notice(self, message: str) -> None:
        self.bar.notice(message)

    def start(self, done: int, steps: int) -> None:
        self.bar.stage("train", steps, "steps", done)

    def step(self, metrics: dict[str, float] | None) -> None:
        note = None
        if metrics is not None:
            rate = metrics["positions_per_second"]
            note = (
                f"loss {metrics['loss']:.3f}, hard {metrics['hard']:.3f}, {rate:,.0f} positions/s"
            )
            if "heldout_nll" in metrics:
                self.heldout = f", held-out {metrics['heldout_nll']:.3f}"
            note += self.heldout
        self.bar.advance(1, note)


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
def run_command(
    config_file: Path | None, out: Path | None, resume: bool, as_json: bool, **flags: Any
) -> None:
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
    from trainers.run.reduce import is_first
    from trainers.run.setup import train
    from trainers.run.summary import read_config, summary_of, summary_text
    from trainers.run.vocabulary import read_dropped

    begun = time.monotonic()
    with Bar(quiet=not is_first()) as bar:
        train(config, out, resume=resume, reporter=_RunBar(bar))
    if not is_first():
        return
    seconds = time.monotonic() - begun
    result = summary_of(out)
    text = summary_text(result, read_config(out), seconds)
    result["seconds"] = seconds
    if config.vocab is not None:
        result |= read_dropped(out)
    if config.forgetting:
        result["forgetting"] = read_forgetting(out)
    emit(result, text, as_json=as_json)
