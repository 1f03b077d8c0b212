"""`softlabels subset`, `view`, `convert` and `diff`: a part of a store, or the same in another form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from softlabels.algebra.subset_config import SubsetConfig
from softlabels.cli.merge import show
from softlabels.console.options import Command, config_options
from softlabels.console.terminal import Bar, LocalPath, emit, json_option, wants_json
from softlabels.core.settings import from_sources

out_option = click.option("--out", required=True, type=LocalPath(), help="Folder of the new store.")


@click.command("subset", cls=Command)
@click.argument("store", type=LocalPath())
@out_option
@config_options(SubsetConfig, file=False)
@json_option
def subset_command(store: Path, out: Path, **flags: Any) -> None:
    """Write some rows of a store, or fewer ids or temperatures, as a store of its own.

    --k and --temperature are exact: the ids that stay keep their probabilities, and the tail at every
    temperature of the grid is that of a build with that k. A sample can be cut in rows only.

    \b
    Examples:
      softlabels subset store --first 1000 --out start
      softlabels subset store --sample 0.1 --seed 1 --out tenth
      softlabels subset store --where 'mean_entropy > 2 AND positions >= 64' --out hard
      softlabels subset store --k 8 --temperature 1 --out small
      softlabels subset store --drop-inputs --out targets
    """
    from softlabels.algebra.subset import subset

    config = from_sources(SubsetConfig, None, flags)
    with Bar() as bar:
        manifest = subset(store, config, out, reporter=bar)
    show(out, manifest)


@click.command("view", cls=Command)
@click.argument("store", type=LocalPath())
@out_option
@click.option("--vocab", required=True, help="trim:N or map:FILE, as in softtrain run --vocab.")
@json_option
def view_command(store: Path, out: Path, vocab: str) -> None:
    """Write a store in another vocabulary: the teacher on condition that an id of it comes.

    \b
    Example:
      softlabels view store --vocab trim:49152 --out trimmed
    """
    from softlabels.algebra.view import view

    with Bar() as bar:
        manifest, dropped = view(store, vocab, out, reporter=bar)
    if not wants_json():
        show(out, manifest)
    emit({"store": str(out), "dropped": dropped.to_dict()}, str(dropped))


@click.command("convert", cls=Command)
@click.argument("store", type=LocalPath())
@out_option
@click.option("--profile", help="open or packed (default: as it is).")
@click.option("--container", help="parquet or zarr (default: as it is).")
@click.option("--values", help="Codec of the stored numbers (default: as it is).")
@click.option(
    "--dictionary",
    default="auto",
    help="Dictionary of packed shards: auto (where it pays), none, or the path of one, or of a store that has one.",
)
@json_option
def convert_command(store: Path, out: Path, **flags: Any) -> None:
    """Write a store in another profile, container or type of values.

    What is rounded again has both errors, and the new manifest says so.

    \b
    Example:
      softlabels convert store --profile packed --values nat16 --out small
    """
    from softlabels.algebra.convert import convert

    with Bar() as bar:
        manifest = convert(store, out, **flags, reporter=bar)
    show(out, manifest)


@click.command("diff", cls=Command)
@click.argument("a", type=LocalPath())
@click.argument("b", type=LocalPath())
@json_option
def diff_command(a: Path, b: Path) -> None:
    """Say which rows two stores have in common, and how far apart their targets are there.

    \b
    Example:
      softlabels diff store other
    """
    from softlabels.algebra.diff import diff

    with Bar() as bar:
        found = diff(a, b, reporter=bar).to_dict()
    lines = [
        f"rows        {found['rows_a']:,} and {found['rows_b']:,}, {found['rows_common']:,} in common",
        f"positions   {found['positions']:,} with a soft target in both",
    ]
    if found["top1_agreement"] is not None:
        lines.append(f"likeliest   the same at {found['top1_agreement']:.2%}")
    if found["kl"] is not None:
        lines += [
            f"T={t:<8g}  KL(A || B) {'infinite' if kl is None else f'{kl:.6f} nats'}, "
            f"log-probabilities at most {largest:.4f} apart"
            for t, kl, largest in zip(
                found["temperatures"], found["kl"], found["largest_logp_difference"], strict=True
            )
        ]
    elif found["positions"]:
        lines.append(
            "divergence  not known: one of them is a random sample, which is no distribution"
        )
    emit({"a": str(a), "b": str(b), **found}, "\n".join(lines))
