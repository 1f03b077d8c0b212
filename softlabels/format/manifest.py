"""What the JSON records of a store say: immutable structs with checked ranges, and the manifest itself."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

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
from softlabels.core.rows import Location
from softlabels.errors import FormatError, IntegrityError
from softlabels.format.certificate import Fidelity
from softlabels.format.files import Address, LocalFiles, StoreFiles
from softlabels.format.identity import (
    OPEN_PARTS,
    PACKED_ARRAYS,
    ROWS_LIMIT,
    Identity,
    Name,
    Number,
)
from softlabels.format.release import Release

MANIFEST = "manifest.json"
SIGNATURE = f"{MANIFEST}.sig"
"""Of the manifest's bytes, if somebody has signed them."""


ROWS_ALWAYS, ROWS_PER_BYTE = 2**16, 64
"""A shard of more rows has a byte for each so many of them. Real ones have a byte and more for each; images of one
label without targets, in the profile `packed`, were measured at 9 rows a byte."""


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


class Plan(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The immutable list of shards to make. Written first."""

    format: str
    version: str
    identity: Identity
    shard_rows: Positive
    files: dict[Name, FileRecord]
    shards: list[PlannedShard]
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


class ShardRecord(NumberedShard, frozen=True, kw_only=True, omit_defaults=True):
    """A shard of a finished store."""

    sha256: Sha256
    bytes: Positive


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
    shards: list[ShardRecord]
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
        return sum(s.bytes for s in self.shards)


def content_digest(identity: Identity | dict[str, Any], shards: list[ShardRecord]) -> str:
    """sha256 over the identity and the shards' names and digests.

    Of a file that was read it is computed over the identity as the file spells it: a struct would leave
    out what a later version wrote, and fill in what an earlier one did not know.
    """
    return hashlib.sha256(
        canonical({"identity": identity, "shards": [[s.name, s.sha256] for s in shards]})
    ).hexdigest()


def load_manifest(store: Path) -> Manifest:
    """The manifest of the store in a folder; `FormatError` if there is none: no store, or an unfinished one."""
    return read_manifest(LocalFiles(store))


def read_manifest(files: StoreFiles) -> Manifest:
    """As `load_manifest`, wherever the store is."""
    return parse_manifest(read_manifest_bytes(files), files.root)


def read_manifest_bytes(files: StoreFiles) -> bytes:
    """The bytes of a store's manifest, which may be anything yet; raises as `load_manifest`."""
    store = files.root
    try:
        return files.record(MANIFEST)
    except (FileNotFoundError, NotADirectoryError) as e:
        if files.exists("plan.json"):
            raise FormatError(
                f"{store}: the build has not finished (plan.json but no {MANIFEST}); run the same "
                "`softlabels build` again to finish it"
            ) from e
        raise FormatError(f"{store}: not a store (no {MANIFEST}); is the path right?") from e


def parse_manifest(data: bytes, store: Path | Address) -> Manifest:
    """The manifest that some bytes are, checked in itself; messages name `store`, where they lie.

    Raises:
        FormatError: malformed, or of a newer major version.
        IntegrityError: altered.
    """
    where = store / MANIFEST
    manifest, raw = parse_raw(data, Manifest, where=where)
    if manifest.content_digest != content_digest(raw["identity"], manifest.shards):
        raise IntegrityError(f"{where}: content_digest does not match identity and shards")
    grid = manifest.identity.targets.temperatures
    if len(grid) > LARGEST_GRID:
        raise FormatError(f"{where}: {len(grid)} temperatures, a store has at most {LARGEST_GRID}")
    if not grid or len(set(grid)) != len(grid) or len(manifest.statistics.kept_mass) != len(grid):
        raise FormatError(
            f"{where}: {len(manifest.statistics.kept_mass)} entries of kept_mass for temperatures {grid[:8]}; "
            "expected one for each, and each once"
        )
    start = 0
    for shard in manifest.shards:
        if shard.start_row != start:
            raise FormatError(
                f"{where}: shard {shard.name} begins at row {shard.start_row}, expected {start}"
            )
        # More rows than the bytes of a shard can hold: they are counted on long before it is decoded.
        most = min(ROWS_LIMIT, max(ROWS_ALWAYS, ROWS_PER_BYTE * shard.bytes))
        if shard.rows > most:
            raise FormatError(
                f"{where}: says that shard {shard.name} holds {shard.rows:,} rows in {shard.bytes:,} bytes; at most "
                f"{most:,} are accepted. Copy the store again from a source that you trust; in a build, lower "
                "--shard-rows"
            )
        profile = manifest.identity.encoding.profile
        if shard.counts_from is not None and profile in ("open", "packed", PACKED_ARRAYS):
            raise FormatError(
                f"{where}: shard {shard.name} counts its rows from {shard.counts_from}, which belongs to the profile "
                f"{OPEN_PARTS!r}, not {profile!r}; copy the store again from its source"
            )
        start += shard.rows
    if start != manifest.identity.corpus.rows:
        raise FormatError(
            f"{where}: shards hold {start} rows, the corpus record says {manifest.identity.corpus.rows}"
        )
    if len({s.name for s in manifest.shards}) != len(manifest.shards):
        raise FormatError(f"{where}: a shard is named twice")
    return manifest
