"""`softlabels build`."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import softlabels
from softlabels.builder.config import BuildConfig
from softlabels.cli.price import price_of
from softlabels.cli.purpose import config_for, for_option
from softlabels.console.options import Command, config_options
from softlabels.console.tables import in_columns
from softlabels.console.terminal import Bar, BuildPlace, emit, json_option
from softlabels.core.progress import duration
from softlabels.core.settings import place_from
from softlabels.errors import ConfigError

if TYPE_CHECKING:
    from softlabels.format.figures import Figures
    from softlabels.format.manifest import Manifest


@click.command("build", cls=Command)
@click.argument(
    "config_file", metavar="[CONFIG.toml]", required=False, type=click.Path(path_type=Path)
)
@click.option(
    "--out",
    type=BuildPlace(),
    help="Folder of the store, or its address in a bucket, s3://… or gs://… (needed, here or in the file).",
)
@for_option
@config_options(BuildConfig)
@click.option(
    "--shards",
    metavar="I/N",
    help="Number of this builder, I of N, from 0: it takes the I-th part of the shards first, then what is left.",
)
@click.option(
    "--engine",
    type=click.Choice(["ray"]),
    help="Ray places builders in the cluster of RAY_ADDRESS, or on this host, and starts them again (extra `ray`).",
)
@click.option(
    "--builders", type=int, metavar="N", help="Builders on Ray; one for each GPU if not given."
)
@click.option(
    "--dry-run", is_flag=True, help="Try a sample; say what the build would take; write nothing."
)
@click.option(
    "--price-per-hour",
    metavar="PRICE",
    help="Price of this machine per hour, in USD, or in the currency that is named (2.50EUR); --dry-run says the cost.",
)
@json_option
def build_command(
    config_file: Path | None,
    out: Path | str | None,
    purpose: str | None,
    shards: str | None,
    engine: str | None,
    builders: int | None,
    dry_run: bool,
    price_per_hour: str | None,
    **flags: Any,
) -> None:
    """Run a teacher over a corpus and write a store, or finish one that was interrupted.

    Flags win over CONFIG.toml, whose keys are the flags' names with underscores.

    \b
    Examples:
      softlabels build --teacher hf:models/teacher --corpus 'text:books/*.txt' --out store
      softlabels build --teacher hf:models/teacher --corpus 'jsonl:chats.jsonl' \\
          --estimator topk --k 50 --temperature 1 --temperature 2 --out store
      softlabels build job.toml --out store --dry-run --price-per-hour 2.50
      softlabels build --for far --teacher hf:models/teacher --corpus books --out store
      softlabels build job.toml --out /shared/store --shards 3/16
      softlabels build job.toml --out s3://bucket/store
      softlabels build job.toml --out /shared/store --engine ray --builders 8
    """
    if price_per_hour is not None and not dry_run:
        raise ConfigError("--price-per-hour needs --dry-run")
    price = None if price_per_hour is None else price_of(price_per_hour)
    config = config_for(purpose, config_file, flags)
    out = place_from(config_file, out)
    if dry_run:
        _dry_run(config, out, price)
        return
    from softlabels.format.figures import figures_of

    with Bar() as bar:
        many: dict[str, Any] = {"shards": shards, "engine": engine, "builders": builders}
        manifest = softlabels.build(out=out, progress=bar, **many, **vars(config))
    figures = figures_of(manifest)
    emit({"store": str(out), **asdict(figures)}, _closing(out, manifest, figures))


def _closing(out: Path | str, manifest: Manifest, figures: Figures) -> str:
    """What was built, and what can be done with it next."""
    from softlabels.domains import DOMAINS

    place, identity = shlex.quote(str(out)), manifest.identity
    shards = figures.shards
    lines = {
        "store": f"{out}, complete",
        "rows": f"{figures.rows:,} in {shards:,} shard{'s'[: shards != 1]}, {figures.data_bytes / 1e6:,.1f} MB",
        "targets": f"{figures.positions:,} positions, {figures.bytes_per_position:.1f} bytes each "
        f"({identity.targets.estimator}, k={identity.targets.k})",
        "teacher": f"{identity.teacher.name}: {_teacher(figures, manifest)}",
        "look": f"softlabels inspect {place} --row 0",
        "train": f"softtrain run --store {place} {DOMAINS.load(identity.domain).student} --out run",
    }
    return in_columns(lines)


def _teacher(figures: Figures, manifest: Manifest) -> str:
    """How good it is here, and what it cost."""
    parts = []
    if figures.teacher_nll is not None:
        each = "token" if manifest.identity.classes is None else "label"
        parts.append(f"loss {figures.teacher_nll:.3f} nats per {each}")
    if figures.accuracy is not None:
        parts.append(f"right about {figures.accuracy:.1%} of the labels")
    return ", ".join([*parts, f"{duration(manifest.cost.seconds)} of work"])


def _dry_run(config: BuildConfig, out: Path | str, price: tuple[float, str] | None) -> None:
    from softlabels.builder.dry_run import dry_run

    with Bar() as bar:
        e = dry_run(config, out, reporter=bar)
    cost = None if price is None else e.hours * price[0]
    counted = "counted" if e.share == 1 else f"estimated from the first {e.share:.1%} of its bytes"
    lines = {
        "corpus": f"{e.documents:,} documents, {e.tokens:,} tokens in {e.rows:,} rows, {counted}",
        "targets": f"{e.positions:,} positions in {e.shards:,} shards",
        "size": f"about {e.data_bytes / 1e6:,.1f} MB, {e.bytes_per_position:.1f} bytes a position",
        "speed": f"{e.tokens_per_second:,.0f} tokens/s on {e.device}, over {e.sample_rows:,} rows",
        "time": f"about {e.hours:,.2f} hours",
    }
    if cost is not None and price is not None:
        lines["cost"] = f"about {cost:,.2f} {price[1]}, at {price[0]:g} {price[1]} an hour"
    text = f"{in_columns(lines)}\nnothing was written to {out}"
    emit({"store": str(out), **asdict(e), "cost": cost, "currency": price and price[1]}, text)
