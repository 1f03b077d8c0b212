"""What is done about a diagnosis: the decisions, the same for a store in a folder (`repair.py`) and in a bucket.

The manifest goes first, so that at no moment it names what is not there; then shards are withdrawn or given a record;
last, card and manifest are made again, if all shards are there.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic

from softlabels.core.records import FileRecord
from softlabels.errors import (
    FormatError,
    IntegrityError,
    RemoteError,
    StoreError,
    UnreadableError,
)
from softlabels.format.dictionaries import DICTIONARY
from softlabels.format.files import Address
from softlabels.format.manifest import MANIFEST, PLAN, SIGNATURE, Commit, Manifest, Plan
from softlabels.format.pages import check_pages, pages_of
from softlabels.format.shard_records import PlannedShard, ShardRecord
from softlabels.making.diagnosis import Diagnosis, S, attempt
from softlabels.making.finish import CARD, MADE
from softlabels.making.place.commit import commit_name
from softlabels.making.quarantine import QUARANTINE


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
    """What repair did, and what is left to do."""

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


class Mender(ABC, Generic[S]):
    """Does things, or only writes them down.

    Args:
        root: of the store.
        manifest: the intact one, if there is one: it says what the files were that are made from it.
    """

    def __init__(
        self, root: Path | Address, plan: Plan, manifest: Manifest | None, dry_run: bool
    ) -> None:
        self.root, self.dry_run = root, dry_run
        self.actions: list[Action] = []
        self.pages: set[str] = set()
        """Of the manifest that is made again."""
        self._plan, self._manifest = plan, manifest

    def mend(self, found: Diagnosis[S], problem: str | None) -> None:
        """Do what a diagnosis asks for.

        Args:
            found: is told of what is given a record, and of what then turns out not to be there.
            problem: why there is no intact manifest.
        """
        manifest = self._manifest
        stale = problem if manifest is None else found.stale_manifest
        if found.rebuild:
            first = "shards are missing, and are made again first"
            self.withdraw_made(MANIFEST, (stale or first) + _recorded_later(manifest))
            for name in MADE:
                self.withdraw_made(name, first)
        else:  # nobody has anything to make
            self.clear_claims()
        for shard in self._plan.shards:
            if (why := found.rebuild.get(shard.index)) is not None:
                self.withdraw(shard, why, found.seen[shard.index])
            elif (why := found.adopt.get(shard.index)) is not None:
                commit = self.adopt(shard, why, found.seen[shard.index])
                if commit is not None:
                    found.commits[shard.index] = commit
                elif not self.dry_run:
                    found.rebuild[shard.index] = why
        if found.rebuild:  # a builder that had made all may have finished meanwhile
            self.withdraw_made(MANIFEST, "names shards that were withdrawn", again=True)
        elif manifest is None or found.stale_manifest is not None:
            self._finish(found, (stale or "missing") + _recorded_later(manifest))
        else:
            self._mend_made(found, manifest)
            self.clear_pages(manifest)

    def note(self, action: str, name: str, reason: str) -> None:
        """Write down what is done."""
        reason = reason.removeprefix(f"{self.root / name}: ")
        self.actions.append(Action(action=action, file=name, reason=reason))

    def _note_withdrawal(self, shard: PlannedShard, reason: str, there: Iterable[str]) -> None:
        """Of those of a shard's files that are there."""
        for name in there:
            gone = f"its shard is {'missing' if reason == 'missing' else 'withdrawn'}"
            self.note("withdraw", name, reason if name == shard.name else gone)

    def _publish_made(self, name: str, content: bytes, reason: str) -> None:
        self.withdraw_made(name, reason)
        self.note("publish", name, reason)
        if not self.dry_run:
            self.create(name, content)

    def _finish(self, found: Diagnosis[S], reason: str, before: Manifest | None = None) -> None:
        """Make card and manifest again; a card that says what it must is kept."""
        self.withdraw_made(MANIFEST, reason)
        commits = [found.commits[i] for i in sorted(found.commits)]
        if len(commits) == len(self._plan.shards):  # else a dry run, in which records are to come
            new = self.new_manifest(commits, before)
            self.pages = {page.name for page in pages_of(new.shards)}
            for name, make in MADE.items():
                present, problem = attempt(partial(self.content, name))
                right = make(new).encode()
                if present != right and (name == CARD or problem != "missing"):
                    self._publish_made(name, right, problem or "is not what the records say")
        self.note("publish", MANIFEST, reason)
        if not self.dry_run:
            self.publish_manifest(commits, before)

    def _mend_made(self, found: Diagnosis[S], manifest: Manifest) -> None:
        """Make the card, and whatever else is made from an intact manifest, again."""
        for name, make in MADE.items():
            record = manifest.files.get(name)
            if record is None or (problem := self.trouble(name, record)) is None:
                continue
            content = make(manifest).encode()
            if hashlib.sha256(content).hexdigest() != record.sha256:
                # another version made it: its manifest cannot be satisfied any more
                self._finish(found, f"names a {name} that this version cannot make", manifest)
                return
            self._publish_made(name, content, problem)

    # -- where it is ------------------------------------------------------------------------------

    @abstractmethod
    def content(self, name: str) -> bytes:
        """The bytes of a file; raises as `attempt` understands."""

    @abstractmethod
    def trouble(self, name: str, record: FileRecord) -> str | None:
        """Why a file is not the one that was recorded; None: it is."""

    @abstractmethod
    def create(self, name: str, content: bytes) -> None:
        """Make a file."""

    @abstractmethod
    def withdraw(self, shard: PlannedShard, reason: str, seen: S) -> None:
        """Take a shard and its record out, if they are still those that were judged."""

    @abstractmethod
    def withdraw_made(self, name: str, reason: str, *, again: bool = False) -> None:
        """Take out the manifest, or what was made from it.

        Args:
            again: whatever is there now, and not only what was there at first.
        """

    @abstractmethod
    def adopt(self, shard: PlannedShard, reason: str, seen: S) -> Commit | None:
        """Give a shard its record; None: a dry run, or it is not there any more."""

    @abstractmethod
    def new_manifest(self, commits: Sequence[Commit], before: Manifest | None) -> Manifest:
        """What the manifest of all records says, without card."""

    @abstractmethod
    def publish_manifest(self, commits: Sequence[Commit], before: Manifest | None) -> None:
        """Publish it."""

    @abstractmethod
    def clear_claims(self) -> None:
        """Nobody has anything to make: remove claims."""

    @abstractmethod
    def clear_pages(self, manifest: Manifest) -> None:
        """Remove the pages that no record names."""


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


def plan_to_repair(
    root: Path | Address, read: Callable[[], Plan], manifest: Callable[[], Manifest]
) -> Plan:
    """The plan, which says what every shard must be.

    Args:
        read: the plan; raises as `attempt` understands.
        manifest: likewise.

    Raises:
        FormatError: there is neither.
        IntegrityError: it is missing or damaged.
        UnreadableError, RemoteError: it cannot be read, for a reason that is not damage.
    """
    try:
        plan = read()
        check_pages(plan.shards)
        return plan
    except (FileNotFoundError, NotADirectoryError) as e:
        found, why = attempt(manifest)
        if why == "missing":
            raise FormatError(
                f"{root}: not a store (neither {PLAN} nor {MANIFEST}); is the path right?"
            ) from e
        problem = f"{root / PLAN}: missing"
    except (UnreadableError, RemoteError):
        raise
    except StoreError as e:
        found, _ = attempt(manifest)
        problem = str(e)
    if found is not None:
        raise IntegrityError(
            f"{problem}. The plan cannot be made from the other files; nothing was changed. The store can still be "
            f"read and trained from (its {MANIFEST} is intact), but not repaired: copy {PLAN} again from the store's "
            "source, or build the store again in another folder"
        )
    raise IntegrityError(
        f"{problem}. The plan cannot be made from the other files, and {MANIFEST} is not intact either; nothing was "
        f"changed. Copy {PLAN} again from the store's source, or build the store again in another folder"
    )


def check_one_build(root: Path | Address, plan: Plan, manifest: Manifest | None) -> None:
    """Refuse a plan and a manifest of two builds."""
    if manifest is not None and not _same_shape(plan, manifest):
        raise IntegrityError(
            f"{root}: {PLAN} and {MANIFEST} are of two builds; put the right one back (nothing was changed)"
        )


def _same_shape(plan: Plan, manifest: Manifest) -> bool:
    def shape(shard: PlannedShard | ShardRecord) -> tuple[str, int, int, int]:
        return shard.name, shard.start_row, shard.rows, shard.positions

    return (
        plan.identity == manifest.identity
        and len(plan.shards) == len(manifest.shards)
        and all(shape(a) == shape(b) for a, b in zip(plan.shards, manifest.shards, strict=True))
        and plan.files == {n: f for n, f in manifest.files.items() if n in plan.files}
    )


def beside(
    root: Path | Address,
    plan: Plan,
    manifest: Manifest | None,
    trouble: Callable[[str, FileRecord], str | None],
) -> list[str]:
    """Damaged files beside the shards: they are the teacher's, and neither repair nor build makes them again."""
    records = plan.files | ({} if manifest is None else manifest.files)
    problems = []
    for name, record in records.items():
        if name in MADE:
            continue
        if (problem := trouble(name, record)) is not None:
            problem = f"{root / name}: missing" if problem == "missing" else problem
            problems.append(
                f"{problem}. Repair cannot make it again: copy it from the store's source, or from another store "
                "that was built with the same tokenizer"
            )
    return problems


def strangers(
    root: Path | Address,
    plan: Plan,
    manifest: Manifest | None,
    names: Iterable[str],
    known: set[str],
) -> list[str]:
    """A sentence for each file that no record of the store names.

    Args:
        manifest: with its pages, though one be damaged.
        names: of all files.
        known: names that are the store's where it lies.
    """
    known = known | {PLAN, MANIFEST, SIGNATURE, *plan.files}
    known |= {p.name for p in pages_of(plan.shards, None if manifest is None else manifest.shards)}
    known |= set(MADE if manifest is None else manifest.files) | {CARD}
    if plan.identity.encoding.dictionary_shards is not None:
        known.add(DICTIONARY)
    for shard in plan.shards:
        known |= {shard.name, commit_name(shard.index)}
    return [
        f"{root / name}: no record of the store names it, so it was left alone; look at it, and move it to where it "
        "belongs"
        for name in sorted(names)
        if name not in known and not name.startswith(f"{QUARANTINE}/")
    ]
