"""`softtrain report`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

import trainers
from softlabels.console.options import Command
from softlabels.console.terminal import Bar, LocalPath, emit, json_option

if TYPE_CHECKING:
    from trainers.evaluation.evaluations import Assessment


@click.command("report", cls=Command)
@click.argument("runs", nargs=-1, required=True, type=LocalPath())
@click.option(
    "--out",
    default="report.html",
    show_default=True,
    type=LocalPath(),
    help="The page to write.",
)
@click.option(
    "--store",
    type=LocalPath(),
    help="Store of held-out rows; runs not evaluated on it yet are, now. Default: the one they were evaluated on.",
)
@click.option(
    "--weights",
    type=click.Choice(["student", "ema", "best"]),
    default="student",
    show_default=True,
    help="Which weights of the runs, as of softtrain eval.",
)
@click.option(
    "--latency", type=LocalPath(), help="What softtrain latency --json printed, to be shown, too."
)
@json_option
def report_command(
    runs: tuple[Path, ...],
    out: Path,
    store: Path | None,
    weights: str,
    latency: Path | None,
) -> None:
    """Draw one page about finished runs, side by side.

    The page needs no network and no other file. Its numbers are those of softtrain eval.

    \b
    Examples:
      softtrain report run --store heldout --out report.html
      softtrain report soft hard --out report.html
    """
    from softlabels.report.page import check_page, write_page
    from trainers.report.page import render
    from trainers.report.runs import gather
    from trainers.report.speed import read_speed

    check_page(out)
    figures = None if latency is None else read_speed(latency)
    digest = None
    made: dict[Path, Assessment] = {}
    if store is not None:
        from softlabels.store.reader import open_store

        digest = open_store(store).digest
        with Bar() as bar:
            made = _evaluate_missing(runs, store, digest, weights, bar)
    reported = gather(runs, digest=digest, weights=weights, made=made)
    words = ["softtrain", "report", *map(str, runs), "--out", str(out)]
    words += [] if store is None else ["--store", str(store)]
    words += [] if weights == "student" else ["--weights", weights]
    words += [] if latency is None else ["--latency", str(latency)]
    write_page(out, render(reported, command=shlex.join(words), latency=figures))
    emit({"report": str(out), "runs": [str(r) for r in runs]}, f"report: {out}")


def _evaluate_missing(
    runs: tuple[Path, ...], store: Path, digest: str, weights: str, bar: Bar
) -> dict[Path, Assessment]:
    from trainers.report.runs import is_evaluated

    made: dict[Path, Assessment] = {}
    for run in runs:
        if is_evaluated(run, digest, weights):
            continue
        found = trainers.evaluate(run=run, store=str(store), weights=weights, progress=bar)
        made[run] = found.assessment
    return made
