"""Power failures: from the trace of an undisturbed run, what the folder may hold when the power comes back.

After each call that changes the folder the power may fail. Each such state is written to a real folder, and
- all that the writer had said to be safe until then (marks in the trace: a file or folder that `durable` published, a
  checkpoint saved, exit 0) must be there, as it was said, or as it was rightly replaced or removed since;
- the writer, run again, must finish, with the result of the undisturbed run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.faults.disk import LOSSES, Disk, Loss, random_losses
from tests.faults.essence import essence, is_temporary, plain
from tests.faults.table import Writer
from tests.faults.trace import Kind, Series

if TYPE_CHECKING:
    from tests.faults.bench import Bench, Undisturbed

__all__ = ["POWER", "Outage", "outages_of"]

POWER = "power"
RANDOM = 2
"""Random losses after each call."""


@dataclass(frozen=True)
class Outage:
    """One state of the folder after a power failure."""

    writer: str
    at: int
    """The last call before it."""
    what: str
    loss: Loss
    tree: dict[str, bytes | None]
    safe: dict[str, set[str | None]]
    """By name, the essences that were said to be safe, or rightly came in their place; None: removed."""

    fault: str = POWER

    def __str__(self) -> str:
        return f"{self.writer} · power failed after {self.at} ({self.what}), which lost {self.loss.name}"


def outages_of(bench: Bench, writer: Writer, *, seed: int = 0) -> list[Outage]:
    """Every state once, however many ways lead to it."""
    normal = bench.undisturbed(writer)
    found: dict[str, Outage] = {}
    if writer.beside:
        return []  # two traces; each alone is a case of its own
    for at, what, disk, safe in _moments(normal.tree, writer, normal):
        for loss in (*LOSSES, *random_losses(RANDOM, seed + at * RANDOM)):
            tree = disk.after(loss)
            key = _digest(tree, safe)
            if key not in found:
                found[key] = Outage(
                    writer.name, at, what, loss, tree, {plain(n): set(e) for n, e in safe.items()}
                )
    return list(found.values())


def _moments(
    tree: dict[str, bytes | None], writer: Writer, normal: Undisturbed
) -> Iterator[tuple[int, str, Disk, dict[str, set[str | None]]]]:
    disk = Disk(writer.unspared(tree))
    safe: dict[str, set[str | None]] = {}
    before: dict[str, bytes | None] = {}
    yield 0, "nothing", disk, safe
    for call in normal.calls:
        if call.series is Series.LOOKING:
            continue
        disk.play(call)
        if call.kind is Kind.MARKED:
            for name in disk.below("" if call.path == "." else call.path):
                if (
                    not is_temporary(name)
                    and not writer.is_untold(name)
                    and not writer.passes(name)
                ):
                    data = disk.content(name)
                    assert data is not None
                    safe[name] = {essence(name, data)}
                    before[name] = data
        for name in safe:
            now = disk.content(name)
            if now is not before[name]:
                before[name] = now
                safe[name].add(None if now is None else essence(name, now))
        if call.done:
            yield call.number, f"{call.kind.name.lower()} {call.second or call.path}", disk, safe


def _digest(tree: dict[str, bytes | None], safe: dict[str, set[str | None]]) -> str:
    digest = hashlib.sha256()
    for name, data in sorted(tree.items()):
        digest.update(f"{name}\0{-1 if data is None else len(data)}\0".encode() + (data or b""))
    digest.update(repr(sorted((n, sorted(map(str, e))) for n, e in safe.items())).encode())
    return digest.hexdigest()
