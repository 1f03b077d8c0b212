"""What a report of a store is drawn from: its targets, its bytes, and where its teacher hesitates.

What the teacher thought is taken from the summaries of positions, which are of its whole distribution. An older store
has none: then its uncertainty is told from the kept ids, with the tail as one id, and of a sample not at all.

Shapes: N positions, M of them that something is known of, L that have a label, K kept ids.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from softlabels.core.rows import LABEL_SHIFT, Row
from softlabels.core.targets import main_temperature
from softlabels.format.encoding import column_bytes
from softlabels.format.shard import Shard, StoredRow
from softlabels.report.charts import Bin
from softlabels.report.examples import KINDS, Example, columns_of, example, pick
from softlabels.report.readings import Reading, entropy_of, read, sure_of
from softlabels.store.reader import Store
from softlabels.store.token_text import TokenText

Float64 = npt.NDArray[np.float64]
LISTED = 12
OWN = "(the file's own)"
"""What of a shard is in no column."""
TEXTS = 3
WINDOW = 160
"""Tokens of a text that are shown."""
HEAT = (0.2, 0.4, 0.6, 0.8, 0.95)
"""Shares of the store's positions, calmest first, at which the colour of a token changes."""
BINS = 20


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token, and what the teacher expected before it came."""

    words: str
    entropy: float | None
    """Nats; None: it was not predicted, or nothing is known."""
    reading: Reading | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class StoreFacts:
    """What some shards of a store hold, at one temperature."""

    temperature: float
    rows: int
    """Rows that were read."""
    shards: int
    positions: int
    summarised: bool
    """Whether the store holds summaries."""
    entropy: Float64
    """`[M]`, nats: the teacher's own if `summarised`; else at least this: of the kept ids, the tail counted as one."""
    label_logp: Float64
    """`[L]`, nats, at T=1: of the labels; empty if the store holds no summaries."""
    tail: Float64
    """Mass outside the kept set of each soft position; empty if that is a sample."""
    sure: Float64
    """Of each soft position of a sample: the mass of the ids that were sure to be kept."""
    sure_ids: float
    """How many they are, on average."""
    mass_at: dict[int, float]
    """Mean mass of the k largest kept ids, by k; none if they are a sample."""
    column_bytes: dict[str, int]
    """Compressed, over the shards that were read."""
    hardest: list[Example]
    """One of a row: those whose label the teacher found least likely, or else those of the largest entropy."""
    examples: dict[str, list[Example]]
    """By kind, those of `KINDS` of which there are any."""
    texts: list[tuple[int, list[Token]]]
    """Row numbers and their tokens: the rows with the largest mean entropy."""
    trouble: str | None
    """Why ids are shown in the place of text, if the store has a tokenizer that could not be used."""

    def surest(self, kind: str) -> float:
        """The most that the teacher gave one id among the examples of a kind; 0: there are none."""
        firsts = [e.reading.expected(1) for e in self.examples.get(kind, [])]
        return max((p for first in firsts for _, p in first if p is not None), default=0.0)

    @property
    def median_entropy(self) -> float:
        """Nats, of the positions that something is known of."""
        return float(np.median(self.entropy))

    @property
    def equally_likely(self) -> float:
        """So many equally likely ids have the median entropy."""
        return math.exp(self.median_entropy)

    @property
    def mean_entropy(self) -> float:
        """Nats, of the same."""
        return float(self.entropy.mean())

    @property
    def entropies(self) -> list[Bin]:
        """A histogram of the entropies."""
        return _bins(self.entropy, 0.0, max(math.ceil(self.entropy.max()), 1))

    @cached_property
    def heat(self) -> list[float]:
        """Entropies at which the colour of a token changes, rising."""
        return [float(x) for x in np.quantile(self.entropy, HEAT)] if len(self.entropy) else []

    def heat_of(self, entropy: float) -> int:
        """Which colour a token has."""
        return bisect.bisect_left(self.heat, entropy)

    @cached_property
    def losses(self) -> Losses:
        """What the teacher gave the labels."""
        values = np.minimum(-self.label_logp, 1e5)  # -inf: less than a store can hold
        high = float(max(math.ceil(np.quantile(values, 0.99)), 1))
        return Losses(
            bins=_bins(np.minimum(values, high), 0.0, high),
            beyond=int((values > high).sum()),
            sure=float((values < math.log(2)).mean()),
        )

    @property
    def mean_tail(self) -> float:
        """Mass outside the kept set, over the soft positions."""
        return float(self.tail.mean())

    @property
    def mean_sure(self) -> float:
        """Mass of the ids that were sure to be in a sample, over the soft positions."""
        return float(self.sure.mean())

    @property
    def columns(self) -> list[ColumnSize]:
        """The largest first."""
        total, n = sum(self.column_bytes.values()) or 1, max(self.positions, 1)
        return [
            ColumnSize(*item, item[1] / n, item[1] / total) for item in self.column_bytes.items()
        ]

    @property
    def tails(self) -> list[Bin]:
        """A histogram of the mass outside the kept sets."""
        return _bins(self.tail, 0.0, 1.0)

    @property
    def certain(self) -> list[Bin]:
        """A histogram of the mass of ids that were sure to be in a sample."""
        return _bins(self.sure, 0.0, 1.0)


class ColumnSize(NamedTuple):
    """What a column takes, compressed."""

    name: str
    bytes: int
    per_position: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Losses:
    """-log p of the labels, nats."""

    bins: list[Bin]
    beyond: int
    """How many are more than the last bin says; it holds them, too."""
    sure: float
    """Share of the labels that have more than half of the mass."""


def _bins(values: Float64, low: float, high: float) -> list[Bin]:
    counts, edges = np.histogram(values, bins=BINS, range=(low, high))
    return [
        Bin(float(edges[i]), float(edges[i + 1]), int(n), int(n) / max(len(values), 1))
        for i, n in enumerate(counts)
    ]


def _table(shard: Shard, t: float) -> pl.DataFrame:
    """A line for each position: the numbers of its row and its own, and what is known of it; NaN: nothing."""
    counts = [r.n for r in shard.rows]
    summary, n = shard.targets.summary, shard.targets.n
    labels = np.concatenate([np.zeros(0, np.int32), *(r.labels for r in shard.rows)])
    return pl.DataFrame(
        {
            "row": np.repeat(np.arange(len(counts)) + shard.start_row, counts),
            "position": np.concatenate([np.zeros(0, np.int64), *(np.arange(c) for c in counts)]),
            "label": labels,
            "entropy": entropy_of(shard.targets, t),
            "label_logp": np.full(n, np.nan)
            if summary is None
            else summary.label_logp.astype(float),
            **columns_of(shard.targets, labels, t),
        }
    )


def gather(store: Store, *, rows: int) -> StoreFacts:
    """Read whole shards, evenly spread over the store, until they hold `rows` rows.

    Raises:
        IntegrityError, TargetError: a shard is damaged.
    """
    identity = store.manifest.identity
    grid = identity.targets.temperatures
    t = main_temperature(grid)
    sampled = identity.targets.keeps.sample
    tables = list[pl.DataFrame]()
    tail, largest, sure, ids = [], [], list[Float64](), 0
    columns: Counter[str] = Counter()
    seen = positions = 0
    chosen = _spread(store, rows)
    for index in chosen:
        record = store.manifest.shards[index]
        shard = store.read_shard(index)
        of_columns = column_bytes(store.folder / record.name, identity)
        columns.update({**of_columns, OWN: record.bytes - sum(of_columns.values())})
        seen += len(shard.rows)
        positions += shard.targets.n
        tables.append(_table(shard, t))
        soft = shard.targets[np.flatnonzero(shard.targets.soft)]
        p = -np.sort(-soft.probs(t).astype(np.float64), axis=1)
        if sampled:
            kept = sure_of(p, soft.kept.sum(axis=1), identity.targets.keeps)
            sure.append(np.where(kept, p, 0.0).sum(axis=1))
            ids += int(kept.sum())
        else:
            tail.append(soft.tail(t).astype(np.float64))
            largest.append(p.cumsum(axis=1).sum(axis=0) if soft.n else np.zeros(0))
    table, text = pl.concat(tables), TokenText(store)
    tails = np.concatenate([np.zeros(0), *tail])
    masses = np.concatenate([np.zeros(0), *sure])
    return StoreFacts(
        temperature=t,
        rows=seen,
        shards=len(chosen),
        positions=positions,
        summarised=identity.summary is not None,
        entropy=table["entropy"].drop_nans().to_numpy(),
        label_logp=table["label_logp"].drop_nans().to_numpy(),
        tail=tails,
        sure=masses,
        sure_ids=ids / max(len(masses), 1),
        mass_at=_mass_at(largest, len(tails)),
        column_bytes=dict(columns.most_common()),
        hardest=_hardest(store, table, t, text),
        examples={k: found for k in KINDS if (found := pick(store, table, k, t, text))},
        texts=_texts(store, table, t, text),
        trouble=text.trouble,
    )


def _spread(store: Store, rows: int) -> list[int]:
    """Shards, evenly spread."""
    shards = store.manifest.shards
    each = store.manifest.rows / len(shards)
    count = min(len(shards), max(1, math.ceil(rows / each)))
    return [int(i) for i in np.unique(np.linspace(0, len(shards) - 1, count).round())]


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


# -- where it hesitates ----------------------------------------------------------------------------


def _hardest(store: Store, table: pl.DataFrame, t: float, text: TokenText) -> list[Example]:
    """The positions whose label is least likely, else those of the largest entropy; one of a row."""
    logp, entropy = pl.col("label_logp"), pl.col("entropy")
    ease = logp if table["label_logp"].is_not_nan().any() else -entropy
    found = table.select("row", "position", ease=ease).filter(pl.col("ease").is_not_nan())
    first = found.sort("ease", maintain_order=True).unique("row", keep="first", maintain_order=True)
    places = first.select("row", "position").head(LISTED).iter_rows()
    return [example(store.row(row), position, t, text) for row, position in places]


def _texts(
    store: Store, table: pl.DataFrame, t: float, text: TokenText
) -> list[tuple[int, list[Token]]]:
    """Of a causal LM: the rows with the largest mean entropy, from their beginning."""
    known = table.filter(pl.col("entropy").is_not_nan())
    if known.is_empty() or not isinstance(store.row(known["row"][0]).row, Row):
        return []
    means = known.group_by("row", maintain_order=True).agg(pl.col("entropy").mean())
    chosen = means.sort("entropy", descending=True, maintain_order=True)["row"].head(TEXTS)
    return [(r, _tokens(store.row(r), t, text)) for r in chosen]


def _tokens(stored: StoredRow, t: float, text: TokenText) -> list[Token]:
    row = stored.row
    assert isinstance(row, Row)
    h = entropy_of(stored.targets, t)
    at = {int(p) + LABEL_SHIFT: n for n, p in enumerate(row.positions)}
    found = []
    for i, token in enumerate(row.input_ids[:WINDOW].tolist()):
        n = at.get(i)
        if n is None or math.isnan(h[n]):
            found.append(Token(words=text.one(token), entropy=None))
            continue
        reading = read(stored.targets, n, token, t, text)
        found.append(Token(words=text.one(token), entropy=float(h[n]), reading=reading))
    return found
