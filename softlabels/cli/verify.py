"""`softlabels verify` and `softlabels repair`: whether a store is whole, and making it so."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from softlabels.cli.demands import demand_options
from softlabels.console.options import Command
from softlabels.console.terminal import Bar, StorePlace, emit, json_option, say
from softlabels.core.printable import printable


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
def verify_command(ctx: click.Context, /, store: Path | str, deep: bool, **demand: Any) -> None:
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
    from softlabels.store.remote.addresses import writable
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
    )
    if report.problems:
        if "://" not in str(store) or writable(str(store)):
            say(
                f"`softlabels repair {store}` makes again what it can, and withdraws damaged shards, so that the "
                "command that made the store makes those again; with --dry-run it changes nothing"
            )
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


@click.command("repair", cls=Command)
@click.argument("store", type=StorePlace())
@click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")
@json_option
@click.pass_context
def repair_command(ctx: click.Context, store: Path | str, dry_run: bool) -> None:
    """Mend a damaged store; exit with 1 if a build, or you, must finish the job.

    Records, card and manifest are made again from what is intact. Shards that are missing or damaged are
    withdrawn: run the store's `softlabels build` again, and it makes exactly those. Nothing intact is deleted,
    and what is damaged is moved into the store's folder `quarantine`. Nothing is done while a builder is at work.

    In a bucket (s3:// or gs://) it first watches claims that stand there, for up to five minutes, to see whether
    their builders live.

    \b
    Examples:
      softlabels repair store --dry-run
      softlabels repair store
      softlabels repair s3://bucket/store
    """
    from softlabels.making.place.repair import repair_at
    from softlabels.making.repair import repair_store

    with Bar() as bar:
        if isinstance(store, str):
            done = repair_at(store, dry_run=dry_run, reporter=bar)
        else:
            done = repair_store(store, dry_run=dry_run, reporter=bar)
    would = "would " if dry_run else ""
    lines = [printable(f"{would}{a.action} {a.file}: {a.reason}") for a in done.actions]
    if done.whole:
        state = "would be whole" if dry_run else "whole"
        count = len(done.actions)
        lines.append(f"{store}: {state}; {count} repair{'' if count == 1 else 's'}")
    if done.quarantine:
        lines.append(
            f"{store}: {len(done.quarantine)} files lie in its quarantine folder, which belongs to no store; look at "
            "them, and move them to where they belong"
        )
    for problem in done.problems:
        say(f"error: {problem}")
    if done.rebuild:
        say(
            f"error: {store}: {len(done.rebuild)} shards must be built; run the same `softlabels {done.command}` "
            f"{'after `softlabels repair`' if dry_run else 'again'} to make exactly those"
        )
    emit(
        {
            "store": str(store),
            "whole": done.whole,
            "dry_run": dry_run,
            "actions": [asdict(a) for a in done.actions],
            "rebuild": done.rebuild,
            "problems": done.problems,
            "quarantine": done.quarantine,
        },
        "\n".join(lines),
    )
    if not done.whole:
        ctx.exit(1)
