"""What is wrong with a store, in a folder or a bucket: each shard looked at, nothing changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from softlabels.core.progress import Reporter
from softlabels.core.records import FileRecord, check_file, read_file, read_record
from softlabels.errors import IntegrityError, RemoteError, SoftLabelsError, UnreadableError
from softlabels.format.dictionaries import Dictionaries
from softlabels.format.encoding import FindDictionary
from softlabels.format.files import Address
from softlabels.format.manifest import PLAN, Commit, Manifest, Plan
from softlabels.format.shard_records import PlannedShard
from softlabels.making.commit import Seen, commit_path, is_of, judged, look
from softlabels.making.place.commit import commit_name

T = TypeVar("T")
S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)


class Shelf(Protocol[S_co]):
    """Where the shards lie that are judged."""

    find: FindDictionary

    @property
    def root(self) -> Path | Address:
        """The store."""

    def look(self, shard: PlannedShard) -> S_co:
        """Which files lie at a shard's names; asked for before they are judged."""

    def data(self, shard: PlannedShard) -> bytes:
        """The bytes of a shard; raises as `attempt` understands."""

    def record(self, shard: PlannedShard) -> Commit:
        """Its record; raises as `attempt` understands."""

    def fits(self, shard: PlannedShard, data: bytes) -> None:
        """A shard is the planned one: note what is needed of its bytes later."""


class FolderShelf:
    """The shards of a folder."""

    def __init__(self, root: Path, plan: Plan) -> None:
        self.root = root
        self.find: FindDictionary = Dictionaries(root, plan.identity.teacher.vocab_size)

    def look(self, shard: PlannedShard) -> Seen:
        """Which files they are."""
        return look(self.root, shard)

    def data(self, shard: PlannedShard) -> bytes:
        """The bytes of a shard."""
        return read_file(self.root / shard.name)

    def record(self, shard: PlannedShard) -> Commit:
        """Its record."""
        return read_record(commit_path(self.root, shard), Commit)

    def fits(self, shard: PlannedShard, data: bytes) -> None:
        """Nothing: they can be read again."""


@dataclass(kw_only=True)
class Diagnosis(Generic[S]):
    """Of all shards, by their index."""

    seen: dict[int, S] = field(default_factory=dict)
    """The files that were judged."""
    commits: dict[int, Commit] = field(default_factory=dict)
    """The records of those that are as they must be."""
    adopt: dict[int, str] = field(default_factory=dict)
    """Those that fit the plan and have no good record, and why."""
    rebuild: dict[int, str] = field(default_factory=dict)
    """Those that are missing, torn, altered or not the planned ones, and why."""
    stale_manifest: str | None = None
    """Why the manifest, though intact, is not this store's."""


def attempt(check: Callable[[], T]) -> tuple[T | None, str | None]:
    """The result, or why there is none.

    Raises:
        UnreadableError, RemoteError: the reason is no proof of damage.
    """
    try:
        return check(), None
    except (FileNotFoundError, NotADirectoryError):
        return None, "missing"
    except (UnreadableError, RemoteError):
        raise
    except SoftLabelsError as e:
        if isinstance(e.__cause__, FileNotFoundError | NotADirectoryError):
            return None, "missing"
        return None, str(e)


def trouble(file: Path, record: FileRecord) -> str | None:
    """Why a file is not the one that was recorded; None: it is."""
    return attempt(lambda: check_file(file, sha256=record.sha256, size=record.bytes))[1]


def diagnose(
    shelf: Shelf[S], plan: Plan, manifest: Manifest | None, report: Reporter
) -> Diagnosis[S]:
    """Look at every shard, one at a time in memory.

    Args:
        manifest: of the same plan; None: there is none that is intact.

    Raises:
        IntegrityError: a shard and its record are intact, but of another build.
        UnreadableError, RemoteError: a file cannot be read, for a reason that is not damage.
    """
    found = Diagnosis[S]()
    report.stage("repair", len(plan.shards), "shards")
    records = repeat(None) if manifest is None else manifest.shards
    for shard, record in zip(plan.shards, records, strict=False):
        _look_at(shelf, plan, shard, None if record is None else record.sha256, found)
        report.advance(1)
    return found


def _look_at(
    shelf: Shelf[S],
    plan: Plan,
    shard: PlannedShard,
    listed: str | None,
    found: Diagnosis[S],
) -> None:
    """Decide about one shard; `listed` is its sha256 in an intact manifest."""
    i, file, record = shard.index, shelf.root / shard.name, shelf.root / commit_name(shard.index)
    found.seen[i] = shelf.look(shard)
    data, missing = attempt(lambda: shelf.data(shard))
    sha256 = None if data is None else hashlib.sha256(data).hexdigest()
    commit, no_commit = attempt(lambda: shelf.record(shard))
    ours = commit is not None and is_of(commit, plan, shard)
    recorded = {listed} if listed is not None else set()
    if ours and commit is not None:
        recorded.add(commit.sha256)
    if data is None:
        unfit = missing
    elif recorded and sha256 not in recorded:  # not decoded: it may be anything
        unfit = f"{file}: sha256 is {sha256}, its records say otherwise: torn or altered"
    else:
        _, unfit = judged(data, plan.identity, shard, shelf.find, where=str(file))
    if commit is not None and not ours:
        if unfit is not None and commit.sha256 == sha256 and commit.name == shard.name:
            raise IntegrityError(
                f"{file}: it and {record} are intact, but of another build than {PLAN}; put the right plan back, or "
                "move both files away (nothing was changed)"
            )
        no_commit = f"{record}: belongs to another plan or shard"
    if data is not None and unfit is None:
        shelf.fits(shard, data)
    if ours and commit is not None and commit.sha256 == sha256 and unfit is None:
        found.commits[i] = commit
        if listed not in (None, sha256):
            found.stale_manifest = f"lists another {shard.name} than its record and its bytes are"
    elif unfit is not None:
        found.rebuild[i] = unfit
    else:
        found.adopt[i] = no_commit or f"{record}: its sha256 is not the shard's"
