"""Planning once: of builders that start in an empty folder one plans the shards, and the others wait for its plan.

As long as there is no plan, the claim on shard 0 is the claim on planning (`claims.py`): it is renewed while the corpus
is read, and taken over from a builder that died. Like every claim it saves work and nothing else: of two plans one is
in force, since it is published by create-if-absent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from softlabels.core.durable import explained, make_folder
from softlabels.core.progress import Reporter
from softlabels.format.manifest import Plan
from softlabels.making.claims import CLAIMS, Claims, at_work
from softlabels.making.plan import begun, check_folder

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two looks for the plan that another builder makes."""


class Renewing:
    """A reporter that renews a claim at each sign of progress."""

    def __init__(self, report: Reporter, renew: Callable[[], None]) -> None:
        self._report, self._renew = report, renew

    def notice(self, message: str) -> None:
        """Passed on."""
        self._report.notice(message)

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> None:
        """Passed on."""
        self._report.stage(name, total, unit, done)

    def advance(self, amount: int, note: str | None = None) -> None:
        """Passed on, after the claim was renewed."""
        self._renew()
        self._report.advance(amount, note)


@contextmanager
def planning(
    store: Path, report: Reporter, plan: Plan | None, files: Mapping[str, bytes]
) -> Iterator[tuple[Plan | None, Reporter]]:
    """Wait for the plan that another builder makes, or be the builder that makes it.

    Args:
        plan: that is known to be there already, if any.
        files: what would be written beside the shards: a folder that holds others is left alone.

    Yields:
        The plan that is there; or None: it is to be made, reported to the reporter beside it, and published within.

    Raises:
        PlanError: the folder holds something else.
        IntegrityError: the plan, or a file beside it, is damaged.
    """
    if plan is None:
        check_folder(store, files)
    new, pause = not store.exists(), SHORTEST_PAUSE
    with closing(Claims(store)) as claims:
        while plan is None and (plan := begun(store, report.notice)) is None:
            if (claim := claims.take([0])) is not None:
                try:
                    with claim:
                        planned = begun(
                            store, report.notice
                        )  # perhaps by who held the claim before
                        yield planned, Renewing(report, claim.renew)
                finally:
                    _leave(store, new)
                return
            if not at_work(store, unsure=True):  # the folder is gone, or there can be none
                with explained(store):
                    make_folder(store / CLAIMS)
                time.sleep(SHORTEST_PAUSE)
                continue
            if pause == SHORTEST_PAUSE:
                report.notice("waiting: another builder plans the shards")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
    yield plan, report


def _leave(store: Path, new: bool) -> None:
    """Of planning that came to nothing no folder stays; those that hold anything do."""
    with suppress(OSError):
        (store / CLAIMS).rmdir()
        if new:
            store.rmdir()
