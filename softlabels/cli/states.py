"""`softlabels states`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from softlabels.builder.config import StatesConfig
from softlabels.cli.demands import demand_options
from softlabels.console.options import Command, config_options
from softlabels.console.terminal import Bar, LocalPath, emit, json_option
from softlabels.core.settings import from_sources


@click.command("states", cls=Command)
@click.argument("store", type=LocalPath())
@click.option(
    "--out",
    type=LocalPath(file_okay=False),
    required=True,
    help="Folder to make; the same command goes on with one that was begun.",
)
@config_options(StatesConfig, file=False)
@demand_options
@json_option
def states_command(store: Path, out: Path, **flags: Any) -> None:
    """Keep the teacher's whole distribution at every position of a store, as its last hidden states and its head.

    `softtrain run --teacher-states OUT` then trains by full distillation, the reference for what a store loses. It
    takes as many bytes a position as the teacher is wide, times 2 or 4.

    \b
    Example:
      softlabels states store --teacher hf:models/teacher --out states
    """
    from softlabels.builder.states import write_states
    from softlabels.store.demand import Demand

    demand = Demand(**{name: flags.pop(name) for name in ("key", "digest", "release")})
    config = from_sources(StatesConfig, None, flags)
    with Bar() as bar:
        record = write_states(store, config, out, reporter=bar, demand=demand)
    size = sum(f.bytes for f in record.files.values())
    value = {
        "states": str(out),
        "rows": record.rows,
        "positions": record.positions,
        "width": record.width,
        "bytes": size,
        "digest": record.digest,
    }
    text = (
        f"{out}: {record.positions:,} positions in {record.rows:,} rows, {record.width} wide, "
        f"{size / 2**20:,.0f} MiB, digest {record.digest[:12]}…"
    )
    emit(value, text)
