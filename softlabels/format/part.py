"""A part of a store: some of its whole shards beside the whole manifest, as `softlabels pull --share` leaves it.

The manifest stays byte for byte the origin's, so that whoever vouched for it vouches for each of these shards, too;
`part.json` says which are there. Opened, they are a store of their own: rows are numbered from 0, and the content
digest, on which a trainer's order depends, is of the part.

Nobody has signed `part.json`, so it is not believed: rows, positions and digest are computed from the manifest, the
corpus is the manifest's, and what only the shards could tell (documents, tokens, statistics) must lie within what the
whole has. `softlabels verify` counts it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import msgspec

from softlabels.core.records import Count, Record, Sha256, canonical, parse_record
from softlabels.errors import FormatError, IntegrityError
from softlabels.format.files import Address, StoreFiles
from softlabels.format.identity import CorpusRecord
from softlabels.format.manifest import Manifest, Statistics
from softlabels.format.shard import Shard
from softlabels.format.statistics import total

PART = "part.json"
SLACK = 1e-6
"""Sums of floating-point numbers depend on their order by less."""


class Part(Record, frozen=True, kw_only=True):
    """Which shards of a store are in a folder, and what they hold."""

    format: str
    version: str
    whole: Sha256
    """Digest of the manifest that lies beside it."""
    shards: list[Count]
    """Numbers of the shards that are there, ascending."""
    corpus: CorpusRecord
    """The manifest's, but the counts and the fingerprint are of these shards; a reader takes no more than these."""
    statistics: Statistics
    digest: Sha256


def refuse_part(store: Path) -> None:
    """Refuse a folder that holds only some of a store's shards, for what would change its manifest or vouch for it."""
    if (store / PART).exists():
        raise IntegrityError(
            f"{store}: is a part of a store; pull the rest of it first (`softlabels pull URL {store}`)"
        )


def read_part(files: StoreFiles, manifest: Manifest) -> Part | None:
    """The record of a part; None: the store is whole.

    Raises:
        IntegrityError: it is of another store.
        FormatError: it names shards that do not exist, or not these rows.
    """
    try:
        data = files.record(PART)
    except (FileNotFoundError, NotADirectoryError):
        return None
    where = files.root / PART
    part = parse_record(data, Part, where=where)
    if part.whole != manifest.digest:
        raise IntegrityError(
            f"{where}: is of another store than the manifest beside it; run `softlabels pull` again"
        )
    own = part.shards
    if not own or own != sorted(set(own)) or own[-1] >= len(manifest.shards):
        raise FormatError(
            f"{where}: names the shards {own[:8]}, expected numbers below {len(manifest.shards)}, ascending"
        )
    held = [manifest.shards[i] for i in own]
    found = (sum(s.rows for s in held), sum(s.positions for s in held))
    if found != (part.corpus.rows, part.corpus.positions):
        raise FormatError(
            f"{where}: says {part.corpus.rows} rows and {part.corpus.positions} positions, its shards have {found[0]} "
            f"and {found[1]}"
        )
    if len(part.statistics.kept_mass) != len(manifest.statistics.kept_mass):
        raise FormatError(f"{where}: its kept_mass is of another grid than the manifest's")
    for name, claimed, most in _claims(manifest, part):
        if not 0 <= claimed <= most:
            raise FormatError(
                f"{where}: says {name} {claimed:,}, which a part of this store cannot have (0 to {most:,}); pull the "
                "part again"
            )
    return part


def _claims(manifest: Manifest, part: Part) -> Iterator[tuple[str, float, float]]:
    """Figures that the manifest does not give for these shards: name, value, and the most that it can be."""
    corpus, own, whole = part.corpus, part.statistics, manifest.statistics
    positions = corpus.positions
    yield "documents", corpus.documents, manifest.identity.corpus.documents
    yield "tokens", corpus.tokens, manifest.identity.corpus.tokens
    soft = own.soft_of(positions)
    yield "soft positions", soft, min(positions, whole.soft_of(manifest.identity.corpus.positions))
    yield "labelled positions", own.labelled_of(positions), positions
    yield "kept ids", own.kept_ids, min(whole.kept_ids, soft * manifest.identity.targets.k)
    for mass, most in zip(own.kept_mass, whole.kept_mass, strict=True):
        yield "a kept mass of", mass, min(most, soft) * (1 + SLACK) + SLACK
    if own.teacher_nll is not None and whole.teacher_nll is not None:
        yield "a loss of", own.teacher_nll, whole.teacher_nll * (1 + SLACK) + SLACK
    if own.teacher_right is not None:
        most = min(own.labelled_of(positions), whole.teacher_right or 0)
        yield "labels that the teacher is right about", own.teacher_right, most
    if own.teacher_entropy is not None:
        most = (whole.teacher_entropy or 0.0) * (1 + SLACK) + SLACK
        yield "an entropy of", own.teacher_entropy, most


def part_digest(manifest: Manifest, part: Part | None) -> str:
    """Names the content of these shards; computed from the manifest. Without a part, of all."""
    if part is None:
        return manifest.content_digest
    content = canonical({"whole": manifest.content_digest, "shards": part.shards})
    return hashlib.sha256(content).hexdigest()


def part_manifest(manifest: Manifest, part: Part) -> Manifest:
    """What the manifest of these shards alone would say; rows are numbered from 0."""
    held = [manifest.shards[i] for i in part.shards]
    starts = [0, *accumulate(s.rows for s in held)]
    return msgspec.structs.replace(
        manifest,
        identity=msgspec.structs.replace(
            manifest.identity,
            corpus=msgspec.structs.replace(
                manifest.identity.corpus,
                rows=starts[-1],
                positions=sum(s.positions for s in held),
                documents=part.corpus.documents,
                tokens=part.corpus.tokens,
                fingerprint=part.corpus.fingerprint,
            ),
        ),
        shards=[
            msgspec.structs.replace(s, start_row=start, counts_from=s.first_row)
            for s, start in zip(held, starts, strict=False)
        ],
        statistics=part.statistics,
        content_digest=part_digest(manifest, part),
    )


class Counting:
    """Adds up what shards hold, in order: `pull` writes it into `part.json`, and `verify` compares it."""

    def __init__(self) -> None:
        self._digests = hashlib.sha256()
        self._documents: set[int] = set()
        self._tokens = self._rows = self._positions = 0
        self._statistics: list[tuple[int, Statistics]] = []

    def add(self, content: Shard, statistics: Statistics) -> None:
        """One more shard, and what its file says of itself."""
        for row in content.rows:
            self._digests.update(row.digest())
            self._documents.update(row.documents.tolist())
            self._tokens += row.size
        self._rows += len(content.rows)
        self._positions += content.targets.n
        self._statistics.append((content.targets.n, statistics))

    @property
    def fingerprint(self) -> str:
        """Over the rows' input digests."""
        return self._digests.hexdigest()

    @property
    def statistics(self) -> Statistics:
        """Sums over the shards."""
        return total(self._statistics)

    def corpus(self, whole: CorpusRecord) -> CorpusRecord:
        """The record of a corpus, with what was counted in the place of the whole's."""
        return msgspec.structs.replace(
            whole,
            fingerprint=self.fingerprint,
            documents=len(self._documents),
            rows=self._rows,
            tokens=self._tokens,
            positions=self._positions,
        )

    def differences(self, part: Part, *, where: Path | Address) -> list[str]:
        """A sentence for each figure of a part's record that is not what was counted."""
        problems = []
        claims = (
            ("corpus", part.corpus, self.corpus(part.corpus)),
            ("statistics", part.statistics, self.statistics),
        )
        for name, claimed, counted in claims:
            for field in counted.__struct_fields__:
                said, found = getattr(claimed, field), getattr(counted, field)
                if said != found:
                    problems.append(
                        f"{where}: says {name}.{field} {said}, its shards have {found}; pull the part again"
                    )
        return problems
