"""A store that is read while builders are at work on it: a shard as soon as its record is there.

What is believed is what builders believe of each other: the plan, which is immutable, and of each shard its commit
record, which must be of this plan; the shard is compared with the record's size and sha256 before it is used, as one of
a finished store is with the manifest's. A shard that is damaged is waited for if a builder has withdrawn it.

What only a finished store tells (its content digest, statistics, licence as it was stated last) is not known:
`Store.manifest` refuses. What the store must be is its plan's digest.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from softlabels.errors import ConfigError, FormatError, IntegrityError, UnreadableError
from softlabels.format.files import LocalFiles
from softlabels.format.manifest import MANIFEST, PLAN, Commit, Plan, check_shard
from softlabels.format.pages import column
from softlabels.format.shard import Shard
from softlabels.format.shard_records import ShardRecord
from softlabels.making.commit import commit_path, committed, shard_record
from softlabels.making.plan import read_plan
from softlabels.store.builders import Builders
from softlabels.store.of_plan import check_of_plan
from softlabels.store.read_as import AS_IT_IS, ReadAs
from softlabels.store.reader import Store, open_store
from softlabels.store.remote.cache import CacheOptions
from softlabels.store.waiting import Readable, Wait

PLAN_PATIENCE = 3600.0
"""Seconds to wait for a plan while nobody is seen making one: a builder shows nothing until its teacher is loaded."""
WITHDRAWAL = 1.0
"""Seconds within which who withdraws a shard withdraws its record, too."""
RECORDS = 4096
"""Records of shards in memory."""


class FollowedStore(Store):
    """A store that is not finished. Make one with `follow_store`."""

    def __init__(self, folder: Path, plan: Plan, wait: Wait, *, read_as: ReadAs = AS_IT_IS) -> None:
        super().__init__(LocalFiles(folder), plan, read_as=read_as)
        self.plan = plan
        self._wait = wait
        self._records: OrderedDict[int, ShardRecord] = OrderedDict()
        self._lock = Lock()
        held, rows = int(column(plan.shards, "rows").sum()), plan.identity.corpus.rows
        if held != rows:
            raise FormatError(
                f"{folder / PLAN}: its shards hold {held} rows, the corpus record says {rows}"
            )

    @property
    def digest(self) -> str:
        """The plan's: the content is not known yet."""
        return self.plan.digest

    @property
    def unlabelled(self) -> bool:
        """Whether no row of the first shard has a label: the others are not there yet."""
        return self._commit(0).statistics.labelled == 0

    def is_there(self, index: int) -> bool:
        """Whether a shard has a record."""
        return index in self._records or commit_path(self.folder, self.plan.shards[index]).exists()

    def wait_for(self, shards: Sequence[int]) -> None:
        """Wait until these shards are recorded.

        Raises:
            UnfinishedError: nobody is at work on them.
            IntegrityError: one is of another plan, or its record is damaged.
            WaitEnded: after `stop_waiting` or `give_up`.
        """
        for index in shards:
            self.record(index)

    def stop_waiting(self) -> None:
        """End waits from another thread."""
        self._wait.end()

    def give_up(self) -> None:
        """As `stop_waiting`."""
        self._wait.end()

    def go_on(self) -> None:
        """Wait again."""
        self._wait.go_on()

    def record(self, index: int) -> ShardRecord:
        """What vouches for a shard, as soon as it is there; raises as `wait_for`."""
        with self._lock:
            found = self._records.get(index)
        if found is not None:
            return found
        planned = self.plan.shards[index]
        found = shard_record(planned, self._commit(index))
        where = str(commit_path(self.folder, planned))
        check_shard(found, self.identity.encoding.profile, where)
        with self._lock:
            self._records[index] = found
            if len(self._records) > RECORDS:
                self._records.popitem(last=False)
        return found

    def ahead(self, shards: Sequence[int]) -> None:
        """Nothing: what is there is in a folder."""

    def read_shard(self, index: int, **how: Any) -> Shard:
        """As `Store.read_shard`; one that a builder has withdrawn is waited for again."""
        while True:
            record = self.record(index)
            try:
                return super().read_shard(index, **how)
            except IntegrityError as e:
                if not self._withdrawn(index, record):
                    raise IntegrityError(
                        f"{e} (or run the same `softlabels build` once more, which makes it again, and this run with "
                        "--resume)"
                    ) from e

    @property
    def waited(self) -> float:
        """Seconds that were waited for shards."""
        return self._wait.seconds

    def reopened(self) -> Store | None:
        """The finished store, as it is; None: it is not finished yet.

        Raises:
            IntegrityError: it is of another plan.
            StoreError: as `open_store`.
        """
        if not (self.folder / MANIFEST).exists():
            return None
        store = open_store(self.folder)
        check_of_plan(self.folder, store.manifest, self.plan)
        return store

    def _withdrawn(self, index: int, record: ShardRecord) -> bool:
        """Whether the record of a damaged shard is gone, or is of another file."""
        with self._lock:
            self._records.pop(index, None)
        until = time.monotonic() + WITHDRAWAL
        while True:
            try:
                now = self._look(index)
            except UnreadableError:
                return True  # or may be: it is waited for until it can be read
            if now is None or now.sha256 != record.sha256:
                return True
            if time.monotonic() > until:
                return False
            time.sleep(WITHDRAWAL / 10)

    def _commit(self, index: int) -> Commit:
        what = f"shard {index} of {len(self.shards):,} of {self.path}"
        return self._wait.until(Readable(partial(self._look, index), self._wait.notice), what)

    def _look(self, index: int) -> Commit | None:
        """The commit record of a shard; None: there is none yet."""
        planned = self.plan.shards[index]
        found = committed(self.folder, self.plan, planned, whole=False)
        if found is not None and (found.rows, found.positions) != (planned.rows, planned.positions):
            raise IntegrityError(
                f"{commit_path(self.folder, planned)}: says {found.rows} rows and {found.positions} positions, the "
                f"plan {planned.rows} and {planned.positions}; run the same `softlabels build` once more"
            )
        return found


def follow_store(
    url: str | Path,
    *,
    notice: Callable[[str], None],
    vocab: str | None = None,
    inputs: str | Path | None = None,
    images: str | Sequence[str] = (),
    cache: CacheOptions | None = None,
) -> Store:
    """Open a store that builders are at work on; one that is finished is opened as `open_store` does.

    Args:
        url: its folder. The plan is waited for.
        notice: takes what is waited for, in lines for people.
        vocab, inputs, images, cache: as of `open_store`.

    Raises:
        ConfigError: an address.
        UnfinishedError: there is no plan, and nobody is making one.
        StoreError: the plan is damaged, or as `open_store`.
    """
    if "://" in str(url):
        raise ConfigError(
            f"--follow: {url} is an address, and a store is followed in a folder; begin when it is finished, without "
            "--follow"
        )
    folder = Path(url)
    if (folder / MANIFEST).exists():
        return open_store(url, vocab=vocab, inputs=inputs, images=images, cache=cache)
    begin = f"begin with `softlabels build … --out {folder}`, or is the path wrong?"
    look = Builders(folder)
    plan = Wait(look, way_out=begin, notice=notice, patience=PLAN_PATIENCE).until(
        Readable(partial(_plan, folder), notice), f"the plan of {folder}"
    )
    ways = ReadAs.asked(
        folder,
        plan.identity,
        vocab=vocab,
        inputs=None if inputs is None else partial(open_store, inputs, cache=cache),
        images=images,
    )
    way_out = (
        f"go on with the same `softlabels build … --out {folder}`, and with this run by --resume"
    )
    return FollowedStore(folder, plan, Wait(look, way_out=way_out, notice=notice), read_as=ways)


def _plan(folder: Path) -> Plan | None:
    try:
        return read_plan(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
