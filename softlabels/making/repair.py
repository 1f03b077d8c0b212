"""Mending a store in place: what can be made again from what is intact is; the rest is left to a build.

The flow:
 1. read the plan, which says what every shard must be; without it nothing is touched;
 2. look at every file and decide what to do, changing nothing yet:
    a shard that is missing, torn, altered or not the planned one is withdrawn together with its record;
    a shard that fits the plan but has no good record gets one;
    the card and the manifest are made again if all shards are there, else withdrawn;
    what a dead builder left is removed;
 3. unless it is a dry run, and unless a builder is at work, do it: the manifest goes first, so that at no moment it
    names what is not there.

What is withdrawn is deleted if it is proven to be the store's own (a sealed record, a card as the manifest has it), and
else moved into `quarantine/`; in either case only if it is still the file that was judged.

`softlabels build` with the arguments of the store then makes exactly the withdrawn shards.
Costs one pass over the store: every shard is hashed and decoded, one at a time in memory.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from softlabels.core.durable import explained, is_temporary, leftovers, publish
from softlabels.core.progress import Reporter, Silent
from softlabels.core.records import is_record, read_file
from softlabels.errors import FormatError, IntegrityError, StoreError
from softlabels.format.dictionaries import DICTIONARY
from softlabels.format.manifest import MANIFEST, SIGNATURE, Commit, Manifest, Plan, load_manifest
from softlabels.format.pages import check_pages, pages_of
from softlabels.format.part import refuse_part
from softlabels.format.shard_records import PlannedShard, ShardRecord
from softlabels.making.claims import claim_files, clear_claims, refuse_living
from softlabels.making.commit import Seen, adopt_shard, commit_path, withdraw
from softlabels.making.diagnosis import Diagnosis, attempt, diagnose, trouble
from softlabels.making.finish import CARD, MADE, finish, make_manifest
from softlabels.making.pages import clear_pages, left_pages
from softlabels.making.plan import PLAN, command_of, read_plan
from softlabels.making.quarantine import QUARANTINE, quarantined, retract, sighting
from softlabels.store.reader import check_known


@dataclass(frozen=True, kw_only=True)
class Action:
    """One thing that was done, or would be."""

    action: str
    """`remove`, `withdraw`, `adopt` (give a shard its record) or `publish`."""
    file: str
    """Within the store."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What `repair_store` did, and what is left to do."""

    actions: list[Action]
    rebuild: list[str]
    """Shards that the next build will make."""
    problems: list[str]
    """What a build does not mend either. Each names the file and the way out."""
    quarantine: list[str] = field(default_factory=list)
    """What lies in `quarantine/` afterwards: nothing deletes it but the user."""
    command: str = "build"
    """Which command of `softlabels` made the store, and makes its shards again."""

    @property
    def whole(self) -> bool:
        """Whether the store is whole afterwards."""
        return not self.rebuild and not self.problems


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
    plan = _plan(path)
    check_known(path / PLAN, plan.identity)
    if not dry_run:
        refuse_living(path)
    manifest, manifest_problem = attempt(lambda: _manifest(path))
    if manifest is not None and not _same_shape(plan, manifest):
        raise IntegrityError(
            f"{path}: {PLAN} and {MANIFEST} are of two builds; put the right one back (nothing was changed)"
        )
    work = _Work(path, plan, manifest, dry_run)
    found = diagnose(path, plan, manifest, reporter or Silent())
    problems = _beside(path, plan, manifest) + _strangers(path, plan, manifest)
    if not dry_run:
        refuse_living(path)  # which may have come meanwhile
    for left in leftovers(path):
        work.sweep(left)
    stale = manifest_problem if manifest is None else found.stale_manifest
    if found.rebuild:
        first = "shards are missing, and are made again first"
        work.withdraw_made(MANIFEST, (stale or first) + _recorded_later(manifest))
        for name in MADE:
            work.withdraw_made(name, first)
    else:  # nobody has anything to make
        work.clear_claims()
    for shard in plan.shards:
        if (why := found.rebuild.get(shard.index)) is not None:
            work.withdraw(shard, why, found.seen[shard.index])
        elif (why := found.adopt.get(shard.index)) is not None:
            commit = work.adopt(shard, why, found.seen[shard.index])
            if commit is not None:
                found.commits[shard.index] = commit
            elif not dry_run:
                found.rebuild[shard.index] = why
    if found.rebuild:  # a builder that had made all may have finished meanwhile
        work.withdraw_made(MANIFEST, "names shards that were withdrawn", again=True)
    elif manifest is None or found.stale_manifest is not None:
        work.finish(found, (stale or "missing") + _recorded_later(manifest))
    else:
        work.mend_made(found, manifest)
        work.clear_pages(manifest)
    return Repair(
        actions=work.actions,
        rebuild=[plan.shards[i].name for i in sorted(found.rebuild)],
        problems=problems,
        quarantine=quarantined(path),
        command=command_of(plan),
    )


def _recorded_later(manifest: Manifest | None) -> str:
    """What is lost with a manifest, since neither plan nor shards hold it; None: it cannot be read."""
    again = "after the build, which was in it, must be recorded again"
    if manifest is None:
        return f"; a licence, fidelity or release recorded {again}"
    held = {
        "licence": manifest.stated_licence,
        "fidelity": manifest.fidelity,
        "release": manifest.release,
    }
    names = " and ".join(name for name, value in held.items() if value is not None)
    return f"; the {names} recorded {again}" if names else ""


# -- looking --------------------------------------------------------------------------------------


def _plan(path: Path) -> Plan:
    try:
        plan = read_plan(path)
        check_pages(plan.shards)
        return plan
    except (FileNotFoundError, NotADirectoryError) as e:
        if not (path / MANIFEST).exists():
            raise FormatError(
                f"{path}: not a store (neither {PLAN} nor {MANIFEST}); is the path right?"
            ) from e
        problem = f"{path / PLAN}: missing"
    except StoreError as e:
        problem = str(e)
    manifest, _ = attempt(lambda: _manifest(path))
    if manifest is not None:
        raise IntegrityError(
            f"{problem}. The plan cannot be made from the other files; nothing was changed. The store can still be "
            f"read and trained from (its {MANIFEST} is intact), but not repaired: copy {PLAN} again from the store's "
            "source, or build the store again in another folder"
        )
    raise IntegrityError(
        f"{problem}. The plan cannot be made from the other files, and {MANIFEST} is not intact either; nothing was "
        f"changed. Copy {PLAN} again from the store's source, or build the store again in another folder"
    )


def _manifest(path: Path) -> Manifest:
    """The manifest, with every page of it."""
    manifest = load_manifest(path)
    check_pages(manifest.shards)
    return manifest


def _same_shape(plan: Plan, manifest: Manifest) -> bool:
    def shape(shard: PlannedShard | ShardRecord) -> tuple[str, int, int, int]:
        return shard.name, shard.start_row, shard.rows, shard.positions

    return (
        plan.identity == manifest.identity
        and len(plan.shards) == len(manifest.shards)
        and all(shape(a) == shape(b) for a, b in zip(plan.shards, manifest.shards, strict=True))
        and plan.files == {n: f for n, f in manifest.files.items() if n in plan.files}
    )


def _beside(path: Path, plan: Plan, manifest: Manifest | None) -> list[str]:
    """Damaged files beside the shards: they are the teacher's, and neither repair nor build makes them again."""
    records = plan.files | ({} if manifest is None else manifest.files)
    problems = []
    for name, record in records.items():
        if name in MADE:
            continue
        if (problem := trouble(path / name, record)) is not None:
            problem = f"{path / name}: missing" if problem == "missing" else problem
            problems.append(
                f"{problem}. Repair cannot make it again: copy it from the store's source, or from another store "
                "that was built with the same tokenizer"
            )
    return problems


def _strangers(path: Path, plan: Plan, manifest: Manifest | None) -> list[str]:
    known = {PLAN, MANIFEST, SIGNATURE, CARD, *plan.files}
    root, _ = attempt(lambda: load_manifest(path))  # it names its pages, though one be damaged
    known |= {p.name for p in pages_of(plan.shards, None if root is None else root.shards)}
    known |= {page.relative_to(path).as_posix() for page in left_pages(path)}
    known |= set(MADE if manifest is None else manifest.files)
    known |= {claim.relative_to(path).as_posix() for claim in claim_files(path)}
    if plan.identity.encoding.dictionary_shards is not None:
        known.add(DICTIONARY)
    for shard in plan.shards:
        known |= {shard.name, commit_path(path, shard).relative_to(path).as_posix()}
    return [
        f"{file}: no record of the store names it, so it was left alone; look at it, and move it to where it belongs"
        for file in sorted(path.rglob("*"))
        if file.is_file()
        and not is_temporary(file.name)
        and file.relative_to(path).parts[0] != QUARANTINE
        and file.relative_to(path).as_posix() not in known
    ]


# -- doing ----------------------------------------------------------------------------------------


class _Work:
    """Does things, or only writes them down."""

    def __init__(self, path: Path, plan: Plan, manifest: Manifest | None, dry_run: bool) -> None:
        """`manifest` is the intact one, if there is one: it says what the files were that are made from it."""
        self.path, self.dry_run = path, dry_run
        self.actions: list[Action] = []
        self._plan, self._manifest = plan, manifest
        self._seen = {name: sighting(path / name) for name in (MANIFEST, *MADE)}
        """Which of them the diagnosis is of."""

    def note(self, action: str, file: Path, reason: str) -> None:
        name = file.relative_to(self.path).as_posix()
        reason = reason.removeprefix(f"{file}: ")
        self.actions.append(Action(action=action, file=name, reason=reason))

    def sweep(self, left: Path) -> None:
        self.note("remove", left, "left by a builder that died")
        if not self.dry_run:
            with explained(left):
                left.unlink(missing_ok=True)

    def clear_claims(self) -> None:
        for claim in claim_files(self.path):
            self.note("remove", claim, "all shards are there, so nobody needs it")
        if not self.dry_run:
            clear_claims(self.path)

    def clear_pages(self, manifest: Manifest) -> None:
        """Remove the pages that neither record names."""
        records = (self._plan.shards, manifest.shards)
        for page in left_pages(self.path, *records):
            self.note("remove", page, "a page of a record that is not in force")
        if not self.dry_run:
            clear_pages(self.path, *records)

    def withdraw(self, shard: PlannedShard, reason: str, seen: Seen) -> None:
        for file in (self.path / shard.name, commit_path(self.path, shard)):
            if file.exists() or file.is_symlink():
                gone = f"its shard is {'missing' if reason == 'missing' else 'withdrawn'}"
                self.note("withdraw", file, reason if file.suffix != ".json" else gone)
        if not self.dry_run:
            withdraw(self.path, shard, seen)

    def withdraw_made(self, name: str, reason: str, *, again: bool = False) -> None:
        """Take out the manifest, or what was made from it.

        Args:
            again: whatever is there now, and not only what was there at first.
        """
        file = self.path / name
        present = sighting(file)
        seen = present if again else self._seen[name]
        if seen is None or present != seen or (again and self.dry_run):
            return
        self.note("withdraw", file, reason)
        record = None if self._manifest is None else self._manifest.files.get(name)

        def ours(aside: Path) -> bool:
            if name == MANIFEST:
                return is_record(aside, Manifest)
            return record is not None and trouble(aside, record) is None

        if not self.dry_run:
            retract(self.path, file, seen, ours)

    def adopt(self, shard: PlannedShard, reason: str, seen: Seen) -> Commit | None:
        record, file = commit_path(self.path, shard), self.path / shard.name
        if seen.record is not None:
            self.note("withdraw", record, reason)
            if not self.dry_run:
                retract(self.path, record, seen.record, lambda aside: is_record(aside, Commit))
        self.note("adopt", file, "fits the plan, and had no good record")
        if self.dry_run:
            return None
        notice = partial(self.note, "withdraw", file)
        return adopt_shard(self.path, self._plan, shard, notice=notice)

    def publish_made(self, name: str, content: bytes, reason: str) -> None:
        self.withdraw_made(name, reason)
        self.note("publish", self.path / name, reason)
        if not self.dry_run:
            publish(self.path / name, content)

    def finish(self, found: Diagnosis, reason: str, before: Manifest | None = None) -> None:
        """Make card and manifest again; a card that says what it must is kept."""
        self.withdraw_made(MANIFEST, reason)
        commits = [found.commits[i] for i in sorted(found.commits)]
        if len(commits) == len(self._plan.shards):  # else a dry run, in which records are to come
            new, _ = make_manifest(self.path, self._plan, commits, before=before)
            for name, make in MADE.items():
                present, problem = attempt(partial(read_file, self.path / name))
                right = make(new).encode()
                if present != right and (name == CARD or problem != "missing"):
                    self.publish_made(name, right, problem or "is not what the records say")
        self.note("publish", self.path / MANIFEST, reason)
        if not self.dry_run:
            finish(self.path, self._plan, commits, before=before)

    def mend_made(self, found: Diagnosis, manifest: Manifest) -> None:
        """Make the card, and whatever else is made from an intact manifest, again."""
        for name, make in MADE.items():
            record = manifest.files.get(name)
            if record is None or (problem := trouble(self.path / name, record)) is None:
                continue
            content = make(manifest).encode()
            if hashlib.sha256(content).hexdigest() != record.sha256:
                # another version made it: its manifest cannot be satisfied any more
                self.finish(found, f"names a {name} that this version cannot make", manifest)
                return
            self.publish_made(name, content, problem)
