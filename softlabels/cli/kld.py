"""`softlabels kld`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from softlabels.cli.demands import demand_options
from softlabels.console.options import Command, config_options
from softlabels.console.terminal import Bar, LocalPath, emit, json_option
from softlabels.core.settings import from_sources
from softlabels.errors import ConfigError
from softlabels.kld.config import KldConfig


@click.command("kld", cls=Command)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@config_options(KldConfig, file=False)
@click.option(
    "--out",
    type=LocalPath(),
    help="Page to write: which to ship, quantile curves, size against KL.",
)
@click.option(
    "--markdown", is_flag=True, help="Print a block for a model card in the place of the table."
)
@click.option(
    "--max-kl",
    type=float,
    help="Exit with 1 if a candidate's mean KL may be above this, in nats: the upper end of its 95 % interval, the "
    "unseen part of the tails as estimated.",
)
@click.option(
    "--min-same-top",
    type=float,
    help="Exit with 1 if the share of positions with the same most probable token may be below this: the lower end of "
    "its 95 % interval.",
)
@demand_options
@json_option
def kld_command(
    models: tuple[str, ...],
    out: Path | None,
    markdown: bool,
    max_kl: float | None,
    min_same_top: float | None,
    key: Path | None,
    digest: str | None,
    release: str | None,
    **flags: Any,
) -> None:
    """Say how far models are from a reference: quantised, pruned or ported ones from the original.

    MODEL is what `softlabels build --teacher` takes (hf:PATH, onnx:FILE, vllm:PATH?seam=states, …), or the path of a
    run, an export, a model's folder, a .gguf or .onnx file. NAME=MODEL gives it a name. The reference is a store; its
    model is not needed. Each candidate reads the reference's own tokens once.

    \b
    Examples:
      softlabels reference models/original --text 'wiki/*.txt' --out reference
      softlabels kld int8=models/int8 int4=models/int4 model-Q4_K_M.gguf --store reference --out kld.html
      softlabels kld models/candidate --store reference --max-kl 0.02 --min-same-top 0.95
    """
    if max_kl is not None and not 0 <= max_kl < math.inf:
        raise ConfigError(f"--max-kl {max_kl:g}: expected a number of 0 or more")
    if min_same_top is not None and not 0 <= min_same_top <= 1:
        raise ConfigError(f"--min-same-top {min_same_top:g}: expected a share, 0 to 1")
    config = from_sources(KldConfig, None, flags)
    import msgspec

    from softlabels.kld.gates import USUAL, Gates, check_gates
    from softlabels.kld.run import kld
    from softlabels.kld.text import for_people
    from softlabels.kld.text import markdown as card
    from softlabels.report.kld_page import render
    from softlabels.report.page import check_page, write_page
    from softlabels.store.demand import Demand

    if out is not None:
        check_page(out)
    demand = Demand(key=key, digest=digest, release=release)
    with Bar() as bar:
        found = kld(models, config, reporter=bar, demand=demand)
    gates = Gates(max_kl=max_kl, min_same_top=min_same_top)
    if out is not None:
        write_page(out, render(found, USUAL if gates == Gates() else gates))
    text = card(found) if markdown else for_people(found)
    emit(msgspec.to_builtins(found), text)
    check_gates(found, gates)
