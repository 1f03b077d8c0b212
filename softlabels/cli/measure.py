"""`softlabels measure`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

import softlabels
from softlabels.builder.config import MeasureConfig
from softlabels.cli.demands import demand_options
from softlabels.console.options import Command, config_options
from softlabels.console.terminal import Bar, LocalPath, emit, json_option
from softlabels.errors import ConfigError


@click.command("measure", cls=Command)
@click.argument("store", type=LocalPath())
@config_options(MeasureConfig, file=False)
@click.option(
    "--max-kl",
    type=float,
    help="Exit with 1 if KL(teacher‖stored) may be above this, in nats, at any temperature: the upper end of its "
    "95 % interval. For a sampled store it bounds the excess of cross-entropy.",
)
@click.option(
    "--no-write", is_flag=True, help="Leave the store as it is: no record in manifest and card."
)
@demand_options
@json_option
def measure_command(store: Path, max_kl: float | None, no_write: bool, **flags: Any) -> None:
    """Run the teacher again on a sample of rows, and say how far the stored targets are from what it says.

    The record goes into the store's manifest and card; the content and its digest stay as they are.

    \b
    Examples:
      softlabels measure store --teacher hf:models/teacher
      softlabels measure store --teacher hf:models/teacher --max-kl 0.5 --no-write
    """
    if max_kl is not None and not 0 <= max_kl < math.inf:
        raise ConfigError(f"--max-kl {max_kl:g}: expected a number of 0 or more")
    import msgspec

    from softlabels.builder.measure import check_gate
    from softlabels.format.fidelity_table import fidelity_rows

    with Bar() as bar:
        fidelity = softlabels.measure(store=store, write=not no_write, progress=bar, **flags)
    grid = [f"T={at.temperature:g}" for at in fidelity.temperatures]
    lines = [
        f"{name:>40}  {'   '.join(map(str, values))}" for name, values in fidelity_rows(fidelity)
    ]
    kept = "nothing was written" if no_write else "recorded in its manifest and card"
    lines.append(
        f"{store}: {fidelity.positions:,} positions in {fidelity.rows:,} rows; {kept}; in brackets: 95 % intervals"
    )
    text = "\n".join([f"{'':>40}  {'   '.join(grid)}", *lines])
    value = {
        "store": str(store),
        "written": not no_write,
        "fidelity": msgspec.to_builtins(fidelity),
    }
    emit(value, text)
    if max_kl is not None:
        check_gate(fidelity, max_kl, where=str(store))
