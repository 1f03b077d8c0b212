"""Mending a store in place: what can be made again from what is intact is; the rest is left to a build.

The flow:
 1. read the plan, which says what every shard must be; without it nothing is touched;
 2. look at every file and decide what to do, changing nothing yet (`diagnosis.py`):
    a shard that is missing, torn, altered or not the planned one is withdrawn together with its record;
    a shard that fits the plan but has no good record gets one;
    the card and the manifest are made again if all shards are there, else withdrawn;
    what a dead builder left is removed;
 3. unless it is a dry run, and unless a builder is at work, do it (`mending.py`; in a bucket `place/repair.py`).

What is withdrawn is deleted if it is proven to be the store's own (a sealed record, a card as the manifest has it), and
else moved into `quarantine/`; in either case only if it is still the file that was judged.

`softlabels build` with the arguments of the store then makes exactly the withdrawn shards.
Costs one pass over the store: every shard is hashed and decoded, one at a time in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from softlabels.core.durable import explained, is_temporary, leftovers, publish
from softlabels.core.progress import Reporter, Silent
from softlabels.core.records import FileRecord, is_record, read_file
from softlabels.format.manifest import MANIFEST, PLAN, Commit, Manifest, Plan, load_manifest
from softlabels.format.pages import check_pages
from softlabels.format.part import refuse_part
from softlabels.format.shard_records import PlannedShard
from softlabels.making.claims import Ages, claim_files, clear_claims, refuse_living
from softlabels.making.commit import Seen, adopt_shard, commit_path, withdraw
from softlabels.making.diagnosis import FolderShelf, attempt, diagnose, trouble
from softlabels.making.finish import MADE, finish, make_manifest
from softlabels.making.mending import (
    Mender,
    Repair,
    beside,
    check_one_build,
    plan_to_repair,
    strangers,
)
from softlabels.making.pages import clear_pages, left_pages
from softlabels.making.plan import command_of, read_plan
from softlabels.making.quarantine import quarantined, retract, sighting
from softlabels.store.readable import check_known


def repair_store(path: Path, *, dry_run: bool = False, reporter: Reporter | None = None) -> Repair:
    """Mend what can be mended, withdraw what must be built again. Nothing intact is deleted.

    Args:
        path: the store, finished or not.
        dry_run: say what would be done, and change nothing.

    Raises:
        FormatError: not a store, or one of a newer version.
        IntegrityError: the plan is damaged, or records are of two builds; nothing was changed.
        StoreError: a builder is at work on the store, or a file cannot be read or removed, for a reason that is not
            damage.
    """
    refuse_part(path)
    read = partial(_manifest, path)
    plan = plan_to_repair(path, partial(read_plan, path), read)
    check_known(path / PLAN, plan.identity)
    report, ages = reporter or Silent(), Ages()
    if not dry_run:
        refuse_living(path, ages, report.notice)
    manifest, problem = attempt(read)
    check_one_build(path, plan, manifest)
    work = _Work(path, plan, manifest, dry_run)
    found = diagnose(FolderShelf(path, plan), plan, manifest, report)
    problems = beside(path, plan, manifest, work.trouble)
    root, _ = attempt(lambda: load_manifest(path))  # it names its pages, though one be damaged
    if not dry_run:
        refuse_living(path, ages, report.notice)  # who may have come meanwhile
    for left in leftovers(path):
        work.sweep(left)
    work.mend(found, problem)
    problems += _strangers(path, plan, root, work.pages)
    return Repair(
        actions=work.actions,
        rebuild=[plan.shards[i].name for i in sorted(found.rebuild)],
        problems=problems,
        quarantine=quarantined(path),
        command=command_of(plan),
    )


def _manifest(path: Path) -> Manifest:
    """The manifest, with every page of it."""
    manifest = load_manifest(path)
    check_pages(manifest.shards)
    return manifest


def _strangers(path: Path, plan: Plan, manifest: Manifest | None, pages: set[str]) -> list[str]:
    def name_of(file: Path) -> str:
        return file.relative_to(path).as_posix()

    known = {name_of(file) for file in [*left_pages(path), *claim_files(path)]}
    files = (f for f in path.rglob("*") if f.is_file() and not is_temporary(f.name))
    return strangers(path, plan, manifest, map(name_of, files), known | pages)


class _Work(Mender[Seen]):
    """Mends a folder."""

    def __init__(self, path: Path, plan: Plan, manifest: Manifest | None, dry_run: bool) -> None:
        super().__init__(path, plan, manifest, dry_run)
        self.path = path
        self._seen = {name: sighting(path / name) for name in (MANIFEST, *MADE)}
        """Which of them the diagnosis is of."""

    def _name(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix()

    def content(self, name: str) -> bytes:
        return read_file(self.path / name)

    def trouble(self, name: str, record: FileRecord) -> str | None:
        return trouble(self.path / name, record)

    def create(self, name: str, content: bytes) -> None:
        publish(self.path / name, content)

    def sweep(self, left: Path) -> None:
        """Remove what a dead builder left."""
        self.note("remove", self._name(left), "left by a builder that died")
        if not self.dry_run:
            with explained(left):
                left.unlink(missing_ok=True)

    def clear_claims(self) -> None:
        for claim in claim_files(self.path):
            self.note("remove", self._name(claim), "all shards are there, so nobody needs it")
        if not self.dry_run:
            clear_claims(self.path)

    def clear_pages(self, manifest: Manifest) -> None:
        records = (self._plan.shards, manifest.shards)
        for page in left_pages(self.path, *records):
            self.note("remove", self._name(page), "a page of a record that is not in force")
        if not self.dry_run:
            clear_pages(self.path, *records)

    def withdraw(self, shard: PlannedShard, reason: str, seen: Seen) -> None:
        files = (self.path / shard.name, commit_path(self.path, shard))
        there = [self._name(f) for f in files if f.exists() or f.is_symlink()]
        self._note_withdrawal(shard, reason, there)
        if not self.dry_run:
            withdraw(self.path, shard, seen)

    def withdraw_made(self, name: str, reason: str, *, again: bool = False) -> None:
        file = self.path / name
        present = sighting(file)
        seen = present if again else self._seen[name]
        if seen is None or present != seen or (again and self.dry_run):
            return
        self.note("withdraw", name, reason)
        record = None if self._manifest is None else self._manifest.files.get(name)

        def ours(aside: Path) -> bool:
            if name == MANIFEST:
                return is_record(aside, Manifest)
            return record is not None and trouble(aside, record) is None

        if not self.dry_run:
            retract(self.path, file, seen, ours)

    def adopt(self, shard: PlannedShard, reason: str, seen: Seen) -> Commit | None:
        record = commit_path(self.path, shard)
        if seen.record is not None:
            self.note("withdraw", self._name(record), reason)
            if not self.dry_run:
                retract(self.path, record, seen.record, lambda aside: is_record(aside, Commit))
        self.note("adopt", shard.name, "fits the plan, and had no good record")
        if self.dry_run:
            return None
        notice = partial(self.note, "withdraw", shard.name)
        return adopt_shard(self.path, self._plan, shard, notice=notice)

    def new_manifest(self, commits: Sequence[Commit], before: Manifest | None) -> Manifest:
        return make_manifest(self.path, self._plan, commits, before=before)[0]

    def publish_manifest(self, commits: Sequence[Commit], before: Manifest | None) -> None:
        finish(self.path, self._plan, commits, before=before)
