"""`softlabels status`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from softlabels.console.options import Command
from softlabels.console.tables import in_columns
from softlabels.console.terminal import StorePlace, emit, json_option
from softlabels.core.printable import printable
from softlabels.core.progress import duration, rate_of

if TYPE_CHECKING:
    from softlabels.making.status import Held, Status

SHOWN = 20
"""Claims that are listed for people."""


@click.command("status", cls=Command)
@click.argument("store", type=StorePlace())
@json_option
def status_command(store: Path | str) -> None:
    """Show how far a store is that builders are at work on: shards done, rate, time left, and who holds what.

    Nothing is written and no shard is read, so it may be asked at any time, from any host that sees the folder or
    the bucket.

    \b
    Examples:
      softlabels status /shared/store
      softlabels status s3://bucket/store
      watch -n 30 softlabels status /shared/store
    """
    from softlabels.making.status import status_of

    status = status_of(store)
    emit(asdict(status), _text(status))


def _text(status: Status) -> str:
    if not status.planned:
        text = in_columns({"store": f"{status.store}, the shards are being planned"})
        return text + _claims(status)
    share = status.positions_done / status.positions if status.positions else 1.0
    lines = {
        "store": f"{status.store}, {'complete' if status.complete else 'not finished'}",
        "shards": f"{status.shards_done:,} of {status.shards:,} done",
        "positions": f"{status.positions_done:,} of {status.positions:,} ({share:.1%})",
    }
    if not status.complete:
        rate = status.positions_per_second
        lines["rate"] = "not known yet" if rate is None else f"{rate_of(rate, 'positions')} lately"
        left = status.seconds_left
        lines["left"] = "not known" if left is None else f"about {duration(left)}"
        lines["builders"] = f"{status.working} at work" if status.working else "none is at work"
    return in_columns(lines) + _claims(status)


def _claims(status: Status) -> str:
    """A line for each claim."""
    text = ""
    for held in status.held[:SHOWN]:
        who = "somebody" if held.host is None else f"process {held.pid} of {printable(held.host)}"
        seen = (
            f"last seen {duration(held.silent)} ago"
            if held.silent >= 0
            else "last seen in the future"
        )
        text += f"\n{_what(held, status.planned)}: {who}, {held.state}, {seen}"
    if len(status.held) > SHOWN:
        text += f"\nand {len(status.held) - SHOWN} more (--json lists all)"
    if not status.complete and any(h.state != "working" for h in status.held):
        text += "\ndead and stale ones lose nothing but the shard in hand: any builder takes over what they hold"
    return text


def _what(held: Held, planned: bool) -> str:
    """What a builder holds."""
    if held.shards > 1:
        return f"shards {held.shard} to {held.shard + held.shards - 1}"
    if held.shards:
        return f"shard {held.shard}"
    return "the manifest" if planned else "the plan"
