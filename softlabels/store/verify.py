"""Checking a whole store: every file that the manifest names, and every file that it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from softlabels.errors import IntegrityError, SoftLabelsError
from softlabels.store.commit import TEMPORARY
from softlabels.store.finish import MADE
from softlabels.store.manifest import MANIFEST, SIGNATURE, Commit, Plan, load_manifest
from softlabels.store.plan import PLAN, RowDigests
from softlabels.store.reader import Store
from softlabels.store.records import check_file, read_record

__all__ = ["Report", "verify_store"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `verify_store` found."""

    files: int
    """Files compared with their recorded digest."""
    bytes: int
    rows: int
    positions: int
    problems: list[str] = field(default_factory=list)
    """Empty: the store is whole. Each names file, row where there is one, and the way out."""


def verify_store(
    path: Path, *, deep: bool = True, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Compare every file with its digest and, if `deep`, decode every shard and check every invariant.

    Raises:
        StoreError: the manifest itself cannot be read; nothing else can then be trusted.
    """
    manifest = load_manifest(path)
    store = Store(path, manifest, cached_shards=1)
    problems: list[str] = []
    files = size = rows = positions = 0
    known = {MANIFEST, PLAN, SIGNATURE}

    for name, record in manifest.files.items():
        known.add(name)
        try:
            check_file(path / name, sha256=record.sha256, size=record.bytes)
            files, size = files + 1, size + record.bytes
        except SoftLabelsError as e:
            again = f"; `softlabels repair {path}` makes it again" if name in MADE else ""
            problems.append(f"{e}{again}")
    plan = _plan(path, problems)

    fingerprint = RowDigests()
    for i, shard in enumerate(manifest.shards):
        known.add(shard.name)
        commit = f"commits/{i:05d}.json"
        known.add(commit)
        try:
            _check_commit(path / commit, plan, shard.sha256)
            if deep:
                content = store.read_shard(i, named=True)
                content.targets.validate(where=str(path / shard.name))
                for row in content.rows:
                    fingerprint.add(row)
            else:
                check_file(path / shard.name, sha256=shard.sha256, size=shard.bytes)
            files, size = files + 1, size + shard.bytes
            rows, positions = rows + shard.rows, positions + shard.positions
        except SoftLabelsError as e:
            problems.append(str(e))
        if progress is not None:
            progress(i + 1, len(manifest.shards))
    if deep and not problems and fingerprint.hexdigest() != manifest.identity.corpus.fingerprint:
        problems.append(f"{path / MANIFEST}: the rows are not those of the corpus fingerprint")
    problems += _strangers(path, known)
    return Report(files=files + 1, bytes=size, rows=rows, positions=positions, problems=problems)


def _plan(path: Path, problems: list[str]) -> Plan | None:
    try:
        return read_record(path / PLAN, Plan)
    except FileNotFoundError:
        problems.append(f"{path / PLAN}: missing; copy it again from the store's source")
    except SoftLabelsError as e:
        problems.append(str(e))
    return None


def _check_commit(path: Path, plan: Plan | None, sha256: str) -> None:
    try:
        commit = read_record(path, Commit)
    except FileNotFoundError as e:
        raise IntegrityError(f"{path}: missing; copy it again from the store's source") from e
    if commit.sha256 != sha256 or (plan is not None and commit.plan_digest != plan.digest):
        raise IntegrityError(f"{path}: is of another build than the manifest")


def _strangers(path: Path, known: set[str]) -> list[str]:
    """Files under the store that no record names."""
    found = []
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path).as_posix()
        if file.name.startswith(TEMPORARY):
            found.append(
                f"{file}: left by a builder that died; run the same build again, or delete it"
            )
        elif name not in known:
            found.append(f"{file}: not part of the store; delete it")
    return found
