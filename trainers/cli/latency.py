"""`softtrain latency`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from softlabels.console.options import Command, config_options
from softlabels.console.tables import table
from softlabels.console.terminal import Bar, emit, json_option, wants_json
from softlabels.core.settings import from_sources
from trainers.exports.latency_config import LatencyConfig

COLUMNS = ("model", "engine", "parameters", "file MB", "peak MiB", "p50 ms", "p95 ms")


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
    unit = values["figures"][0]["unit"]
    rows = [
        (
            f["name"],
            f["engine"],
            f"{f['parameters']:,}",
            f"{f['model_bytes'] / 1e6:,.1f}",
            f"{f['peak_bytes'] / 2**20:,.0f}",
            f"{1e3 * f['p50']:,.1f}",
            f"{1e3 * f['p95']:,.1f}",
            f"{f['throughput']:,.0f}",
        )
        for f in values["figures"]
    ]
    title = f"CPU, {values['threads']} thread(s); throughput at batch {values['batch_size']}"
    return table(title, (*COLUMNS, f"{unit}/s"), rows, words=2)
