"""`softtrain latency`."""

from __future__ import annotations

import io
from dataclasses import asdict
from typing import Any

import click

from softlabels.console.options import Command, config_options
from softlabels.console.terminal import Bar, emit, json_option, wants_json
from softlabels.core.settings import from_sources
from trainers.exports.latency_config import LatencyConfig


@click.command("latency", cls=Command)
@click.argument("subjects", nargs=-1, required=True, metavar="RUN|EXPORT|hf:PATH…")
@config_options(LatencyConfig, file=False)
@json_option
def latency_command(subjects: tuple[str, ...], **flags: Any) -> None:
    """Measure what students, exports and a teacher cost to run on this CPU, side by side.

    Parameters, file size, peak memory, latency of one row, throughput of a batch. Each in a process of its own.

    \b
    Example:
      softtrain latency run student-int8 --teacher hf:models/teacher --store heldout
    """
    config = from_sources(LatencyConfig, None, flags)
    from trainers.exports.latency import measure

    with Bar() as bar:
        figures = measure(subjects, config, bar)
    values = {
        "store": config.store,
        "threads": config.threads,
        "batch_size": config.batch_size,
        "figures": [asdict(f) for f in figures],
    }
    emit(values, "" if wants_json() else _table(values))


def _table(values: dict[str, Any]) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"CPU, {values['threads']} thread(s); throughput at batch {values['batch_size']}"
    )
    for column in (
        "model",
        "engine",
        "parameters",
        "file MB",
        "peak MiB",
        "p50 ms",
        "p95 ms",
        f"{values['figures'][0]['unit']}/s",
    ):
        table.add_column(column, justify="left" if column in ("model", "engine") else "right")
    for f in values["figures"]:
        table.add_row(
            f["name"],
            f["engine"],
            f"{f['parameters']:,}",
            f"{f['model_bytes'] / 1e6:,.1f}",
            f"{f['peak_bytes'] / 2**20:,.0f}",
            f"{1e3 * f['p50']:,.1f}",
            f"{1e3 * f['p95']:,.1f}",
            f"{f['throughput']:,.0f}",
        )
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text().rstrip()
