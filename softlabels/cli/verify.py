"""`softlabels verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from softlabels.cli.demands import demand_options
from softlabels.console.options import Command
from softlabels.console.terminal import Bar, StorePlace, emit, json_option, say


@click.command("verify", cls=Command)
@click.argument("store", type=StorePlace())
@click.option(
    "--deep/--quick",
    default=True,
    help="Decode every shard and check every invariant, or compare sizes and digests only.",
)
@demand_options
@json_option
@click.pass_context
def verify_command(
    ctx: click.Context, /, store: Path | str, deep: bool, as_json: bool, **demand: Any
) -> None:
    """Check every file of a store; exit with 1 if anything is missing, torn, altered or foreign.

    Of an address every byte is fetched, past the cache. A part of a store (`softlabels pull --share`) is called one.
    With --key a part is refused unless --digest names it, for the signature does not say who chose its shards.

    \b
    Examples:
      softlabels verify store
      softlabels verify s3://bucket/store
      softlabels verify store --key maker.pem --release maker/austen@2
    """
    from softlabels.store.demand import Demand
    from softlabels.store.verify import verify_store

    asked = Demand(**demand)
    with Bar() as bar:
        report = verify_store(store, deep=deep, reporter=bar, demand=asked)
    for problem in report.problems:
        say(f"error: {problem}")
    facts = report.vouched.facts(asked)
    text = (
        f"{store}: {_state(facts, report.problems)}; {report.files} files, {report.rows:,} rows, "
    )
    text += f"{report.positions:,} positions checked"
    if not report.listed:
        text += "; foreign files cannot be looked for on a web server"
    if report.quarantine:
        text += (
            f"\n{len(report.quarantine)} files lie in its quarantine folder, which is no part of the store; look at "
            "them, and move them to where they belong"
        )
    emit(
        {
            "store": str(store),
            "ok": not report.problems,
            "signed": facts["key_sha256"] is not None,
            **facts,
            "problems": report.problems,
            "quarantine": report.quarantine,
            "listed": report.listed,
            "files": report.files,
            "rows": report.rows,
            "positions": report.positions,
        },
        text,
        as_json=as_json,
    )
    if report.problems:
        ctx.exit(1)


def _state(facts: dict[str, Any], problems: list[str]) -> str:
    """Who signed it, as what, how much of it is there, and whether that is intact."""
    words = []
    if facts["key_sha256"] is not None:
        as_ = "without a name and version" if facts["release"] is None else f"as {facts['release']}"
        words.append(f"signed by the key, {as_}")
    if (part := facts["part"]) is not None:
        words.append(f"a part: {part['shards']} of {part['of']} shards")
    intact = "whole" if part is None else "intact"
    words.append(f"{len(problems)} problems" if problems else intact)
    return ", ".join(words)
