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
from softlabels.core.settings import check_at_least, check_fits, flags_of, from_sources
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
    texts: int = 3
    """Beginnings of held-out text that the students go on with, each time with the most probable token; 0: none."""
    text_tokens: int = 48
    """Most tokens to write after each beginning."""
    text_seconds: float = 60.0
    """Most seconds to spend on the text of one model."""
    teacher: str | None = None
    """Folder of a causal LM of transformers, such as the teacher, to write beside the students."""
    price: float | None = None
    """Price of an hour of the machine, in any currency: the page says what each run cost."""

    def __post_init__(self) -> None:
        check_weights(self.weights)
        check_at_least(self, texts=0, text_tokens=1)
        price, seconds = self.price, self.text_seconds
        check_fits(
            self,
            text_seconds=(0 < seconds < float("inf"), "a number above 0"),
            price=(price is None or 0 <= price < float("inf"), "at least 0"),
        )


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

    The page needs no network and no other file. Its numbers are those of softtrain eval. Runs that differ in their
    seeds only are one entry, with their mean and spread.

    \b
    Examples:
      softtrain report run --store heldout --out report.html
      softtrain report soft hard --out report.html
      softtrain report soft-seed* hard-seed* --price 2.49 --out report.html
    """
    from softlabels.report.page import check_page, write_page
    from softlabels.store.reader import open_store
    from trainers.report.findings import Findings
    from trainers.report.page import render
    from trainers.report.runs import gather, is_evaluated
    from trainers.report.speed import read_speed
    from trainers.report.texts import Asked, continued_texts

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
    findings = Findings.of(gather(runs, digest=digest, weights=weights, made=made))
    asked = Asked(
        prompts=config.texts,
        tokens=config.text_tokens,
        seconds=config.text_seconds,
        teacher=None if config.teacher is None else Path(config.teacher),
    )
    with Bar() as bar:
        texts = continued_texts(findings.styled, asked, weights=weights, report=bar)
    words = ["softtrain", "report", *map(str, runs), "--out", str(out)]
    command = shlex.join([*words, *flags_of(ReportConfig, vars(config))])
    page = render(findings, command=command, latency=figures, texts=texts, price=config.price)
    write_page(out, page)
    emit({"report": str(out), "runs": [str(r) for r in runs]}, f"report: {out}")
