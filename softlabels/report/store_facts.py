"""What a report of a store is drawn from: its targets, its bytes, and where its teacher hesitates.

Shapes: N positions, K kept ids.
"""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from softlabels.rows import LABEL_SHIFT, Row
from softlabels.store.encoding import container_of
from softlabels.store.identity import Identity
from softlabels.store.reader import Store, StoredRow
from softlabels.targets import SoftTargets
from softlabels.token_text import TokenText

__all__ = ["Choice", "StoreFacts", "Token", "Uncertain", "gather"]

Float64 = npt.NDArray[np.float64]
LISTED = 12
OWN = "(the file's own)"
"""What of a shard is in no column."""
TEXTS = 3
WINDOW = 160
"""Tokens of a text that are shown."""
CONTEXT = 24
CHOICES = 5


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An id that the teacher thought possible."""

    words: str
    p: float


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token, and how uncertain the teacher was before it came."""

    words: str
    entropy: float | None
    """Nats; None: it was not predicted, or without a soft target."""
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Uncertain:
    """A position to look at."""

    row: int
    position: int
    context: str
    label: str | None
    """None: not known."""
    entropy: float
    choices: tuple[Choice, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class StoreFacts:
    """What some shards of a store hold, at one temperature."""

    temperature: float
    rows: int
    """Rows that were read."""
    shards: int
    positions: int
    entropy: Float64
    """`[M]` of the soft positions, nats; the tail counted as one id, so at least this."""
    tail: Float64
    """`[M]`: mass outside the kept set."""
    mass_at: dict[int, float]
    """Mean mass of the k largest kept ids, by k."""
    column_bytes: dict[str, int]
    """Compressed, over the shards that were read."""
    uncertain: list[Uncertain]
    """The positions with the largest entropy, largest first, one of a row."""
    texts: list[tuple[int, list[Token]]]
    """Row numbers and their tokens: the rows with the largest mean entropy."""
    trouble: str | None
    """Why ids are shown in the place of text, if the store has a tokenizer that could not be used."""


def gather(store: Store, *, rows: int) -> StoreFacts:
    """Read whole shards, evenly spread over the store, until they hold `rows` rows.

    Raises:
        IntegrityError, TargetError: a shard is damaged.
    """
    identity = store.manifest.identity
    grid = identity.targets.temperatures
    t = 1.0 if 1.0 in grid else grid[0]
    entropy, tail, largest, where = [], [], [], []
    columns: Counter[str] = Counter()
    seen = positions = 0
    chosen = _spread(store, rows)
    for index in chosen:
        record = store.manifest.shards[index]
        shard = store.read_shard(index)
        columns.update(_column_bytes(store.folder / record.name, identity))
        seen += len(shard.rows)
        positions += shard.targets.n
        soft = shard.targets[np.flatnonzero(shard.targets.soft)]
        of_row = np.repeat(np.arange(len(shard.rows)) + record.start_row, [r.n for r in shard.rows])
        h, outside, p = _measure(soft, t)
        entropy.append(h)
        tail.append(outside)
        largest.append(p.cumsum(axis=1).sum(axis=0) if soft.n else np.zeros(0))
        where.append(of_row[shard.targets.soft])
    h, row_of = np.concatenate(entropy), np.concatenate(where)
    text = TokenText(store)
    uncertain, texts = _most_uncertain(store, h, row_of, t, text), _texts(store, h, row_of, t, text)
    return StoreFacts(
        temperature=t,
        rows=seen,
        shards=len(chosen),
        positions=positions,
        entropy=h,
        tail=np.concatenate(tail),
        mass_at=_mass_at(largest, len(h)),
        column_bytes=dict(columns.most_common()),
        uncertain=uncertain,
        texts=texts,
        trouble=text.trouble,
    )


def _spread(store: Store, rows: int) -> list[int]:
    """Shards, evenly spread."""
    shards = store.manifest.shards
    each = store.manifest.rows / len(shards)
    count = min(len(shards), max(1, math.ceil(rows / each)))
    return [int(i) for i in np.unique(np.linspace(0, len(shards) - 1, count).round())]


def _measure(soft: SoftTargets, t: float) -> tuple[Float64, Float64, Float64]:
    """`[M]` entropy, `[M]` tail, `[M, K]` probabilities, largest first."""
    p = -np.sort(-soft.probs(t).astype(np.float64), axis=1)
    tail = soft.tail(t).astype(np.float64)
    bins = np.concatenate([p, tail[:, None]], axis=1)
    logs = np.log(bins, out=np.zeros_like(bins), where=bins > 0)
    return -(bins * logs).sum(axis=1), tail, p


def _mass_at(sums: list[Float64], positions: int) -> dict[int, float]:
    k = max((len(s) for s in sums), default=0)
    if k == 0 or positions == 0:
        return {}
    total = np.zeros(k)
    for s in sums:
        if len(s):
            total += np.pad(s, (0, k - len(s)), mode="edge")  # of a shorter kept set, its last
    steps = [2**i for i in range(k.bit_length()) if 2**i < k] + [k]
    return {step: float(total[step - 1] / positions) for step in steps}


def _column_bytes(path: Path, identity: Identity) -> dict[str, int]:
    """Compressed bytes by column of a shard that was decoded, and so is sound; the rest is the file's own.

    Of `packed` the streams `ids.0`, `ids.1` and so on count as one column.
    """
    found: Counter[str] = Counter()
    if identity.encoding.profile == "packed":
        streams = container_of(identity).read_streams(path.read_bytes(), where=str(path))
        for name, stream in streams.items():
            found[name.partition(".")[0]] += len(stream.data)
    elif path.suffix == ".parquet":
        import pyarrow.parquet as pq

        metadata = pq.read_metadata(path)
        for g in range(metadata.num_row_groups):
            for c in range(metadata.num_columns):
                column = metadata.row_group(g).column(c)
                name = column.path_in_schema.split(".")[0]
                found[name] += column.total_compressed_size
    else:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if "/" in entry.filename:
                    found[entry.filename.split("/")[0]] += entry.compress_size
    found[OWN] = path.stat().st_size - sum(found.values())
    return dict(found)


# -- where it hesitates ----------------------------------------------------------------------------


def _most_uncertain(
    store: Store, h: Float64, row_of: npt.NDArray[np.int64], t: float, text: TokenText
) -> list[Uncertain]:
    found: list[Uncertain] = []
    rows: set[int] = set()
    for n in np.argsort(-h, kind="stable"):
        row = int(row_of[n])
        if row in rows:
            continue
        rows.add(row)
        stored = store.row(row)
        before = int((row_of[:n] == row).sum())  # soft positions of the row before this one
        position = int(np.flatnonzero(stored.targets.soft)[before])
        found.append(_uncertain(stored, position, float(h[n]), t, text))
        if len(found) == LISTED:
            break
    return found


def _uncertain(
    stored: StoredRow, position: int, entropy: float, t: float, text: TokenText
) -> Uncertain:
    tokens = stored.row.inputs.get("input_ids", np.zeros(0, np.int32))
    place = position
    if isinstance(stored.row, Row):
        place = int(stored.row.positions[position])
        start = place - int(stored.row.position_ids[place])  # where the document begins
        tokens = tokens[max(start, place + 1 - CONTEXT) : place + 1]
    label = int(stored.row.labels[position])
    return Uncertain(
        row=stored.index,
        position=place,
        context=text.many(tokens[-WINDOW:].tolist()),
        label=None if label < 0 else text.label(label),
        entropy=entropy,
        choices=_choices(stored.targets, position, t, text),
    )


def _choices(targets: SoftTargets, position: int, t: float, text: TokenText) -> tuple[Choice, ...]:
    one = targets[position : position + 1]
    p = one.probs(t)[0]
    order = np.argsort(-p, kind="stable")[:CHOICES]
    return tuple(
        Choice(words=text.label(int(one.ids[0, s])), p=float(p[s])) for s in order if one.kept[0, s]
    )


def _texts(
    store: Store, h: Float64, row_of: npt.NDArray[np.int64], t: float, text: TokenText
) -> list[tuple[int, list[Token]]]:
    """Of a causal LM: the rows with the largest mean entropy, from their beginning."""
    if not len(h) or not isinstance(store.row(int(row_of[0])).row, Row):
        return []
    rows, place = np.unique(row_of, return_inverse=True)
    mean = np.bincount(place, weights=h) / np.bincount(place)
    chosen = rows[np.argsort(-mean, kind="stable")[:TEXTS]]
    return [(int(r), _tokens(store.row(int(r)), t, text)) for r in chosen]


def _tokens(stored: StoredRow, t: float, text: TokenText) -> list[Token]:
    row = stored.row
    assert isinstance(row, Row)
    h, _, _ = _measure(stored.targets, t)
    at = {int(p) + LABEL_SHIFT: n for n, p in enumerate(row.positions)}
    found = []
    for i, token in enumerate(row.input_ids[:WINDOW].tolist()):
        n = at.get(i)
        known = n is not None and bool(stored.targets.soft[n])
        found.append(
            Token(
                words=text.one(token),
                entropy=float(h[n]) if known and n is not None else None,
                choices=_choices(stored.targets, n, t, text) if known and n is not None else (),
            )
        )
    return found
