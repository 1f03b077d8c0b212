"""`softlabels merge` and `softlabels append`: stores that grow."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from softlabels.console.options import Command
from softlabels.console.terminal import Bar, LocalPath, emit, json_option
from softlabels.errors import ConfigError


def show(out: Path, manifest: Any, *, as_json: bool) -> None:
    """Say what was made."""
    from softlabels.format.figures import figures_of

    figures = figures_of(manifest)
    text = (
        f"{out}: {figures.rows:,} rows, {figures.positions:,} positions, {figures.data_bytes / 1e6:.1f} MB in "
        f"{figures.shards} shards, by {manifest.provenance}"
    )
    emit({"store": str(out), **asdict(figures)}, text, as_json=as_json)


@click.command("merge", cls=Command)
@click.argument("sources", metavar="STORE...", nargs=-1, type=LocalPath())
@click.option("--out", required=True, type=LocalPath(), help="Folder of the new store.")
@click.option("--licence", help="Licence of the new store, where those of the stores differ.")
@json_option
def merge_command(sources: tuple[Path, ...], out: Path, licence: str | None, as_json: bool) -> None:
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
    show(out, manifest, as_json=as_json)


@click.command("append", cls=Command)
@click.argument("store", type=LocalPath())
@click.option("--out", required=True, type=LocalPath(), help="Folder of the new generation.")
@click.option("--teacher", required=True, help="The store's teacher, e.g. hf:models/teacher.")
@click.option(
    "--corpus", multiple=True, help="New documents: text:GLOB, jsonl:GLOB; several in order."
)
@click.option("--limit-rows", type=int, help="Stop after this many new rows.")
@click.option(
    "--skip-empty", is_flag=True, help="Leave empty documents out rather than refuse them."
)
@click.option("--truncate", is_flag=True, help="Cut texts that are longer than a row.")
@click.option("--device", default="auto", help="Where the teacher runs (default: auto).")
@click.option(
    "--batch-tokens", type=int, default=2048, help="Tokens in one forward pass (default: 2048)."
)
@click.option("--head-mib", type=int, help="MiB of logits that exist at a time.")
@json_option
def append_command(store: Path, out: Path, as_json: bool, **flags: Any) -> None:
    """Teach new documents by the same job: the next generation of a store.

    The new folder shares the old shards (hard links) and holds the new ones; the old folder stays as it is, and
    readable. What to keep of each distribution, and how, is as the store says. Interrupted, run it again.

    \b
    Example:
      softlabels append store --teacher hf:models/teacher --corpus 'text:new/*.txt' --out store-2
    """
    if not flags["corpus"]:
        raise ConfigError("--corpus is missing: give the new documents")
    from softlabels.algebra.append import AppendConfig, append

    with Bar() as bar:
        manifest = append(store, AppendConfig(**flags), out, reporter=bar)
    show(out, manifest, as_json=as_json)
