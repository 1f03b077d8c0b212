"""The pages of a store's records, in its folder: published before the record that names them, and cleared after it.

A page that no record names is left by a builder that died, or whose plan or manifest was not the one in force. Its name
says what its bytes must be, so it is known to be ours, whoever left it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from softlabels.core.durable import publish
from softlabels.core.inside import inside
from softlabels.core.records import read_file, sha256_of
from softlabels.errors import UnreadableError
from softlabels.format.pages import FOLDER, pages_of
from softlabels.format.shard_records import ManifestPages, PlannedShard, PlanPages, ShardRecord
from softlabels.making.quarantine import move_aside, retract, sighting

NAMES = re.compile(rf"({PlanPages.STEM}|{ManifestPages.STEM})-\d{{5,}}-([0-9a-f]{{12}})\.parquet")


def publish_page(store: Path, name: str, data: bytes) -> None:
    """Give a page its name; what else is there is moved aside.

    Raises:
        StoreError: it cannot be written, or what is there cannot be moved.
    """
    path = inside(store, name)
    while not publish(path, data):
        seen = sighting(path)
        try:
            if read_file(path) == data:
                return
        except FileNotFoundError:
            continue
        move_aside(store, path, seen)


def left_pages(
    store: Path, *records: Sequence[PlannedShard] | Sequence[ShardRecord]
) -> Iterator[Path]:
    """Pages of ours that none of these records names."""
    named = {p.name for p in pages_of(*records)}
    for path in sorted((store / FOLDER).glob("*.parquet")):
        found = NAMES.fullmatch(path.name)
        if found is None or f"{FOLDER}/{path.name}" in named or path.is_symlink():
            continue
        if path.is_file() and _begins(path, found[2]):
            yield path


def clear_pages(store: Path, *records: Sequence[PlannedShard] | Sequence[ShardRecord]) -> None:
    """Remove the pages that none of the records in force names."""
    for path in left_pages(store, *records):
        begins = path.stem.rpartition("-")[2]
        retract(store, path, sighting(path), partial(_begins, digest=begins))


def _begins(path: Path, digest: str) -> bool:
    """Whether the digest of a file begins so."""
    try:
        return sha256_of(path).startswith(digest)
    except OSError as e:
        raise UnreadableError(f"{path}: cannot be read ({e.strerror}); try again") from e
