"""Records of very many shards: pages beside the record, each read when a shard of it is asked for.

Above `PAGED_ABOVE` shards `plan.json` and `manifest.json` are roots: in the place of the list of shards they name
pages, with digest, shards, rows and positions of each. Opening a store reads the root alone; a row is found by a
bisection of the root, and one of its page. Each page is compared with its digest, and with all that the root says of
it, before a shard of it is used; the last few stay in memory.

A page's name ends with the beginning of its digest, so that the pages of two records never contend for a name: they
are published, and durable, before the record that names them.
"""

from __future__ import annotations

import hashlib
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar, overload

import msgspec
import numpy as np

from softlabels.core.records import LARGEST, RECORD_LIMIT, Count, Positive, Record, Sha256
from softlabels.core.rows import Int64
from softlabels.errors import FormatError, IntegrityError
from softlabels.format.files import Address, Recorded
from softlabels.format.identity import Name
from softlabels.format.page_file import Layout, counts_of, read_page, row_of, rows_of, write_page

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "pages"
PAGED_ABOVE = 16_384
"""Shards: records of no more are single files, as they always were."""
PAGE_SHARDS = 4_096
"""Shards of a page that is written; the last page has the rest."""
LARGEST_PAGE = 65_536
"""Shards of a page that is read, at most."""
CACHED_PAGES = 32
"""Pages in memory, of some half a MB each."""

T = TypeVar("T", bound="Pages")


def in_pages(shards: int) -> bool:
    """Whether the records of so many shards are written in pages."""
    return shards > PAGED_ABOVE


class PageRecord(Record, frozen=True, kw_only=True):
    """One page, and the sums over its shards."""

    name: Name
    sha256: Sha256
    bytes: Positive
    shards: Positive
    rows: Positive
    positions: Count


class PageFiles(Protocol):
    """What pages are read from: the files of a store, of which no more is needed."""

    @property
    def root(self) -> Path | Address:
        """Where they are."""

    def checked(self, file: Recorded) -> bytes:
        """A file whose size and sha256 were found equal to the record's; `IntegrityError` if they are not."""


class _Opened(NamedTuple):
    """Where pages are read from, and what was read of them."""

    files: PageFiles
    check: Callable[[pa.Table, str], None]
    first: Int64
    """Number of the first shard of each page, and that of all shards."""
    start: Int64
    """First row of each page, and that of all rows."""
    cache: OrderedDict[int, pa.Table]
    lock: Lock


class Pages(Record, frozen=True, kw_only=True, dict=True):
    """A sequence of shards' records that lie in pages. Used after `opened`; may be shared between threads."""

    pages: list[PageRecord]
    """In order."""

    LAYOUT: ClassVar[Layout]
    KIND: ClassVar[type[Record]]
    STEM: ClassVar[str]  # begins the names of its pages

    # -- of a kind of records -----------------------------------------------------------------------------------------

    @classmethod
    def _row(cls, shard: Any) -> dict[str, Any]:
        """A record as a row of the table."""
        raise NotImplementedError

    @classmethod
    def _raw(cls, row: dict[str, Any], index: int) -> dict[str, Any]:
        """A row of the table as what the record would be in JSON."""
        raise NotImplementedError

    @classmethod
    def _page(cls, about: dict[str, Any], shards: Sequence[Any]) -> PageRecord:
        return PageRecord(**about)

    def _compare(self, page: Any, table: pa.Table, where: str) -> None:
        """Refuse a table that is not what the root says beyond the sums that all pages have."""

    # -- written ------------------------------------------------------------------------------------------------------

    @classmethod
    def written(
        cls: type[T], shards: Sequence[Any], *, like: Pages | None = None
    ) -> tuple[T, dict[str, bytes]]:
        """These records in pages, and the pages' files by name.

        Args:
            like: pages of the same shards, which are cut alike; None: `PAGE_SHARDS` in each.
        """
        sizes = repeat(PAGE_SHARDS) if like is None else (p.shards for p in like.pages)
        pages, files = [], {}
        source = iter(shards)
        for number, size in enumerate(sizes):
            if not (own := list(islice(source, size))):
                break
            data = write_page([cls._row(s) for s in own], cls.LAYOUT)
            sha256 = hashlib.sha256(data).hexdigest()
            name = f"{FOLDER}/{cls.STEM}-{number:05d}-{sha256[:12]}.parquet"
            about = {
                "name": name,
                "sha256": sha256,
                "bytes": len(data),
                "shards": len(own),
                "rows": sum(s.rows for s in own),
                "positions": sum(s.positions for s in own),
            }
            pages.append(cls._page(about, own))
            files[name] = data
        return cls(pages=pages), files

    # -- read ---------------------------------------------------------------------------------------------------------

    def opened(
        self: T,
        files: PageFiles,
        *,
        where: Path | Address,
        check: Callable[[pa.Table, str], None] = lambda table, where: None,
    ) -> T:
        """Give it the files that it is read from; returns itself.

        Args:
            where: the record lies, for messages.
            check: refuses a page for what the record says elsewhere.

        Raises:
            FormatError: what the root says of its pages cannot be.
        """
        pages = self.pages
        for page in pages:
            if page.shards > LARGEST_PAGE or page.bytes > RECORD_LIMIT:
                raise FormatError(
                    f"{where}: says that page {page.name} has {page.shards:,} shards in {page.bytes:,} bytes; at most "
                    f"{LARGEST_PAGE:,} in {RECORD_LIMIT:,} are accepted. Copy the store again from a source that you "
                    "trust"
                )
        if not pages or len({p.name for p in pages}) != len(pages):
            raise FormatError(
                f"{where}: names no page, or one twice; copy it again from its source"
            )
        sums = [[0, *map(operator.attrgetter(n), pages)] for n in ("shards", "rows", "positions")]
        if max(map(sum, sums)) > LARGEST:
            raise FormatError(f"{where}: its pages hold more than {LARGEST} rows or positions")
        first, start = (np.cumsum(np.array(s, np.int64)) for s in sums[:2])
        self.__dict__["_opened"] = _Opened(files, check, first, start, OrderedDict(), Lock())
        return self

    @property
    def _state(self) -> _Opened:
        assert "_opened" in self.__dict__, "pages are opened where their record is read"
        found: _Opened = self.__dict__["_opened"]
        return found

    def __len__(self) -> int:
        return sum(p.shards for p in self.pages)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number, place = self._locate(index)
        row = self._valid(number, lambda table: [row_of(table, self.LAYOUT, place)], place)
        return row[0]

    def __iter__(self) -> Iterator[Any]:
        for number in range(len(self.pages)):
            yield from self.page(number)

    def page(self, number: int) -> list[Any]:
        """The records of one page."""
        return self._valid(number, lambda table: rows_of(table, self.LAYOUT), 0)

    def column(self, name: str) -> Int64:
        """A column of counts, of all shards."""
        return np.concatenate([self.part_of(n, name) for n in range(len(self.pages))])

    def part_of(self, number: int, name: str) -> Int64:
        """The entries of one page in a column of counts."""
        return counts_of(self._table(number), name, where=self._where(number))

    def positions_of(self, chosen: Int64) -> int:
        """How many positions some of the shards have; a page of which all or none are chosen is not read."""
        first, total = self._state.first, 0
        numbers = np.sort(chosen)
        ends = np.searchsorted(numbers, first)
        for number, page in enumerate(self.pages):
            own = numbers[ends[number] : ends[number + 1]]
            if len(own) == page.shards:
                total += page.positions
            elif len(own):
                total += int(self.part_of(number, "positions")[own - first[number]].sum())
        return total

    def find(self, row: int) -> tuple[int, int]:
        """Number of the shard that a row lies in, and place of the row in it."""
        state = self._state
        number = int(np.searchsorted(state.start, row, side="right")) - 1
        starts = self.part_of(number, "start_row")
        place = int(np.searchsorted(starts, row, side="right")) - 1
        return int(state.first[number]) + place, row - int(starts[place])

    def check(self) -> None:
        """Read all pages, one at a time.

        Raises:
            IntegrityError, FormatError: one is missing, altered, or not what the record says of it.
        """
        for number in range(len(self.pages)):
            self.page(number)

    def _locate(self, index: int) -> tuple[int, int]:
        """Page of a shard, and its place there."""
        i, first = operator.index(index), self._state.first
        i = i + int(first[-1]) if i < 0 else i
        if not 0 <= i < first[-1]:
            raise IndexError(f"shard {index} of {first[-1]}")
        number = int(np.searchsorted(first, i, side="right")) - 1
        return number, i - int(first[number])

    def _where(self, number: int) -> str:
        return str(self._state.files.root / self.pages[number].name)

    def _valid(
        self, number: int, rows: Callable[[pa.Table], list[dict[str, Any]]], place: int
    ) -> list[Any]:
        first, where = int(self._state.first[number]) + place, self._where(number)
        try:
            raws = [self._raw(row, first + i) for i, row in enumerate(rows(self._table(number)))]
            return msgspec.convert(raws, list[self.KIND])  # type: ignore[name-defined]
        except (msgspec.ValidationError, UnicodeDecodeError) as e:
            raise FormatError(f"{where}: not a valid page: {e}") from e

    def _table(self, number: int) -> pa.Table:
        """A page, compared with all that the root says of it."""
        state = self._state
        with state.lock:
            if number in state.cache:
                state.cache.move_to_end(number)
                return state.cache[number]
            table = self._read(number, state)
            state.cache[number] = table
            while len(state.cache) > CACHED_PAGES:
                state.cache.popitem(last=False)
            return table

    def _read(self, number: int, state: _Opened) -> pa.Table:
        page, where = self.pages[number], self._where(number)
        data = state.files.checked(recorded_page(page))
        table = read_page(data, self.LAYOUT, shards=page.shards, where=where)
        rows, starts = (counts_of(table, name, where=where) for name in ("rows", "start_row"))
        begin = int(state.start[number])
        if int(rows.min()) < 1 or not np.array_equal(starts, begin + np.cumsum(rows) - rows):
            raise FormatError(
                f"{where}: its shards do not follow one another from row {begin} on; copy it again from its source"
            )
        for name, said in (("rows", page.rows), ("positions", page.positions)):
            check_sum(table, name, said, where=where)
        self._compare(page, table, where)
        state.check(table, where)
        return table


Sequence.register(Pages)


def recorded_page(page: PageRecord) -> Recorded:
    """A page as a file that a record vouches for."""
    return Recorded(page.name, page.sha256, page.bytes)


def pages_of(*sequences: object) -> list[PageRecord]:
    """The pages that records of shards lie in; none of a record that is a single file."""
    return [page for shards in sequences if isinstance(shards, Pages) for page in shards.pages]


def check_pages(shards: Sequence[Any]) -> None:
    """Raise what is wrong with the pages of a record, if it has any."""
    if isinstance(shards, Pages):
        shards.check()


class Chunk(NamedTuple):
    """Consecutive shards that are read at once."""

    first: int
    shards: int
    read: Callable[[], Sequence[Any]]


def chunks(shards: Sequence[Any]) -> Iterator[Chunk]:
    """All shards: a page at a time or, of a record without pages, all at once."""
    if not isinstance(shards, Pages):
        yield Chunk(0, len(shards), lambda: shards)
        return
    first = 0
    for number, page in enumerate(shards.pages):
        yield Chunk(first, page.shards, partial(shards.page, number))
        first += page.shards


def check_sum(table: pa.Table, name: str, said: int, *, where: str) -> None:
    """Refuse a page whose column does not sum up to what the root says."""
    found = sum(counts_of(table, name, where=where).tolist())
    if found != said:
        raise IntegrityError(
            f"{where}: its {name} are {found} in all, the record that names it says {said}; copy both again from "
            "their source"
        )


def column(shards: Sequence[Any], name: str) -> Int64:
    """A figure of each shard, in order."""
    if isinstance(shards, Pages):
        return shards.column(name)
    return np.fromiter((getattr(s, name) for s in shards), np.int64, len(shards))


class Starts(NamedTuple):
    """First row of each of some shards."""

    rows: Int64

    def find(self, row: int) -> tuple[int, int]:
        """Number of the shard that a row lies in, and place of the row in it."""
        shard = int(np.searchsorted(self.rows, row, side="right")) - 1
        return shard, row - int(self.rows[shard])


def starts_of(shards: Sequence[Any]) -> Starts | Pages:
    """What finds the shard that a row lies in, by a bisection."""
    return shards if isinstance(shards, Pages) else Starts(column(shards, "start_row"))


def positions_of(shards: Sequence[Any], chosen: Int64 | None = None) -> int:
    """How many positions some of the shards have, or all of them."""
    if chosen is None:
        return sum(s.positions for s in (shards.pages if isinstance(shards, Pages) else shards))
    if isinstance(shards, Pages):
        return shards.positions_of(chosen)
    return sum(shards[i].positions for i in chosen.tolist())
