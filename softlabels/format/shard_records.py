"""Records of shards: of those that a plan asks for, and of those that a finished store has; one by one, or in pages."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from softlabels.core.records import Count, Positive, Record, Sha256
from softlabels.core.rows import Location
from softlabels.errors import FormatError, IntegrityError
from softlabels.format.identity import Name
from softlabels.format.page_file import Layout, rows_of
from softlabels.format.pages import PageRecord, Pages, check_sum

if TYPE_CHECKING:
    import pyarrow as pa


class NumberedShard(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What the records of a shard share."""

    name: Name
    start_row: Count
    rows: Positive
    positions: Count
    counts_from: Count | None = None
    """Of the profile `open-parts`: the number that the file itself gives its first row; absent: `start_row`."""
    documents_from: Count | None = None
    """To be added to the file's `documents`; absent: 0."""

    @property
    def first_row(self) -> int:
        """The number that the file gives its first row; a store that shares the file may count otherwise."""
        return self.start_row if self.counts_from is None else self.counts_from


NUMBERED: Layout = {
    "name": "text",
    "start_row": "count",
    "rows": "count",
    "positions": "count",
    "counts_from": "count?",
    "documents_from": "count?",
}
"""Columns of what the records of a shard share, in pages."""


class PlannedShard(NumberedShard, frozen=True, kw_only=True, omit_defaults=True):
    """A shard to make: which rows, where in the corpus they begin, what they must be."""

    index: Count
    document: Count
    """Ordinal of the document in which its first row begins."""
    offset: Count
    """Token of that document at which it begins."""
    inputs_sha256: Sha256
    """Over its rows' input digests: a corpus that changed since the plan is found here."""
    source: Location | None = None
    """Where that document begins in the files of the job; absent: it is found by reading them from their beginning."""


class PlanPages(Pages, frozen=True, kw_only=True):
    """The shards of a plan, in pages."""

    LAYOUT: ClassVar[Layout] = {
        **NUMBERED,
        "document": "count",
        "offset": "count",
        "inputs_sha256": "digest",
        **{f"source_{name}": "count?" for name in Location.__struct_fields__},
    }
    KIND: ClassVar[type[Record]] = PlannedShard
    STEM: ClassVar[str] = "plan"

    @classmethod
    def _row(cls, shard: PlannedShard) -> dict[str, Any]:
        own = {n: getattr(shard, n) for n in cls.LAYOUT if not n.startswith("source_")}
        at = Location.__struct_fields__
        return own | {f"source_{n}": getattr(shard.source, n, None) for n in at}

    @classmethod
    def _raw(cls, row: dict[str, Any], index: int) -> dict[str, Any]:
        own = {n: v for n, v in row.items() if not n.startswith("source_")}
        source = {n.removeprefix("source_"): row[n] for n in row.keys() - own.keys()}
        return own | {"index": index} | ({"source": source} if source else {})


if TYPE_CHECKING:
    PlannedShards = Sequence[PlannedShard]
else:  # what the record may say; both are sequences
    PlannedShards = list[PlannedShard] | PlanPages


class ShardRecord(NumberedShard, frozen=True, kw_only=True, omit_defaults=True):
    """A shard of a finished store."""

    sha256: Sha256
    bytes: Positive


class ManifestPage(PageRecord, frozen=True, kw_only=True):
    """A page of a manifest."""

    data_bytes: Positive
    """Bytes of its shards."""
    content: Sha256
    """Over the names and digests of its shards."""


class ManifestPages(Pages, frozen=True, kw_only=True):
    """The shards of a finished store, in pages."""

    pages: list[ManifestPage]  # type: ignore[assignment]
    """In order."""

    LAYOUT: ClassVar[Layout] = {**NUMBERED, "sha256": "digest", "bytes": "count"}
    KIND: ClassVar[type[Record]] = ShardRecord
    STEM: ClassVar[str] = "manifest"

    @classmethod
    def _row(cls, shard: ShardRecord) -> dict[str, Any]:
        return {n: getattr(shard, n) for n in cls.LAYOUT}

    @classmethod
    def _raw(cls, row: dict[str, Any], index: int) -> dict[str, Any]:
        return row

    @classmethod
    def _page(cls, about: dict[str, Any], shards: Sequence[ShardRecord]) -> ManifestPage:
        named = [(s.name, s.sha256) for s in shards]
        return ManifestPage(
            **about, data_bytes=sum(s.bytes for s in shards), content=_page_content(named)
        )

    def _compare(self, page: ManifestPage, table: pa.Table, where: str) -> None:
        check_sum(table, "bytes", page.data_bytes, where=where)
        try:
            named = [(r["name"], r["sha256"]) for r in rows_of(table, _NAMED)]
        except UnicodeDecodeError as e:
            raise FormatError(f"{where}: not a valid page: {e}") from e
        if _page_content(named) != page.content:
            raise IntegrityError(
                f"{where}: its shards are not those of the manifest's content digest; copy the store again from its "
                "source"
            )


_NAMED: Layout = {"name": "text", "sha256": "digest"}

if TYPE_CHECKING:
    ShardRecords = Sequence[ShardRecord]
else:  # what the record may say; both are sequences
    ShardRecords = list[ShardRecord] | ManifestPages


def _page_content(named: Sequence[tuple[str, str]]) -> str:
    """sha256 over a line of name and digest for each shard."""
    return hashlib.sha256("".join(f"{n} {sha}\n" for n, sha in named).encode()).hexdigest()
