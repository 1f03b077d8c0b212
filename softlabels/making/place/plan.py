"""The plan of a store that is made in a `Place`, and what lies beside it: published there, and mirrored in a folder.

The folder is scratch: it holds what builders read again and again (the plan, the tokenizer, dictionaries), under the
names that they have in the store. What is there is only ever a copy of what is in force in the place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from softlabels.core.durable import publish
from softlabels.core.records import (
    FILE_LIMIT,
    RECORD_LIMIT,
    FileRecord,
    Record,
    check_file,
    parse_record,
)
from softlabels.errors import IntegrityError, PlanError, StoreError
from softlabels.format.layout import BESIDE
from softlabels.format.manifest import MANIFEST, PLAN, Manifest, Plan
from softlabels.format.pages import pages_of
from softlabels.making.place import HELD, PROBE, Place
from softlabels.making.place.names import PLANNING
from softlabels.making.place.publishing import published
from softlabels.making.plan import load_plan, paged_plan, plan_content
from softlabels.making.same_job import check_same_job


class Mirror:
    """A place, and the folder in which some of its files are, too."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place, self.folder = place, folder

    def fetch(self, name: str, *, limit: int = FILE_LIMIT) -> bytes:
        """Copy a file into the folder, unless it is there; `FileNotFoundError`: there is none."""
        path = self.folder / name
        if path.exists():
            return path.read_bytes()
        data, _ = self.place.read(name, limit=limit)
        publish(path, data)
        return data

    def put(self, name: str, data: bytes) -> bytes:
        """Publish a file in the place, unless there is one; what is then there, which is in the folder, too."""
        data, _ = published(self.place, name, data)
        publish(self.folder / name, data)
        return data


def begun_in(mirror: Mirror) -> Plan | None:
    """The plan of a store that was begun in a place, mirrored; None: there is none yet, and nothing of anybody else's.

    Raises:
        PlanError: the place holds something else.
        IntegrityError: the plan, or a file beside it, is damaged.
    """
    try:
        data = mirror.fetch(PLAN, limit=RECORD_LIMIT)
    except FileNotFoundError:
        _check_empty(mirror.place)
        return None
    plan = parse_record(data, Plan, where=mirror.place.root / PLAN)
    pages = {p.name: FileRecord(sha256=p.sha256, bytes=p.bytes) for p in pages_of(plan.shards)}
    for name, record in (plan.files | pages).items():
        try:
            mirror.fetch(name, limit=record.bytes)
        except FileNotFoundError as e:
            raise IntegrityError(
                f"{mirror.place.root / name}: missing, and the plan lists it; choose another --out"
            ) from e
        check_file(mirror.folder / name, sha256=record.sha256, size=record.bytes)
    return load_plan(mirror.folder)


def begin_in(mirror: Mirror, asked: Plan, files: Mapping[str, bytes], *, command: str) -> Plan:
    """The plan in force: the one that is there, or else the one that is asked for, published.

    Raises:
        PlanError: another job is planned there, or the plan is too large for a record.
    """
    planned = begun_in(mirror)
    if planned is None:
        paged, pages = paged_plan(asked)
        content = plan_content(mirror.place.root, paged)
        for name, data in (dict(files) | pages).items():
            if mirror.put(name, data) != data:
                raise PlanError(
                    f"{mirror.place.root / name}: is there already with other content; another job was begun there: "
                    "choose another --out"
                )
        mirror.put(PLAN, content)
        planned = begun_in(mirror)
        assert planned is not None, "it was published this moment"
    check_same_job(mirror.place.root, planned, asked, command=command)
    return planned


def _check_empty(place: Place) -> None:
    """Refuse a place without a plan that holds anything but what builders leave that have no plan yet."""
    foreign = [e.name for e in place.list("") if not _is_left(e.name)]
    if not foreign or _is_record(place, PLAN, Plan):
        return  # another builder has just published it
    what = f"is not empty and not a store (it holds {foreign[0]!r});"
    if _is_record(place, MANIFEST, Manifest):
        what = (
            f"is a finished store whose {PLAN} is gone: it can be read and trained from as it is, but not gone on "
            f"with; copy {PLAN} again from the store's source, or"
        )
    raise PlanError(f"{place.root}: {what} choose another --out")


def _is_left(name: str) -> bool:
    """Whether a file is such as a builder leaves that has no plan yet."""
    held = f"{HELD}/{PLANNING}.json"
    return name.partition("/")[0] in BESIDE or name.startswith(PROBE) or name == held


def _is_record(place: Place, name: str, kind: type[Record]) -> bool:
    try:
        parse_record(place.read(name, limit=RECORD_LIMIT)[0], kind, where=name)
    except (StoreError, FileNotFoundError):
        return False
    return True
