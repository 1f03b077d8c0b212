"""What is wrong with a store: each shard looked at, nothing changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TypeVar

from softlabels.core.progress import Reporter
from softlabels.core.records import FileRecord, check_file, read_file, read_record
from softlabels.errors import IntegrityError, SoftLabelsError, UnreadableError
from softlabels.format.dictionaries import Dictionaries
from softlabels.format.manifest import Commit, Manifest, Plan
from softlabels.format.shard_records import PlannedShard
from softlabels.making.commit import Seen, commit_path, is_of, judged, look
from softlabels.making.plan import PLAN

T = TypeVar("T")


@dataclass(kw_only=True)
class Diagnosis:
    """Of all shards, by their index."""

    seen: dict[int, Seen] = field(default_factory=dict)
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
        UnreadableError: the reason is no proof of damage.
    """
    try:
        return check(), None
    except (FileNotFoundError, NotADirectoryError):
        return None, "missing"
    except UnreadableError:
        raise
    except SoftLabelsError as e:
        if isinstance(e.__cause__, FileNotFoundError | NotADirectoryError):
            return None, "missing"
        return None, str(e)


def trouble(file: Path, record: FileRecord) -> str | None:
    """Why a file is not the one that was recorded; None: it is."""
    return attempt(lambda: check_file(file, sha256=record.sha256, size=record.bytes))[1]


def diagnose(path: Path, plan: Plan, manifest: Manifest | None, report: Reporter) -> Diagnosis:
    """Look at every shard, one at a time in memory.

    Args:
        manifest: of the same plan; None: there is none that is intact.

    Raises:
        IntegrityError: a shard and its record are intact, but of another build.
        UnreadableError: a file cannot be read, for a reason that is not damage.
    """
    found = Diagnosis()
    find = Dictionaries(path, plan.identity.teacher.vocab_size)
    report.stage("repair", len(plan.shards), "shards")
    records = repeat(None) if manifest is None else manifest.shards
    for shard, record in zip(plan.shards, records, strict=False):
        _look_at(path, plan, shard, None if record is None else record.sha256, find, found)
        report.advance(1)
    return found


def _look_at(
    path: Path,
    plan: Plan,
    shard: PlannedShard,
    listed: str | None,
    find: Dictionaries,
    found: Diagnosis,
) -> None:
    """Decide about one shard; `listed` is its sha256 in an intact manifest."""
    i, file, record = shard.index, path / shard.name, commit_path(path, shard)
    found.seen[i] = look(path, shard)
    data, missing = attempt(lambda: read_file(file))
    sha256 = None if data is None else hashlib.sha256(data).hexdigest()
    commit, no_commit = attempt(lambda: read_record(record, Commit))
    ours = commit is not None and is_of(commit, plan, shard)
    recorded = {listed} if listed is not None else set()
    if ours and commit is not None:
        recorded.add(commit.sha256)
    if data is None:
        unfit = missing
    elif recorded and sha256 not in recorded:  # not decoded: it may be anything
        unfit = f"{file}: sha256 is {sha256}, its records say otherwise: torn or altered"
    else:
        _, unfit = judged(data, plan.identity, shard, find, where=str(file))
    if commit is not None and not ours:
        if unfit is not None and commit.sha256 == sha256 and commit.name == shard.name:
            raise IntegrityError(
                f"{file}: it and {record} are intact, but of another build than {PLAN}; put the right plan back, or "
                "move both files away (nothing was changed)"
            )
        no_commit = f"{record}: belongs to another plan or shard"
    if ours and commit is not None and commit.sha256 == sha256 and unfit is None:
        found.commits[i] = commit
        if listed not in (None, sha256):
            found.stale_manifest = f"lists another {shard.name} than its record and its bytes are"
    elif unfit is not None:
        found.rebuild[i] = unfit
    else:
        found.adopt[i] = no_commit or f"{record}: its sha256 is not the shard's"
