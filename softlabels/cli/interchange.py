"""`softlabels import` and `softlabels export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from softlabels.builder.config import ImportConfig
from softlabels.cli.demands import demand_options
from softlabels.console.options import Command, config_options
from softlabels.console.terminal import Bar, LocalPath, emit, json_option
from softlabels.core.settings import from_sources


@click.command("import", cls=Command)
@click.argument("kind")
@click.argument("path", type=LocalPath())
@click.option("--out", required=True, type=LocalPath(), help="Folder of the store.")
@config_options(ImportConfig, file=False)
@json_option
def import_command(kind: str, path: Path, out: Path, **flags: Any) -> None:
    """Make a store of another tool's log-probabilities, or finish one that was interrupted.

    KIND is axolotl, distillkit, arrays or llama-kld, or one that is installed, perhaps with parameters of its own
    (llama-kld?k=64).

    The store has the temperature 1 only: elsewhere the mass of the ids that were not kept is unknown. Whether the
    numbers are the teacher's, and where they should be, is what `softlabels measure` finds out.

    \b
    Examples:
      softlabels import axolotl rows.parquet --teacher hf:models/teacher --out store
      softlabels import distillkit capture --teacher hf:models/teacher --out store
      softlabels import 'llama-kld?k=64' base.kld --teacher hf:models/teacher --out reference
    """
    from softlabels.format.figures import figures_of
    from softlabels.interchange.importing import import_store

    config = from_sources(ImportConfig, None, flags)
    with Bar() as bar:
        done = import_store(kind, path, out, config, reporter=bar)
    figures = figures_of(done.manifest)
    text = (
        f"{out}: {figures.rows:,} rows, {figures.positions:,} positions, {figures.bytes_per_position:.1f} bytes "
        f"each; {done.without_tail:,} without a tail"
    )
    values = {"store": str(out), "without_tail": done.without_tail, **asdict(figures)}
    emit(values, text)


@click.command("export", cls=Command)
@click.argument("store", type=LocalPath())
@click.argument("kind", type=click.Choice(["axolotl", "topk", "llama-kld"]))
@click.option("--out", required=True, type=LocalPath(), help="File to write.")
@demand_options
@json_option
def export_command(store: Path, kind: str, out: Path, **demand: Any) -> None:
    """Write a store's targets at T = 1 for another tool.

    KIND is axolotl (its prepared rows), topk (a record for each position) or llama-kld (llama.cpp's base for its KL
    divergences, of a store of whole distributions).

    \b
    Examples:
      softlabels export store axolotl --out rows.parquet
      softlabels export store topk --out positions.parquet
    """
    from softlabels.interchange.exporting import export_store
    from softlabels.store.demand import Demand

    with Bar() as bar:
        records = export_store(store, kind, out, reporter=bar, demand=Demand(**demand))
    value = {"store": str(store), "out": str(out), "records": records}
    emit(value, f"{out}: {records:,} records")
