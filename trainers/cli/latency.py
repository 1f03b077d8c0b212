"""`softtrain latency`."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from softlabels.cli.options import Command
from softlabels.cli.terminal import Bar, LocalPath, emit, json_option

__all__ = ["latency_command"]


@click.command("latency", cls=Command)
@click.argument("subjects", nargs=-1, required=True, metavar="RUN|EXPORT|hf:PATH…")
@click.option("--store", required=True, type=LocalPath(), help="Store whose rows to run on.")
@click.option("--teacher", help="Its teacher, to compare with: hf:PATH.")
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Choice(["torch", "onnxruntime"]),
    help="In what runs and models are measured; repeatable; default: both. An export has its own.",
)
@click.option(
    "--weights",
    type=click.Choice(["student", "ema", "best"]),
    default="student",
    show_default=True,
    help="Which weights of a run.",
)
@click.option(
    "--batch-size",
    type=int,
    default=8,
    show_default=True,
    help="Rows of a batch when throughput is measured.",
)
@click.option("--repeats", type=int, default=20, show_default=True, help="Calls in a round.")
@click.option(
    "--rounds", type=int, default=3, show_default=True, help="How often each is measured, in turn."
)
@click.option(
    "--threads", type=int, default=1, show_default=True, help="CPU threads of the engine."
)
@click.option("--vocab", help="Read the store in another vocabulary: trim:N or map:FILE.")
@click.option(
    "--images",
    multiple=True,
    help="Images of a store of images, as it was built from them, e.g. arrays:FILE.npz.",
)
@json_option
def latency_command(
    subjects: tuple[str, ...],
    store: Path,
    teacher: str | None,
    engines: tuple[str, ...],
    weights: str,
    batch_size: int,
    repeats: int,
    rounds: int,
    threads: int,
    vocab: str | None,
    images: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure what students, exports and a teacher cost to run on this CPU, side by side.

    Parameters, file size, peak memory, latency of one row, throughput of a batch. Each in a process of its own.

    \b
    Example:
      softtrain latency run student-int8 --teacher hf:models/teacher --store heldout
    """
    from trainers.exports.latency import ENGINES, measure

    with Bar() as bar:
        bar.stage("convert", None, "models")
        figures = measure(
            subjects,
            store,
            teacher=teacher,
            engines=engines or ENGINES,
            weights=weights,
            batch_size=batch_size,
            repeats=repeats,
            rounds=rounds,
            threads=threads,
            vocab=vocab,
            images=images,
            advance=bar.advance,
            total=lambda n: bar.stage("measure", n, "processes"),
        )
    values = {
        "store": str(store),
        "threads": threads,
        "batch_size": batch_size,
        "figures": [asdict(f) for f in figures],
    }
    emit(values, "" if as_json else _table(values), as_json=as_json)


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
