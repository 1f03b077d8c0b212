"""`softtrain report`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import trainers
from softlabels.console.options import Command, config_options
from softlabels.console.terminal import Bar, LocalPath, emit, json_option
from softlabels.core.settings import flags_of, from_sources
from trainers.run.record import check_weights

if TYPE_CHECKING:
    from trainers.evaluation.evaluations import Assessment


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What a report of runs is asked for."""

    store: str | None = None
    """Store of held-out rows; runs not evaluated on it yet are, now. Default: the one they were evaluated on."""
    weights: str = "student"
    """Weights of the runs, as of softtrain eval: `student`, `ema` or `best`."""
    latency: str | None = None
    """What `softtrain latency --json` printed, to be shown, too."""

    def __post_init__(self) -> None:
        check_weights(self.weights)


@click.command("report", cls=Command)
@click.argument("runs", nargs=-1, required=True, type=LocalPath())
@click.option(
    "--out",
    default="report.html",
    show_default=True,
    type=LocalPath(),
    help="The page to write.",
)
@config_options(ReportConfig, file=False)
@json_option
def report_command(runs: tuple[Path, ...], out: Path, **flags: Any) -> None:
    """Draw one page about finished runs, side by side.

    The page needs no network and no other file. Its numbers are those of softtrain eval.

    \b
    Examples:
      softtrain report run --store heldout --out report.html
      softtrain report soft hard --out report.html
    """
    from softlabels.report.page import check_page, write_page
    from softlabels.store.reader import open_store
    from trainers.report.page import render
    from trainers.report.runs import gather, is_evaluated
    from trainers.report.speed import read_speed

    config = from_sources(ReportConfig, None, flags)
    store, weights = config.store, config.weights
    check_page(out)
    figures = None if config.latency is None else read_speed(Path(config.latency))
    digest = None
    made: dict[Path, Assessment] = {}
    if store is not None:
        digest = open_store(store).digest
        with Bar() as bar:
            for run in runs:
                if not is_evaluated(run, digest, weights):
                    found = trainers.evaluate(run=run, store=store, weights=weights, progress=bar)
                    made[run] = found.assessment
    reported = gather(runs, digest=digest, weights=weights, made=made)
    words = ["softtrain", "report", *map(str, runs), "--out", str(out)]
    command = shlex.join([*words, *flags_of(ReportConfig, vars(config))])
    write_page(out, render(reported, command=command, latency=figures))
    emit({"report": str(out), "runs": [str(r) for r in runs]}, f"report: {out}")
