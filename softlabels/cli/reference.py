"""`softlabels reference`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from softlabels.console.options import Command, config_options
from softlabels.console.terminal import Bar, LocalPath, emit, json_option
from softlabels.core.settings import from_sources
from softlabels.kld.reference_config import ReferenceConfig


@click.command("reference", cls=Command)
@click.argument("model")
@click.option("--out", required=True, type=LocalPath(), help="Folder of the store.")
@config_options(ReferenceConfig, file=False)
@json_option
def reference_command(model: str, out: Path, **flags: Any) -> None:
    """Make a reference of a model for `softlabels kld`, or finish one that was interrupted.

    MODEL is as of `softlabels kld`. The store is a soft-target store like others: it can be verified, signed, pushed
    and trained from. Some rows are kept with more ids, in STORE-wide beside it.

    \b
    Examples:
      softlabels reference hf:models/original --text 'wiki/*.txt' --out reference
      softlabels reference models/original --text 'wiki/*.txt' --limit-rows 600 --dtype float32 --out reference
    """
    from softlabels.format.figures import figures_of
    from softlabels.kld.reference import make_reference

    config = from_sources(ReferenceConfig, None, flags)
    with Bar() as bar:
        made = make_reference(model, config, out, reporter=bar)
    figures = figures_of(made.manifest)
    lines = [
        f"{out}: {figures.positions:,} positions in {figures.rows:,} rows, {figures.bytes_per_position:.1f} bytes each "
        f"(their logits in 16 bits: {figures.dense_fp16_bytes_per_position:,})"
    ]
    if made.wide is not None:
        wide = figures_of(made.wide)
        lines.append(
            f"{out}-wide: {wide.positions:,} of them with {wide.k:,} ids, {wide.data_bytes / figures.positions:.1f} "
            "bytes for each position of the store"
        )
    lines.append(f"compare: softlabels kld MODEL --store {out}")
    value = {"store": str(out), **asdict(figures)}
    value["wide_bytes"] = None if made.wide is None else made.wide.data_bytes
    emit(value, "\n".join(lines))
