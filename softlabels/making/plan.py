"""The plan: made once from the corpus, then followed by every builder that works on the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from softlabels.core.durable import explained, is_temporary, publish, sweep, walk
from softlabels.core.inside import inside
from softlabels.core.records import (
    FORMAT,
    FORMAT_VERSION,
    PAGED_VERSION,
    RECORD_LIMIT,
    canonical,
    file_record,
    is_record,
    read_file,
    read_record,
    seal,
)
from softlabels.core.rows import BEGINNING, Cursor, InputRow
from softlabels.errors import CorpusError, FormatError, IntegrityError, PlanError
from softlabels.format.encoding import container_of
from softlabels.format.files import Address, LocalFiles, Recorded
from softlabels.format.identity import Identity
from softlabels.format.layout import BESIDE, FOLDERS
from softlabels.format.manifest import MANIFEST, PLAN, Commit, Manifest, Plan, Provenance
from softlabels.format.pages import PageFiles, Pages, column, in_pages, pages_of, recorded_page
from softlabels.format.shard import inputs_digest
from softlabels.format.shard_records import PlannedShard, PlanPages
from softlabels.making.claims import is_claim

T = TypeVar("T")

IMPORTED = " files, imported"
"""How the engine of a teacher ends that was not run: another tool's numbers are taken for its own."""


def plan_shards(
    placed: Iterable[tuple[Cursor, InputRow]], shard_rows: int
) -> Iterator[PlannedShard]:
    """Cut rows into shards of `shard_rows`; holds one shard's rows at a time.

    Names are known only when the number of shards is: see `numbered`, which numbers them, too.
    """
    source = iter(placed)
    start = 0
    while chunk := list(islice(source, shard_rows)):
        yield planned_shard([row for _, row in chunk], start_row=start, begin=chunk[0][0])
        start += len(chunk)


def planned_shard(
    rows: Sequence[InputRow], *, start_row: int, begin: Cursor = BEGINNING
) -> PlannedShard:
    """These rows as a shard, still without number and name.

    Args:
        start_row: rows before them.
        begin: where in the corpus the first begins.
    """
    return PlannedShard(
        index=0,
        name="unnamed",
        start_row=start_row,
        rows=len(rows),
        positions=sum(r.n for r in rows),
        document=begin.document,
        offset=begin.offset,
        source=begin.location,
        inputs_sha256=inputs_digest(rows),
    )


class Passes(Generic[T]):
    """What the rows of planned shards are made of; shards that are taken in order are one pass over it."""

    def __init__(self, begin: Callable[[PlannedShard], Iterator[T]]) -> None:
        """`begin` begins a pass at the first row of a shard."""
        self._begin, self._next = begin, -1
        self._rest: Iterator[T] = iter(())

    def take(self, shard: PlannedShard) -> list[T]:
        """As many as a shard has rows, or fewer, if there are no more."""
        if self._next != shard.start_row:
            self._rest = self._begin(shard)
        self._next = -1  # an error in the midst of a shard leaves nothing to go on from
        found = list(islice(self._rest, shard.rows))
        self._next = shard.start_row + len(found)
        return found


def check_rows(shard: PlannedShard, rows: Sequence[InputRow], *, where: str) -> None:
    """Refuse other rows than a shard's.

    Raises:
        CorpusError: they are not the ones that were planned.
    """
    if len(rows) != shard.rows or inputs_digest(rows) != shard.inputs_sha256:
        raise CorpusError(
            f"{where}: the rows of shard {shard.index} (from document {shard.document}, token {shard.offset}) are not "
            "those that were planned: the corpus changed; restore it, or choose another --out"
        )


def command_of(record: Plan | Manifest) -> str:
    """Which command of `softlabels` began a store, and finishes it."""
    if record.provenance is not None:
        return record.provenance.operation
    return "import" if record.identity.teacher.engine.endswith(IMPORTED) else "build"


def numbered(shards: Sequence[PlannedShard], identity: Identity) -> list[PlannedShard]:
    """The same, numbered and named one after the other."""
    suffix, n = container_of(identity).suffix, len(shards)
    return [
        msgspec.structs.replace(s, index=i, name=f"data/train-{i:05d}-of-{n:05d}.{suffix}")
        for i, s in enumerate(shards)
    ]


def make_plan(
    identity: Identity,
    shards: list[PlannedShard],
    files: Mapping[str, bytes],
    *,
    shard_rows: int,
    provenance: Provenance | None = None,
) -> Plan:
    """The plan of a store; not sealed yet."""
    return Plan(
        format=FORMAT,
        version=FORMAT_VERSION,
        identity=identity,
        shard_rows=shard_rows,
        files={name: file_record(data) for name, data in files.items()},
        shards=shards,
        digest="0" * 64,
        provenance=provenance,
    )


def paged_plan(plan: Plan) -> tuple[Plan, dict[str, bytes]]:
    """The plan, in pages where it has so many shards, and the files of its pages; not sealed yet."""
    if isinstance(plan.shards, Pages) or not in_pages(len(plan.shards)):
        return plan, {}
    pages, files = PlanPages.written(plan.shards)
    return msgspec.structs.replace(plan, version=PAGED_VERSION, shards=pages), files


def plan_content(store: Path | Address, plan: Plan) -> bytes:
    """The bytes of a plan's file.

    Raises:
        PlanError: there are too many shards for one record.
    """
    content = canonical(seal(plan))
    if len(content) > RECORD_LIMIT:
        raise PlanError(
            f"{store / PLAN}: {len(plan.shards)} shards make a plan of {len(content)} bytes, and readers refuse one of "
            f"more than {RECORD_LIMIT}; raise --shard-rows (now {plan.shard_rows})"
        )
    return content


def publish_plan(store: Path, plan: Plan, files: Mapping[str, bytes]) -> Plan:
    """Write the files that lie beside the shards, and the plan's pages, then the plan, sealed.

    Returns:
        What is then in force.

    Raises:
        PlanError: the folder holds files of another job, or there are too many shards for one record.
    """
    plan, pages = paged_plan(plan)
    content, files = plan_content(store, plan), {**files, **pages}
    check_folder(store, files)
    for name, data in files.items():
        if not publish(inside(store, name), data) and read_file(store / name) != data:
            raise PlanError(  # what a builder left that died before its plan is the same, if its job was
                f"{store / name}: is there already with other content; the folder holds another job: choose another "
                "--out"
            )
    publish(store / PLAN, content)
    return opened_plan(read_record(store / PLAN, Plan), LocalFiles(store))


def begun(store: Path, notice: Callable[[str], None]) -> Plan | None:
    """The plan of a folder that is to become a store; None: it has none yet, and nothing of anybody else's.

    Nothing is written, and nothing removed before a plan of ours says that the folder is ours.

    Raises:
        PlanError: the folder holds something else.
        IntegrityError: the plan, or a file beside it, is damaged.
    """
    plan = load_plan(store)
    if plan is None:
        check_folder(store)
    elif not isinstance(plan.shards, Pages):
        sweep_left(store, notice)
    return plan


def sweep_paged(store: Path, plan: Plan, notice: Callable[[str], None]) -> None:
    """As `sweep_left`, where a listing of all files takes seconds: when all is done, and not whenever it is gone on."""
    if isinstance(plan.shards, Pages):
        sweep_left(store, notice)


def sweep_left(store: Path, notice: Callable[[str], None]) -> None:
    """Remove the temporary files of dead builders from a folder in which our plan stands."""
    for path in sweep(store):
        notice(f"removed {path.name}, left by a builder that died")


def check_folder(store: Path, files: Mapping[str, bytes] | None = None) -> None:
    """Refuse a folder without a plan that holds anything but what builders leave that have no plan yet.

    These are files beside the shards, with the bytes that we would write; the claim on planning; temporary files; and
    empty folders. All else is foreign, whatever its name: the names of our shards are those of other datasets, too.

    Args:
        files: what we would write beside the shards; None: not known yet, so that their content is not compared.

    Raises:
        PlanError: names what was found.
    """
    if not store.is_dir():
        return
    with explained(store):
        for folder, folders, names in walk(store):
            at = Path(folder)
            top = [n for n in folders if at == store and n not in FOLDERS]
            links = [n for n in folders if (at / n).is_symlink()]
            for path in (at / n for n in [*names, *top, *links]):
                if _left(store, path, files):
                    continue
                if (store / PLAN).exists():
                    return  # another builder has just published it
                raise PlanError(f"{store}: {_what_it_is(store, path)} choose another --out")


def _what_it_is(store: Path, path: Path) -> str:
    """What a folder without a plan is, and the first way out; `path` is in it, and not ours to remove."""
    if is_record(store / MANIFEST, Manifest):
        return (
            f"is a finished store whose {PLAN} is gone: it can be read and trained from as it is, but not gone on "
            f"with; copy {PLAN} again from the store's source, or"
        )
    if any(is_record(p, Commit) for p in (store / "commits").glob("*.json")):
        return (
            f"is an unfinished store whose {PLAN} is gone, without which nobody knows what its shards must be; put "
            f"{PLAN} back, or"
        )
    return f"is not empty and not a store (it holds {path.relative_to(store).as_posix()!r});"


def _left(store: Path, path: Path, files: Mapping[str, bytes] | None) -> bool:
    """Whether a file is such as a builder leaves that has no plan yet."""
    if is_temporary(path.name) or (path.parent.parent == store and is_claim(path)):
        return True
    name = path.relative_to(store).as_posix()
    if path.is_symlink() or name.partition("/")[0] not in BESIDE or "/" not in name:
        return False
    if files is None:
        return True
    try:
        return name in files and read_file(path) == files[name]
    except (IntegrityError, FileNotFoundError):
        return False


def read_plan(store: Path) -> Plan:
    """The plan of a folder; the files beside it are not looked at.

    Raises:
        StoreError: it is damaged, or of a newer version.
        FileNotFoundError, NotADirectoryError: there is none.
    """
    return opened_plan(read_record(store / PLAN, Plan), LocalFiles(store))


def opened_plan(plan: Plan, files: PageFiles) -> Plan:
    """The same, whose pages, if it has any, are read from these files.

    Raises:
        FormatError: what it says of its pages, or of its dictionary, cannot be, or its shards are out of order.
    """
    trained_on = plan.identity.encoding.dictionary_shards or 0
    if trained_on > len(plan.shards):
        raise FormatError(
            f"{files.root / PLAN}: a dictionary of its first {trained_on} shards, and it has {len(plan.shards)}; the "
            "plan was altered: copy it again from its source, or build the store again"
        )
    if isinstance(plan.shards, Pages):
        plan.shards.opened(files, where=files.root / PLAN)
        return plan  # each page is checked when it is read
    start = 0
    for i, shard in enumerate(plan.shards):
        if shard.index != i or shard.start_row != start:
            raise FormatError(f"{files.root / PLAN}: shard {i} is out of order")
        start += shard.rows
    return plan


def shard_rows_of(store: Path, manifest: Manifest) -> int:
    """`--shard-rows` of a finished store: as its plan says, or, in a copy without it, the rows of its largest shard.

    Raises:
        StoreError: the plan is damaged, or of a newer version.
    """
    try:
        return read_plan(store).shard_rows
    except FileNotFoundError:
        return int(column(manifest.shards, "rows").max())


def load_plan(store: Path) -> Plan | None:
    """The plan of a folder; None if it has none.

    The files beside it are looked at and not read, which whoever finishes the store does.

    Raises:
        PlanError: the folder holds something else.
        IntegrityError: the plan is damaged, or a file beside it missing or torn.
    """
    try:
        plan = read_plan(store)
    except (FileNotFoundError, NotADirectoryError):
        if store.exists() and not store.is_dir():
            raise PlanError(f"{store}: is a file, not a folder; choose another --out") from None
        return None
    for name, record in plan.files.items():
        LocalFiles(store).check_present(Recorded(name, record.sha256, record.bytes))
    for page in pages_of(plan.shards):
        LocalFiles(store).check_present(recorded_page(page))
    return plan
