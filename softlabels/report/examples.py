"""Positions that a person would pick to learn what a store holds, with their text around them.

    certain   the teacher gives nearly all to one id
    torn      it is split between two: the one whose second choice has the largest probability
    wrong     it is sure of an id, and another came

Only what is known for certain counts: of a sample the ids that it was sure to keep, and never a weight that was drawn.
One position of a row and of a label is shown, so that a list is not the same place again. Shapes: N positions, K ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from softlabels.core.rows import UNLABELLED, InputRow, Row
from softlabels.core.summary import UNKNOWN
from softlabels.core.targets import SoftTargets
from softlabels.domains.image_classification import ImageRow
from softlabels.domains.seq2seq import PairRow
from softlabels.domains.text import TextRow
from softlabels.format.shard import StoredRow
from softlabels.report.readings import Reading, entropy_of, read, sure_of
from softlabels.store.reader import Store
from softlabels.store.token_text import TokenText

Float64 = npt.NDArray[np.float64]
CONTEXT, AFTER, WHOLE = 24, 10, 64
"""Tokens before a position and after it; tokens of a text that has one class."""
EACH = 5
"""Examples of a kind."""
KINDS = ("certain", "torn", "wrong")


@dataclass(frozen=True, kw_only=True)
class Example:
    """A position to look at."""

    row: int
    position: int
    """Token of the row that answers; where there are no tokens, the position's number."""
    context: str
    """The text before it, or what is classified."""
    after: str
    """The text after it."""
    entropy: float | None
    """Nats; None: not known."""
    reading: Reading


def likelihoods(targets: SoftTargets, t: float) -> Float64:
    """`[N, 2]`: probabilities of the teacher's two likeliest ids, as far as they are known; NaN where they are not.

    Args:
        targets: of N positions.
        t: temperature, of the grid.
    """
    found = np.full((targets.n, 2), np.nan)
    at = np.flatnonzero(targets.soft)
    soft = targets[at]
    if not soft.n:
        return found
    p = -np.sort(-soft.probs(t).astype(np.float64), axis=1)
    if targets.keeps.sample:
        p = np.where(sure_of(p, soft.kept.sum(axis=1), targets.keeps), p, np.nan)
    two = p[:, :2]
    found[at, : two.shape[1]] = np.where(two > 0, two, np.nan)
    return found


def columns_of(targets: SoftTargets, labels: npt.NDArray[np.int32], t: float) -> dict[str, Float64]:
    """`[N]` for each of `KINDS`: how good an example a position is; NaN: it is none.

    Args:
        targets: of N positions.
        labels: `[N]`.
        t: temperature, of the grid.
    """
    two = likelihoods(targets, t)
    top = _top(targets, t)
    known = (top != UNKNOWN) & (labels != UNLABELLED)
    return {
        "certain": two[:, 0],
        "torn": two[:, 1],
        "wrong": np.where(known & (top != labels), two[:, 0], np.nan),
    }


def _top(targets: SoftTargets, t: float) -> npt.NDArray[np.int64]:
    """`[N]`: the teacher's likeliest id, or `UNKNOWN`."""
    if targets.summary is not None:
        return targets.summary.top.astype(np.int64)
    found = np.full(targets.n, UNKNOWN, np.int64)
    at = np.flatnonzero(targets.soft)
    if len(at) and not targets.keeps.sample:
        soft = targets[at]
        best = np.argmax(soft.probs(t), axis=1)
        found[at] = soft.ids[np.arange(soft.n), best]
    return found


def pick(store: Store, table: pl.DataFrame, kind: str, t: float, text: TokenText) -> list[Example]:
    """The best examples of a kind, one of each row and each label.

    Args:
        store: that the table is of.
        table: a line for each position: `row`, `position`, `label` and the column of that kind.
        kind: one of `KINDS`.
        t: temperature, of the grid.
        text: of the store.
    """
    found = table.select("row", "position", "label", kind).filter(pl.col(kind).is_not_nan())
    best = found.sort(kind, descending=True, maintain_order=True)
    for key in ("row", "label"):
        best = best.unique(key, keep="first", maintain_order=True)
    places = best.select("row", "position").head(EACH).iter_rows()
    return [example(store.row(row), position, t, text) for row, position in places]


def example(stored: StoredRow, n: int, t: float, text: TokenText) -> Example:
    """Position `n` of a row."""
    row = stored.row
    before, after = _around(row, n, text)
    entropy = float(entropy_of(stored.targets[n : n + 1], t)[0])
    return Example(
        row=stored.index,
        position=int(row.positions[n]) if isinstance(row, Row) else n,
        context=before,
        after=after,
        entropy=None if np.isnan(entropy) else entropy,
        reading=read(stored.targets, n, int(row.labels[n]), t, text),
    )


def _around(row: InputRow, n: int, text: TokenText) -> tuple[str, str]:
    """The text before position `n`, and after it."""
    if isinstance(row, ImageRow):
        return f"image {row.document}, view {row.view}", ""
    if isinstance(row, PairRow):
        source = _words(row.source_ids[:WHOLE], text)
        return f"{source} → {_words(row.target_ids[max(0, n - CONTEXT) : n], text)}", _words(
            row.target_ids[n + 1 : n + 1 + AFTER], text
        )
    if isinstance(row, Row):
        place = int(row.positions[n])
        ends = np.cumsum(row.segment_lengths)
        end = int(ends[np.searchsorted(ends, place, side="right")])
        rest = row.input_ids[place + 2 : min(end, place + 2 + AFTER)]
        return _words(row.before(n)[-CONTEXT:], text), _words(rest, text)
    if isinstance(row, TextRow):
        place = int(row.positions[n])
        if row.n == 1 and place == 0:
            return _words(row.fed_ids[:WHOLE], text), ""
        masked = row.domain == "masked-lm"  # the token itself is hidden
        until = place if masked else place + 1
        return (
            _words(row.fed_ids[max(0, until - CONTEXT) : until], text),
            _words(row.fed_ids[place + 1 : place + 1 + AFTER], text),
        )
    return _words(row.before(n)[-CONTEXT:], text), ""


def _words(ids: npt.NDArray[np.int32] | Sequence[int], text: TokenText) -> str:
    return text.many([int(i) for i in ids]) if len(ids) else ""
