"""`softlabels merge` and `softlabels append`: stores that grow."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from softlabels.builder.config import AppendConfig
from softlabels.console.options import Command, config_options
from softlabels.console.terminal import Bar, LocalPath, emit, json_option
from softlabels.core.settings import from_sources


def show(out: Path, manifest: Any) -> None:
    """Say what was made."""
    from softlabels.format.figures import figures_of

    figures = figures_of(manifest)
    text = (
        f"{out}: {figures.rows:,} rows, {figures.positions:,} positions, {figures.data_bytes / 1e6:.1f} MB in "
        f"{figures.shards} shards, by {manifest.provenance}"
    )
    emit({"store": str(out), **asdict(figures)}, text)


@click.command("merge", cls=Command)
@click.argument("sources", metavar="STORE...", nargs=-1, type=LocalPath())
@click.option("--out", required=True, type=LocalPath(), help="Folder of the new store.")
@click.option("--licence", help="Licence of the new store, where those of the stores differ.")
@json_option
def merge_command(sources: tuple[Path, ...], out: Path, licence: str | None) -> None:
    """Put the rows of several stores one after the other; shards are shared, not copied.

    The stores must be of one teacher, tokenizer, estimator, temperature grid, seed and encoding. Shards get a
    second name (a hard link), so they take no room; on another file system they are copied.

    \b
    Example:
      softlabels merge austen dickens --out novels
    """
    from softlabels.algebra.merge import merge

    with Bar() as bar:
        manifest = merge(sources, out, licence=licence, reporter=bar)
    show(out, manifest)


@click.command("append", cls=Command)
@click.argument("store", type=LocalPath())
@click.option("--out", required=True, type=LocalPath(), help="Folder of the new generation.")
@config_options(AppendConfig, file=False)
@json_option
def append_command(store: Path, out: Path, **flags: Any) -> None:
    """Teach new documents by the same job: the next generation of a store.

    The new folder shares the old shards (hard links) and holds the new ones; the old folder stays as it is, and
    readable. What to keep of each distribution, and how, is as the store says. Interrupted, run it again.

    \b
    Example:
      softlabels append store --teacher hf:models/teacher --corpus 'text:new/*.txt' --out store-2
    """
    from softlabels.algebra.append import append

    config = from_sources(AppendConfig, None, flags)
    with Bar() as bar:
        manifest = append(store, config, out, reporter=bar)
    show(out, manifest)
