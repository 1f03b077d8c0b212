"""`softlabels report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from softlabels.cli.demands import demand_options
from softlabels.console.options import Command
from softlabels.console.terminal import LocalPath, emit, json_option, say


@click.command("report", cls=Command)
@click.argument("store", type=LocalPath())
@click.option(
    "--out",
    default="store.html",
    show_default=True,
    type=LocalPath(),
    help="The page to write.",
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="Rows to look at, about: whole shards, spread evenly.",
)
@demand_options
@json_option
def report_command(store: Path, out: Path, rows: int, **demand: Any) -> None:
    """Draw one page about a store: what is kept, where the teacher hesitates, what it costs.

    The page needs no network and no other file.

    \b
    Example:
      softlabels report store --out store.html
    """
    from softlabels.report.page import check_page, write_page
    from softlabels.report.store_facts import gather
    from softlabels.report.store_page import render
    from softlabels.store.reader import open_store

    check_page(out)
    opened = open_store(store, **demand)
    found = gather(opened, rows=rows)
    write_page(out, render(opened, found))
    if found.trouble is not None:
        say(found.trouble)
    values = {"report": str(out), "rows": found.rows, "positions": found.positions}
    emit(values, f"report: {out}")
