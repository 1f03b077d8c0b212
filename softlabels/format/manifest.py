"""What the JSON records of a store say: immutable structs with checked ranges, and the manifest itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from softlabels.core.kept import LARGEST_GRID
from softlabels.core.records import (
    Count,
    FileRecord,
    Positive,
    Record,
    Sha256,
    canonical,
    parse_raw,
)
from softlabels.errors import FormatError, IntegrityError
from softlabels.format.certificate import Fidelity
from softlabels.format.files import LocalFiles, StoreFiles
from softlabels.format.identity import (
    OPEN_PARTS,
    PACKED_ARRAYS,
    ROWS_LIMIT,
    Identity,
    Name,
    Number,
)
from softlabels.format.page_file import counts_of
from softlabels.format.pages import PageFiles
from softlabels.format.release import Release
from softlabels.format.shard_records import (
    ManifestPages,
    PlannedShards,
    ShardRecord,
    ShardRecords,
)

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST, PLAN = "manifest.json", "plan.json"
SIGNATURE = f"{MANIFEST}.sig"
"""Of the manifest's bytes, if somebody has signed them."""


ROWS_ALWAYS, ROWS_PER_BYTE = 2**16, 64
"""A shard of more rows has a byte for each so many of them. Real ones have a byte and more for each; images of one
label without targets, in the profile `packed`, were measured at 9 rows a byte."""


COUNTED = ("open", "packed", PACKED_ARRAYS)
"""Profiles whose files number their rows as the store does."""


class SourceRecord(Record, frozen=True, kw_only=True):
    """A store that another was made from."""

    name: str
    """Of its folder."""
    content_digest: Sha256
    rows: Count


class Provenance(Record, frozen=True, kw_only=True):
    """How a store was made from other stores, without a teacher or with one for what is new."""

    operation: str
    """`merge`, `append`, `subset`, `view`, `convert` or `reference`."""
    parameters: dict[str, str]
    """As the flags of that name say them."""
    sources: list[SourceRecord]

    def __str__(self) -> str:
        asked = "".join(f", {name} {value}" for name, value in self.parameters.items())
        return f"{self.operation} of {', '.join(f'{s.name} ({s.rows:,} rows)' for s in self.sources)}{asked}"


class Plan(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The immutable list of shards to make. Written first."""

    format: str
    version: str
    identity: Identity
    shard_rows: Positive
    files: dict[Name, FileRecord]
    shards: PlannedShards
    """One by one or, above some thousands, in pages."""
    digest: Sha256
    provenance: Provenance | None = None
    """Of a store that is made from other stores."""
    compared_rows: Count | None = None
    """How many rows an engine and transformers were compared on before the first shard; 0: the weights were too large
    for that; absent: nothing is known of a comparison, or transformers are the engine."""


class Statistics(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Measured while a shard was made; sums over its positions."""

    kept_ids: Count
    kept_mass: list[float]
    """At each temperature of the grid: sum over positions with a soft target of the mass inside the kept set."""
    teacher_nll: float | None
    """Sum over all positions of the teacher's -log p of the token that came, at T=1; null if the grid lacks 1."""
    soft_positions: Count | None = None
    """Positions with a soft target; absent: all."""
    labelled: Count | None = None
    """Positions whose label is known, over which `teacher_nll` is; absent: all."""
    teacher_right: Count | None = None
    """Positions whose label is the teacher's likeliest id; absent: not known."""
    teacher_entropy: float | None = None
    """Sum over all positions of the teacher's entropy at T=1; absent: not known."""
    label_counts: list[Count] | None = None
    """Of at most 1024 classes: how many labels are of each; absent: not counted."""

    def labelled_of(self, positions: int) -> int:
        """How many of `positions`, which these sums are over, have a label."""
        return positions if self.labelled is None else self.labelled

    @property
    def commonest_label(self) -> tuple[int, float] | None:
        """The class that most labels are of, and its share of them; None: not counted."""
        if not self.label_counts or (labelled := sum(self.label_counts)) == 0:
            return None
        most = max(self.label_counts)
        return self.label_counts.index(most), most / labelled

    def soft_of(self, positions: int) -> int:
        """How many of `positions`, which these sums are over, have a soft target."""
        return positions if self.soft_positions is None else self.soft_positions


class Commit(Record, frozen=True, kw_only=True):
    """One shard is done. Written once, after the shard itself."""

    format: str
    version: str
    plan_digest: Sha256
    index: Count
    name: Name
    sha256: Sha256
    bytes: Positive
    rows: Positive
    positions: Count
    statistics: Statistics
    seconds: Number
    """Wall time that the shard took."""
    digest: Sha256


class CostRecord(Record, frozen=True, kw_only=True):
    """What the store cost to make."""

    seconds: Number
    tokens_per_second: Number


class Manifest(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The record of a finished store. Written last: no manifest, not a store."""

    format: str
    version: str
    created_by: str
    identity: Identity
    shards: ShardRecords
    """One by one or, above some thousands, in pages."""
    files: dict[Name, FileRecord]
    statistics: Statistics
    cost: CostRecord
    content_digest: Sha256
    """Over identity and shards only. Two builds of one job on one engine agree in it, however long each
    took; the trainer's order of rows depends on it."""
    digest: Sha256
    fidelity: Fidelity | None = None
    """What `softlabels measure` found last; absent: nobody has measured."""
    column_bytes: dict[str, Count] | None = None
    """Bytes of each column in all shards, compressed; absent where columns are not Parquet's own."""
    provenance: Provenance | None = None
    """Of a store that was made from other stores."""
    compared_rows: Count | None = None
    """As the plan has it."""
    release: Release | None = None
    """Name and version that its maker signed it with; absent: none. Anybody may have written it, where no signature is
    checked."""
    stated_licence: str | None = None
    """What `softlabels card --licence` stated after the store was made, in the place of `identity.licence`; absent:
    nothing."""

    @property
    def licence(self) -> str:
        """The licence of the targets, as it was stated last."""
        return self.identity.licence if self.stated_licence is None else self.stated_licence

    @property
    def rows(self) -> int:
        """Rows in the store."""
        return self.identity.corpus.rows

    @property
    def data_bytes(self) -> int:
        """Bytes of all shards."""
        if isinstance(self.shards, ManifestPages):
            return sum(p.data_bytes for p in self.shards.pages)
        return sum(s.bytes for s in self.shards)


def content_digest(
    identity: Identity | dict[str, Any], shards: Sequence[ShardRecord] | ManifestPages
) -> str:
    """sha256 over the identity and the shards' names and digests, or those of the pages that they are in.

    Of a file that was read it is computed over the identity as the file spells it: a struct would leave
    out what a later version wrote, and fill in what an earlier one did not know.
    """
    named: Any
    if isinstance(shards, ManifestPages):
        named = {"pages": [[p.shards, p.content] for p in shards.pages]}
    else:
        named = [[s.name, s.sha256] for s in shards]
    return hashlib.sha256(canonical({"identity": identity, "shards": named})).hexdigest()


def load_manifest(store: Path) -> Manifest:
    """The manifest of the store in a folder; `FormatError` if there is none: no store, or an unfinished one."""
    return read_manifest(LocalFiles(store))


def read_manifest(files: StoreFiles) -> Manifest:
    """As `load_manifest`, wherever the store is."""
    return parse_manifest(read_manifest_bytes(files), files)


def read_manifest_bytes(files: StoreFiles) -> bytes:
    """The bytes of a store's manifest, which may be anything yet; raises as `load_manifest`."""
    store = files.root
    try:
        return files.record(MANIFEST)
    except (FileNotFoundError, NotADirectoryError) as e:
        if files.exists(PLAN):
            raise FormatError(
                f"{store}: the build has not finished (plan.json but no {MANIFEST}); run the same "
                "`softlabels build` again to finish it, or begin to learn from it with `softtrain run --follow`"
            ) from e
        raise FormatError(f"{store}: not a store (no {MANIFEST}); is the path right?") from e


def parse_manifest(data: bytes, files: PageFiles, *, name: str = MANIFEST) -> Manifest:
    """The manifest that some bytes are, checked in itself; pages are checked when they are read.

    Args:
        files: of the store, its pages among them.
        name: of the file that the bytes are of, for messages.

    Raises:
        FormatError: malformed, or of a newer major version.
        IntegrityError: altered.
    """
    where = files.root / name
    manifest, raw = parse_raw(data, Manifest, where=where)
    shards = manifest.shards
    if manifest.content_digest != content_digest(raw["identity"], shards):
        raise IntegrityError(f"{where}: content_digest does not match identity and shards")
    grid = manifest.identity.targets.temperatures
    if len(grid) > LARGEST_GRID:
        raise FormatError(f"{where}: {len(grid)} temperatures, a store has at most {LARGEST_GRID}")
    if not grid or len(set(grid)) != len(grid) or len(manifest.statistics.kept_mass) != len(grid):
        raise FormatError(
            f"{where}: {len(manifest.statistics.kept_mass)} entries of kept_mass for temperatures {grid[:8]}; "
            "expected one for each, and each once"
        )
    profile = manifest.identity.encoding.profile
    if isinstance(shards, ManifestPages):
        shards.opened(files, where=where, check=partial(_check_page, profile))
        held = sum(p.rows for p in shards.pages)
    else:
        held = _check_shards(shards, profile, str(where))
    if held != manifest.identity.corpus.rows:
        raise FormatError(
            f"{where}: shards hold {held} rows, the corpus record says {manifest.identity.corpus.rows}"
        )
    return manifest


def _check_shards(shards: Sequence[ShardRecord], profile: str, where: str) -> int:
    """Refuse shards that do not follow one another; how many rows they have."""
    start = 0
    for shard in shards:
        if shard.start_row != start:
            raise FormatError(
                f"{where}: shard {shard.name} begins at row {shard.start_row}, expected {start}"
            )
        check_shard(shard, profile, where)
        start += shard.rows
    if len({s.name for s in shards}) != len(shards):
        raise FormatError(f"{where}: a shard is named twice")
    return start


def check_shard(shard: ShardRecord, profile: str, where: str) -> None:
    """Refuse what a record cannot truly say of a shard.

    Raises:
        FormatError: names the shard.
    """
    if shard.rows > most_rows(shard.bytes):
        raise _too_many(shard.name, shard.rows, shard.bytes, where)
    if shard.counts_from is not None and profile in COUNTED:
        raise _miscounted(shard.name, shard.counts_from, profile, where)


def _check_page(profile: str, table: pa.Table, where: str) -> None:
    """As `_check_shards`, of a page."""
    rows, size = (counts_of(table, name, where=where) for name in ("rows", "bytes"))
    most = np.minimum(ROWS_LIMIT, np.maximum(ROWS_ALWAYS, ROWS_PER_BYTE * size))
    names = table.column("name")
    if (over := np.flatnonzero((rows > most) | (size < 1))).size:
        i = int(over[0])
        raise _too_many(names[i].as_py(), int(rows[i]), int(size[i]), where)
    if profile in COUNTED and table.column("counts_from").null_count < len(table):
        i = table.column("counts_from").is_valid().to_pylist().index(True)
        counted = table.column("counts_from")[i].as_py()
        raise _miscounted(names[i].as_py(), counted, profile, where)
    if len(names.unique()) != len(names):
        raise FormatError(f"{where}: a shard is named twice")


def most_rows(size: int) -> int:
    """More rows than the bytes of a shard can hold: they are counted on long before it is decoded."""
    return min(ROWS_LIMIT, max(ROWS_ALWAYS, ROWS_PER_BYTE * size))


def _too_many(name: str, rows: int, size: int, where: str) -> FormatError:
    return FormatError(
        f"{where}: says that shard {name} holds {rows:,} rows in {size:,} bytes; at most {most_rows(size):,} are "
        "accepted. Copy the store again from a source that you trust; in a build, lower --shard-rows"
    )


def _miscounted(name: str, counted: int, profile: str, where: str) -> FormatError:
    return FormatError(
        f"{where}: shard {name} counts its rows from {counted}, which belongs to the profile {OPEN_PARTS!r}, not "
        f"{profile!r}; copy the store again from its source"
    )
