"""Mending a store in a bucket: diagnosis and decisions of a folder (`making/repair.py`), by the verbs of a `Place`.

The flow:
 1. read the plan; look at every shard and record, one at a time in memory, changing nothing;
 2. if there is anything to do: refuse builders at work (`living.py`), then take the claim of who finishes the
    store, so that no manifest is published meanwhile, and no other repair is at work;
 3. do it: the manifest goes first, then each damaged shard and its record (`quarantine.py`);
 4. leave claims as builders would have left them: of a lease that is whole its records together, so that nobody reads
    it again; of each other one a claim that is free, so that whoever takes it asks what is recorded;
 5. if no shard is to be made, publish card and manifest, and remove the claims.

Whoever dies in between leaves less than was there and nothing wrong: the same command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from softlabels.core.progress import Reporter, Silent
from softlabels.core.records import (
    FILE_LIMIT,
    RECORD_LIMIT,
    FileRecord,
    canonical,
    file_record,
    parse_record,
)
from softlabels.errors import IntegrityError, StoreError
from softlabels.format.dictionaries import DICTIONARY
from softlabels.format.files import Recorded
from softlabels.format.manifest import MANIFEST, PLAN, Commit, Manifest, Plan, parse_manifest
from softlabels.format.pages import check_pages
from softlabels.format.part import PART
from softlabels.format.shard_records import PlannedShard
from softlabels.making.commit import judged, record_of
from softlabels.making.diagnosis import Diagnosis, attempt, diagnose
from softlabels.making.finish import MADE, make_manifest
from softlabels.making.mending import (
    Mender,
    Repair,
    beside,
    check_one_build,
    plan_to_repair,
    strangers,
)
from softlabels.making.place import HELD, Place, everything
from softlabels.making.place.blocks import BLOCK
from softlabels.making.place.claims import PlaceClaims
from softlabels.making.place.commit import LeaseRecords, commit_name
from softlabels.making.place.finish import PlacePages, clear_in, in_threads, publish_in
from softlabels.making.place.holding import PlaceLease
from softlabels.making.place.leases import leases_of
from softlabels.making.place.living import Standing
from softlabels.making.place.names import (
    FINISH,
    FREE,
    block_of,
    claim_name,
    done_name,
    is_ours,
    mark_name,
)
from softlabels.making.place.plan import Mirror
from softlabels.making.place.quarantine import retract_in
from softlabels.making.place.shelf import PlaceShelf, Seen
from softlabels.making.place.status import plan_in
from softlabels.making.plan import command_of
from softlabels.making.quarantine import QUARANTINE
from softlabels.store.readable import check_known


def repair_at(url: str, *, dry_run: bool = False, reporter: Reporter | None = None) -> Repair:
    """As `repair_store`, of a store in a bucket.

    Raises:
        ConfigError: no address of a bucket.
        RemoteError: the service ignores preconditions, or is out of reach.
        SoftLabelsError: as `repair_store`.
    """
    from softlabels.store.remote.bucket import BucketPlace, probe

    place = BucketPlace(url)
    with TemporaryDirectory(prefix="softlabels-") as scratch:
        mirror = Mirror(place, Path(scratch))
        return repair_in(mirror, partial(probe, place), dry_run=dry_run, reporter=reporter)


def repair_in(
    mirror: Mirror,
    try_out: Callable[[], None] = lambda: None,
    *,
    dry_run: bool = False,
    reporter: Reporter | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Any] = time.sleep,
) -> Repair:
    """As `repair_at`, of any place but a folder.

    Args:
        mirror: the place, and a folder for a copy of the dictionary.
        try_out: refuses a place that cannot be written to by several.
        clock: seconds, of this process alone.
    """
    place, report = mirror.place, reporter or Silent()
    versions = {e.name: e.version for e in everything(place, "")}
    if PART in versions:
        raise IntegrityError(
            f"{place.root}: is a part of a store; repair the whole one, and push it again"
        )
    plan = plan_to_repair(place.root, partial(_plan, place), partial(_manifest, place))
    check_known(place.root / PLAN, plan.identity)
    standing = None if dry_run else Standing(place, clock)
    manifest, problem = attempt(lambda: _manifest(place))
    root, _ = attempt(lambda: _manifest(place, pages=False))
    check_one_build(place.root, plan, manifest)
    with suppress(FileNotFoundError):
        mirror.fetch(DICTIONARY)
    shelf = PlaceShelf(mirror, plan)
    found = diagnose(shelf, plan, manifest, report)
    work = _Work(mirror, plan, manifest, shelf, versions, dry_run=True)
    problems = beside(place.root, plan, manifest, work.trouble)
    work.mend(found, problem)
    if standing is not None and work.actions:
        try_out()
        dead = standing.wait(sleep, report.notice)
        work = _Work(mirror, plan, manifest, shelf, versions)
        with closing(PlaceClaims(place, len(plan.shards), clock=clock)) as claims:
            for name, version in dead.items():
                place.swap(name, FREE, version)
            work.mend_alone(claims, standing, found, problem)
        if not found.rebuild:
            clear_in(place)
    names = (n for n in versions if not is_ours(n))
    problems += strangers(place.root, plan, root, names, work.pages)
    aside = [e.name for e in everything(place, QUARANTINE)]
    return Repair(
        actions=work.actions,
        rebuild=[plan.shards[i].name for i in sorted(found.rebuild)],
        problems=problems,
        quarantine=aside,
        command=command_of(plan),
    )


def _plan(place: Place) -> Plan:
    plan = plan_in(place)
    if plan is None:
        raise FileNotFoundError(PLAN)
    return plan


def _manifest(place: Place, *, pages: bool = True) -> Manifest:
    data, _ = place.read(MANIFEST, limit=RECORD_LIMIT)
    manifest = parse_manifest(data, PlacePages(place))
    if pages:
        check_pages(manifest.shards)
    return manifest


def _leases(plan: Plan) -> tuple[range, ...]:
    return leases_of(len(plan.shards), plan.identity.encoding.dictionary_shards or 0).all


def _misleading(
    plan: Plan, found: Diagnosis[Seen], names: Container[str]
) -> tuple[list[str], list[str]]:
    """Files of builders that say other than the records, as they do when a repair died: see `_leave_leases`.

    Returns:
        Those by which nobody would make a shard that is to be made, and claims that are missing, so that shards that
        are there would be made again.
    """
    wrong, missing = dict[str, None](), list[str]()
    for number, shards in enumerate(_leases(plan)) if found.rebuild else ():
        made = [i not in found.rebuild for i in shards]
        if not all(made):
            done = (done_name(shards.start), mark_name(number // BLOCK))
            wrong |= dict.fromkeys(name for name in done if name in names)
        if any(made) and claim_name(shards.start) not in names:
            missing.append(claim_name(shards.start))
    return list(wrong), missing


class _Work(Mender[Seen]):
    """Mends a place."""

    def __init__(
        self,
        mirror: Mirror,
        plan: Plan,
        manifest: Manifest | None,
        shelf: PlaceShelf,
        versions: dict[str, str],
        *,
        dry_run: bool = False,
    ) -> None:
        """`versions`: of all files, before the diagnosis."""
        super().__init__(mirror.place.root, plan, manifest, dry_run)
        self._mirror, self._place, self._shelf = mirror, mirror.place, shelf
        self._versions = versions
        self._renew: Callable[[], None] = lambda: None
        self._holds: Callable[[], bool] = lambda: True

    def mend(self, found: Diagnosis[Seen], problem: str | None) -> None:
        super().mend(found, problem)
        wrong, missing = _misleading(self._plan, found, self._versions)
        self._note_several("remove", wrong, "says that shards are done which must be made")
        self._note_several("publish", missing, "lest shards that are there be made again")

    def _note_several(self, action: str, names: list[str], reason: str) -> None:
        """One line, for there may be as many as leases."""
        if names:
            more = f" (and {len(names) - 1} more like it)" if names[1:] else ""
            self.note(action, names[0], reason + more)

    def mend_alone(
        self, claims: PlaceClaims, standing: Standing, found: Diagnosis[Seen], problem: str | None
    ) -> None:
        """As `mend`, under the claim of who finishes the store."""
        lease = claims.take_end(FINISH)
        if lease is None:
            raise StoreError(
                f"{self.root}: another builder or repair finishes it at this moment; run the same command again when "
                "it has ended (nothing was changed)"
            )
        self._renew = partial(self._keep, lease)
        self._holds = lease.holds
        try:
            standing.check_alone(lease.name)
            self._check_unchanged(found)
            self.mend(found, problem)
            if found.rebuild:
                self._leave_leases(found)
        finally:
            lease.release()

    def _check_unchanged(self, found: Diagnosis[Seen]) -> None:
        """Refuse to go on if another finished the store, or made what is to be taken out, while it was looked at."""
        now = {e.name: e.version for e in everything(self._place, "")}
        shards = sorted(found.rebuild.keys() | found.adopt.keys())
        names = [n for i in shards for n in (self._plan.shards[i].name, commit_name(i))]
        for name in (MANIFEST, *names):
            if now.get(name) != self._versions.get(name):
                raise StoreError(
                    f"{self.root / name}: changed meanwhile; run the same command again (nothing was changed)"
                )

    def _keep(self, lease: PlaceLease) -> None:
        """Say that this process lives; stop, if it stood still for so long that another took over."""
        lease.renew()
        if lease.version is None:
            raise StoreError(
                f"{self.root}: this repair stood still for so long that another began; run the same command again"
            )

    def _leave_leases(self, found: Diagnosis[Seen]) -> None:
        """Leave claims as builders would have left them."""
        self._renew()
        held = [e.name for e in everything(self._place, HELD)]
        self._place.remove(*(n for n in held if block_of(n) is not None))
        for _ in in_threads(partial(self._leave, found), _leases(self._plan)):
            self._renew()

    def _leave(self, found: Diagnosis[Seen], shards: range) -> None:
        self._place.remove(done_name(shards.start))
        if all(i in found.commits for i in shards):
            records = [canonical(found.commits[i]).decode() for i in shards]
            page = LeaseRecords(records=records, column_bytes=self._shelf.all_columns(shards))
            self._place.create(done_name(shards.start), msgspec.json.encode(page))
            self._place.create(claim_name(shards.start), FREE)  # else it was never anybody's
        elif self._place.create(claim_name(shards.start), FREE) is None:
            held, version = self._place.read(claim_name(shards.start), limit=FILE_LIMIT)
            if held != FREE:
                self._place.swap(claim_name(shards.start), FREE, version)

    # -- as the mender asks -----------------------------------------------------------------------

    def content(self, name: str) -> bytes:
        return self._place.read(name, limit=FILE_LIMIT)[0]

    def trouble(self, name: str, record: FileRecord) -> str | None:
        file = Recorded(name, record.sha256, record.bytes)
        return attempt(lambda: PlacePages(self._place).checked(file))[1]

    def create(self, name: str, content: bytes) -> None:
        self._renew()
        self._place.create(name, content)

    def withdraw(self, shard: PlannedShard, reason: str, seen: Seen) -> None:
        record = commit_name(shard.index)
        found = {shard.name: seen.shard, record: seen.record}
        self._note_withdrawal(
            shard, reason, [n for n, version in found.items() if version is not None]
        )
        if not self.dry_run:
            self._renew()
            # The shard first: left without its record, a damaged one could be adopted for what it says itself.
            retract_in(self._place, shard.name, seen.shard, stays=True)
            retract_in(self._place, record, seen.record, partial(_is, Commit))

    def withdraw_made(self, name: str, reason: str, *, again: bool = False) -> None:
        self._renew()
        seen = self._versions.get(name)
        if again:
            if self.dry_run:
                return
            found = self._place.list("", after=name[:-1])
            seen = next((e.version for e in found if e.name == name), None)
        if seen is None:
            return
        self.note("withdraw", name, reason)
        record = None if self._manifest is None else self._manifest.files.get(name)

        def ours(data: bytes) -> bool:
            if name == MANIFEST:
                return _is(Manifest, data)
            return record is not None and file_record(data) == record

        if not self.dry_run:
            retract_in(self._place, name, seen, ours)

    def adopt(self, shard: PlannedShard, reason: str, seen: Seen) -> Commit | None:
        self._renew()
        record = commit_name(shard.index)
        if seen.record is not None:
            self.note("withdraw", record, reason)
            if not self.dry_run:
                retract_in(self._place, record, seen.record, partial(_is, Commit))
        self.note("adopt", shard.name, "fits the plan, and had no good record")
        if self.dry_run:
            return None
        self._renew()
        data, version = self._place.read(shard.name, limit=FILE_LIMIT)
        statistics, _ = judged(data, self._plan.identity, shard, self._shelf.find, where=shard.name)
        if version != seen.shard or statistics is None:
            return None
        made = record_of(self._plan, shard, data, statistics, 0.0)
        self._place.create(record, canonical(made))
        return made

    def new_manifest(self, commits: Sequence[Commit], before: Manifest | None) -> Manifest:
        return self._made(commits, before)[0]

    def publish_manifest(self, commits: Sequence[Commit], before: Manifest | None) -> None:
        self._renew()
        manifest, pages = self._made(commits, before)
        for name, page in pages.items():  # one that is damaged would be in the way
            present, _ = attempt(partial(self.content, name))
            if present is not None and present != page:
                retract_in(self._place, name, self._versions.get(name))
        more = {n: attempt(partial(self.content, n))[0] for n in MADE if n in self._versions}
        publish_in(
            self._mirror,
            manifest,
            commits,
            pages,
            {n: d for n, d in more.items() if d is not None},
            self._renew,
            self._holds,
        )
        self._renew()  # it stops if another took over: nothing was published then

    def _made(
        self, commits: Sequence[Commit], before: Manifest | None
    ) -> tuple[Manifest, dict[str, bytes]]:
        columns = self._shelf.all_columns(range(len(commits)))
        return make_manifest(
            self._mirror.folder, self._plan, commits, before=before, columns=columns
        )

    def clear_claims(self) -> None:
        """They are removed at the end: until then one of them is this process's."""
        for name in self._versions:
            if is_ours(name):
                self.note("remove", name, "all shards are there, so nobody needs it")

    def clear_pages(self, manifest: Manifest) -> None:
        """None are cleared: a page that no record names is told of as a stranger."""


def _is(kind: type[Any], data: bytes) -> bool:
    """Whether bytes are an intact record, whose seal proves that it is ours."""
    return attempt(lambda: parse_record(data, kind, where=""))[0] is not None
