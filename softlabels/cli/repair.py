"""`softlabels repair`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from softlabels.console.options import Command
from softlabels.console.terminal import Bar, LocalPath, emit, json_option, say


@click.command("repair", cls=Command)
@click.argument("store", type=LocalPath())
@click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")
@json_option
@click.pass_context
def repair_command(ctx: click.Context, store: Path, dry_run: bool, as_json: bool) -> None:
    """Mend a damaged store; exit with 1 if a build, or you, must finish the job.

    Records, card and manifest are made again from what is intact. Shards that are missing or damaged are
    withdrawn: run the store's `softlabels build` again, and it makes exactly those. Nothing intact is deleted,
    and what is damaged is moved into the store's folder `quarantine`. Nothing is done while a builder is at work.

    \b
    Examples:
      softlabels repair store --dry-run
      softlabels repair store
    """
    from softlabels.making.repair import repair_store

    with Bar() as bar:
        done = repair_store(store, dry_run=dry_run, reporter=bar)
    would = "would " if dry_run else ""
    lines = [f"{would}{a.action} {a.file}: {a.reason}" for a in done.actions]
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
        as_json=as_json,
    )
    if not done.whole:
        ctx.exit(1)
