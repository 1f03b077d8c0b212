"""`softtrain watch`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlabels.console.options import Command, config_options
from softlabels.console.terminal import LocalPath, emit, json_option, say
from softlabels.core.settings import check_fits, from_sources

if TYPE_CHECKING:
    from trainers.report.watching import Look, Watch


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """How to watch."""

    every: float = 10.0
    """Seconds between two looks, after which the browser loads the page anew as well."""
    once: bool = False
    """Draw the page once, and end."""

    def __post_init__(self) -> None:
        check_fits(self, every=(0.1 <= self.every <= 86_400, "0.1 to 86400 seconds"))


@click.command("watch", cls=Command)
@click.argument("runs", nargs=-1, required=True, type=LocalPath())
@click.option(
    "--out",
    default="watch.html",
    show_default=True,
    type=LocalPath(),
    help="The page to write.",
)
@config_options(WatchConfig, file=False)
@json_option
def watch_command(runs: tuple[Path, ...], out: Path, **flags: Any) -> None:
    """Keep a page about runs that are at work: how far they are, time left, losses, whether they are alive.

    The page needs no network and no other file, and loads itself anew without a script. It ends with the last of the
    runs. Nothing is asked of the runs and nothing is written to them, so it may be begun and stopped at any time.

    \b
    Examples:
      softtrain watch run
      softtrain watch soft hard --every 30 --out both.html
    """
    from softlabels.report.page import check_page
    from trainers.report.runs import names_of
    from trainers.report.watching import Watch

    config = from_sources(WatchConfig, None, flags)
    check_page(out)
    watches = [Watch(run=run, name=name) for run, name in zip(runs, names_of(runs), strict=True)]
    looks = _watch(watches, out, config)
    emit(
        {
            "report": str(out),
            "runs": [
                {
                    "run": str(x.path),
                    "state": x.state.name.lower(),
                    "step": x.step,
                    "steps": x.steps,
                }
                for x in looks
            ],
        },
        "\n".join(f"{x.path}: {x.state.value}, step {x.step:,} of {x.steps:,}" for x in looks),
    )


def _watch(watches: list[Watch], out: Path, config: WatchConfig) -> list[Look]:
    """Draw until all have ended, or somebody stops it; the last page does not load itself anew."""
    from softlabels.report.page import write_page
    from trainers.report.watch_page import render

    told = False
    while True:
        looks = [watch.look(time.monotonic()) for watch in watches]
        last = config.once or all(look.ended for look in looks)
        write_page(out, render(looks, every=None if last else config.every, at=time.time()))
        if last:
            return looks
        if not told:
            say(f"{out}: open it in a browser; it is drawn anew every {config.every:g} s")
            told = True
        try:
            time.sleep(config.every)
        except KeyboardInterrupt:
            write_page(out, render(looks, every=None, at=time.time()))
            raise
