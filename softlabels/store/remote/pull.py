"""`pull`: copy a store, or a share of its shards, into a folder; only what is not there yet.

The flow:
 1. read the manifest there, choose shards: those of the smallest digests first, so that a larger share contains
    a smaller one, and the same part is chosen by all who ask for it;
 2. refuse a folder that holds anything else, and mark it as ours: the marker is the manifest of what is coming, whose
    pages follow, if it has any;
 3. fetch them, then the files beside them, each into a temporary file that gets its name when its digest is right;
    a file that broke off is gone on with, and what has the name already is replaced if a record of the earlier pull
    proves it ours, else moved aside;
 4. of a part: decode its shards, and write `part.json`;
 5. the manifest, last. Until then the folder is no store, or the one of before.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

from softlabels.core.durable import (
    alone,
    explained,
    is_temporary,
    make_folder,
    publish,
    replace,
    sweep,
    sync_folder,
)
from softlabels.core.inside import inside, open_part, refuse_links
from softlabels.core.progress import Reporter, Silent
from softlabels.core.records import (
    FORMAT,
    FORMAT_VERSION,
    Record,
    canonical,
    read_record,
    read_record_file,
    seal,
    sha256_of,
)
from softlabels.errors import ConfigError, IntegrityError, StoreError, UnreadableError
from softlabels.format.files import LocalFiles, Recorded
from softlabels.format.manifest import (
    MANIFEST,
    PLAN,
    SIGNATURE,
    Commit,
    Manifest,
    Plan,
    load_manifest,
    parse_manifest,
)
from softlabels.format.pages import pages_of, recorded_page
from softlabels.format.part import PART, Counting, Part
from softlabels.making.pages import clear_pages, left_pages
from softlabels.making.quarantine import QUARANTINE, make_way
from softlabels.store.demand import Demand, Vouched, read_vouched
from softlabels.store.readable import check_known
from softlabels.store.reader import Store
from softlabels.store.remote.cache import CacheOptions, complete
from softlabels.store.remote.files import RemoteFiles, fetch_recorded
from softlabels.store.remote.transfer import (
    Transfer,
    check_commit,
    check_grown,
    commit_name,
    read_beside,
    read_plan_record,
    several,
    transferred,
)

COMING = ".tmp-pull-"
"""Begins the names of files that are not whole yet."""
MARKER = f"{COMING}began.json"
"""The manifest of what is coming, written first: until the store's own is there, it says which files are ours."""


def pull(
    url: str,
    folder: Path,
    *,
    share: float | None = None,
    rows: int | None = None,
    reporter: Reporter | None = None,
    demand: Demand | None = None,
) -> Transfer:
    """Copy a store from an address into a folder.

    Args:
        url: of the store.
        folder: empty, or not there, or with an earlier or smaller pull of the store.
        share: of the rows, above 0 and at most 1; whole shards are taken until they have as many.
        rows: so many at least, instead of a share. Neither: all.
        reporter: receives the progress, in shards.
        demand: what the whole store there must be, signed for instance; else nothing is fetched.

    Raises:
        ConfigError: both share and rows, or impossible ones.
        IntegrityError: what came is not what the manifest says, or the folder holds another store.
        RemoteError: out of reach.
    """
    if "://" not in url:
        raise ConfigError(f"{url}: is no address; copy a folder with `cp -r`")
    if share is not None and rows is not None:
        raise ConfigError("--share and --rows: give one of them")
    if share is not None and not 0 < share <= 1:
        raise ConfigError(f"--share {share:g}: expected above 0 and at most 1")
    if rows is not None and rows < 1:
        raise ConfigError(f"--rows {rows}: expected at least 1")
    origin = RemoteFiles(url, CacheOptions(gib=0))
    vouched = read_vouched(origin, demand)
    manifest = vouched.manifest
    check_known(origin.root, manifest.identity)
    if vouched.part is not None:
        raise IntegrityError(f"{url}: is only a part of a store; pull from where the whole is")
    wanted = _choose(manifest, share, rows)
    _check_folder(folder, manifest)  # before anything is written there
    with explained(folder):
        make_folder(folder)
        with alone(folder, taken="another pull is at work there; wait for it"):
            _check_folder(folder, manifest)
            sweep(folder)
            records = _Records(folder)
            _mark(folder, vouched.data)
            receiver = _Receiver(origin, folder, vouched, records, reporter or Silent())
            moved = receiver.receive(wanted)
            (folder / MARKER).unlink(missing_ok=True)
            return moved


def _choose(manifest: Manifest, share: float | None, rows: int | None) -> list[int]:
    """Numbers of the shards to have, ascending."""
    shards = manifest.shards
    if share is None and rows is None:
        return list(range(len(shards)))
    least = rows if rows is not None else (share or 1.0) * manifest.rows
    if least > manifest.rows:
        raise ConfigError(f"--rows {rows}: the store has {manifest.rows}")
    order = sorted(range(len(shards)), key=lambda i: (shards[i].sha256, i))
    sums = accumulate(shards[i].rows for i in order)
    count = next(n for n, total in enumerate(sums, 1) if total >= least - 1e-6)
    return sorted(order[:count])


def _check_folder(folder: Path, manifest: Manifest) -> None:
    """Refuse a folder of anything but an earlier pull of this store; nothing is changed.

    A file is ours if the store's manifest, or the marker of a pull that broke off, names it, or if it has the bytes
    that would be fetched.

    Raises:
        IntegrityError: names what is there.
        StoreError: a name that is to come leads through a link.
    """
    if not folder.is_dir():
        return
    ours, coming, present = set[str](), _names_of(manifest), (folder / MANIFEST).exists()
    refuse_links(folder, coming)
    if present:
        old = load_manifest(folder)
        check_grown(old, manifest, folder)
        ours |= _names_of(old)
    marked = _marked(folder)
    ours |= marked
    ours |= {page.relative_to(folder).as_posix() for page in left_pages(folder)}
    recorded = {s.name: s.sha256 for s in manifest.shards}
    recorded |= {page.name: page.sha256 for page in pages_of(manifest.shards)}
    recorded |= {name: record.sha256 for name, record in manifest.files.items()}
    for name in LocalFiles(folder).names() or []:
        last = name.rpartition("/")[2]
        begun = last.startswith(COMING) and not (folder / name).is_symlink()
        if name in ours or begun or is_temporary(last):
            continue
        if (present and name not in coming) or (marked and name.startswith(f"{QUARANTINE}/")):
            continue  # it is in nobody's way
        if name not in recorded or _digest(folder / name) != recorded[name]:
            raise IntegrityError(
                f"{folder / name}: is not of the store that is pulled; choose another folder"
            )


def _names_of(manifest: Manifest) -> set[str]:
    """All files of a store, and of a part of it."""
    names = {s.name for s in manifest.shards} | {*manifest.files, MANIFEST, PLAN, PART, SIGNATURE}
    names |= {p.name for p in pages_of(manifest.shards)}
    return names | {commit_name(i) for i in range(len(manifest.shards))}


def _coming(folder: Path) -> Manifest | None:
    """What a pull that broke off was of; None: none did."""
    try:
        return parse_manifest(read_record_file(folder / MARKER), LocalFiles(folder), name=MARKER)
    except FileNotFoundError:
        return None


def _marked(folder: Path) -> set[str]:
    """The files of a pull that broke off; none did, none."""
    manifest = _coming(folder)
    if manifest is None:
        return set()
    if any(not (folder / page.name).exists() for page in pages_of(manifest.shards)):
        return {PLAN}  # shards come after all pages
    return _names_of(manifest)


def _mark(folder: Path, data: bytes) -> None:
    """Say that the folder is ours, and which files are to come."""
    path = folder / MARKER
    if not publish(path, data) and read_record_file(path) != data:
        replace(path, data)  # of an earlier pull, which `_check_folder` has read


class _Records:
    """What proves that a file of a folder is an earlier pull's: read before the first is replaced."""

    def __init__(self, folder: Path) -> None:
        self.manifest = load_manifest(folder) if (folder / MANIFEST).exists() else None
        self._files = dict[str, set[str]]()
        """Digests by name, of the store that is there and of one that was on its way."""
        for manifest in (self.manifest, _coming(folder)):
            for name, record in ({} if manifest is None else manifest.files).items():
                self._files.setdefault(name, set()).add(record.sha256)

    def prove(self, name: str, path: Path) -> bool:
        """Whether a file is as it was pulled. Of a signature nothing tells it, and a shard is never another."""
        kind = Commit if name.startswith("commits/") else _SEALED.get(name)
        if kind is None:
            return name in self._files and _digest(path) in self._files[name]
        try:
            read_record(path, kind)
        except UnreadableError:
            raise  # which is no proof of anything
        except (StoreError, FileNotFoundError):
            return False
        return True


_SEALED: dict[str, type[Record]] = {MANIFEST: Manifest, PLAN: Plan, PART: Part}


class _Receiver:
    """Brings the files of a store into a folder."""

    def __init__(
        self,
        origin: RemoteFiles,
        folder: Path,
        vouched: Vouched,
        records: _Records,
        report: Reporter,
    ) -> None:
        self._origin, self._folder, self._records = origin, folder, records
        self._manifest, self._data = vouched.manifest, vouched.data
        self._report, self._moved = report, dict[str, int]()

    def receive(self, wanted: Sequence[int]) -> Transfer:
        """Bring these shards, and all that belongs to them; those that are there stay."""
        shards, plan = self._manifest.shards, read_plan_record(self._origin)
        several(self._bring, map(recorded_page, pages_of(shards)))
        had = {i for i, s in enumerate(shards) if (self._folder / s.name).exists()}
        chosen = sorted(had | set(wanted))
        files = [Recorded(shards[i].name, shards[i].sha256, shards[i].bytes) for i in chosen]
        self._report.stage("pull", len(files), "shards")
        several(self._bring, files, self._report.advance)
        beside = [Recorded(n, r.sha256, r.bytes) for n, r in self._manifest.files.items()]
        beside += map(recorded_page, pages_of(plan.shards))
        several(self._bring, beside)
        self._write(PLAN, read_beside(self._origin, PLAN))
        several(lambda i: self._bring_commit(i, plan), chosen)
        part = None if len(chosen) == len(shards) else self._part(chosen)
        if part is not None:
            self._write(PART, canonical(part))
        self._bring_signature()
        self._write(MANIFEST, self._data)
        if part is None:
            self._make_way(PART).unlink(missing_ok=True)
        old = self._records.manifest
        for name in () if old is None else old.files.keys() - self._manifest.files.keys():
            path = inside(self._folder, name)
            if self._records.prove(name, path):
                path.unlink(missing_ok=True)
        clear_pages(self._folder, plan.shards, shards)
        return transferred(self._manifest, self._moved, part)

    def _bring(self, file: Recorded) -> None:
        """A file that the manifest vouches for, unless it is there and whole."""
        path = inside(self._folder, file.name)
        if _digest(path) == file.sha256:
            return
        make_folder(path.parent)
        coming = path.with_name(f"{COMING}{path.name}-{file.sha256[:16]}")
        fetch = partial(fetch_recorded, self._origin.client, file, threading.Event())
        with open_part(coming) as sink:
            complete(sink, file.sha256, file.bytes, fetch, self._origin.root / file.name)
            os.fsync(sink.fileno())
        self._make_way(file.name)
        coming.replace(path)
        sync_folder(path.parent)
        self._moved[file.name] = file.bytes

    def _bring_commit(self, index: int, plan: Plan) -> None:
        name, sha256 = commit_name(index), self._manifest.shards[index].sha256
        if self._has_commit(name, plan, sha256):
            return
        data = read_beside(self._origin, name)
        check_commit(data, plan, sha256, self._origin.root / name)
        self._write(name, data)

    def _has_commit(self, name: str, plan: Plan, sha256: str) -> bool:
        """Whether it is here, and of this generation."""
        try:
            data = read_record_file(self._folder / name)
            check_commit(data, plan, sha256, self._folder / name)
        except (OSError, StoreError):
            return False
        return True

    def _bring_signature(self) -> None:
        """The signature there; one that is here may be the user's own, and stays while its manifest does."""
        try:
            data = self._origin.record(SIGNATURE)
        except FileNotFoundError:
            if not self._is(MANIFEST, self._data):
                self._make_way(SIGNATURE)
            return
        self._write(SIGNATURE, data)

    def _write(self, name: str, data: bytes) -> None:
        """Put a small file in place in one step, unless it is there already."""
        if self._is(name, data):
            return
        replace(self._make_way(name), data)
        self._moved[name] = len(data)

    def _is(self, name: str, data: bytes) -> bool:
        """Whether a small file is here, with these bytes."""
        return _digest(self._folder / name) == hashlib.sha256(data).hexdigest()

    def _make_way(self, name: str) -> Path:
        """Where a file belongs, of which nothing is there but what an earlier pull brought."""
        path = inside(self._folder, name)
        aside = make_way(self._folder, path, partial(self._records.prove, name))
        if aside is not None:
            self._report.notice(
                f"moved {path} to {aside}, since it is not as it was pulled, and the store there has another"
            )
        return path

    def _part(self, chosen: Sequence[int]) -> Part:
        """Count what the shards hold, which decodes all of them."""
        store = Store(LocalFiles(self._folder), self._manifest, cached_shards=1)
        counting = Counting()
        for i in chosen:
            content, statistics = store.read_counted(i)
            content.targets.validate(where=str(self._folder / self._manifest.shards[i].name))
            counting.add(content, statistics)
        return seal(
            Part(
                format=FORMAT,
                version=FORMAT_VERSION,
                whole=self._manifest.digest,
                shards=list(chosen),
                corpus=counting.corpus(self._manifest.identity.corpus),
                statistics=counting.statistics,
                digest="0" * 64,
            )
        )


def _digest(path: Path) -> str | None:
    """sha256 of a file; None: there is none, or it is a pipe or a device, which may have no end."""
    try:
        return sha256_of(path) if stat.S_ISREG(path.stat().st_mode) else None
    except (FileNotFoundError, NotADirectoryError):
        return None
