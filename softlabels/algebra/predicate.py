"""Which rows stay: a condition in SQL over columns that say something of each row, or a sample.

Columns, one record for each row:

    row              its number in the store
    tokens           of its inputs
    positions        that have a target
    soft_positions   of them, those that have a soft target
    segments         documents that share the row
    document         the first of them, as the corpus counts
    kept_ids         over all positions
    mean_entropy     of its soft positions, in nats: of the kept ids and the tail as one more outcome, at T=1
                     (at the grid's first T, if it lacks 1); at most the teacher's own entropy; null without any
    mean_tail        the mean mass of the tail, at the same T; null without any
    mean_top         the mean of the largest probability, at the same T; null without any
    digest           of its inputs, 32 hexadecimal digits

The condition sees one row at a time: polars parses it as an SQL expression, and nothing in it is run as Python.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from softlabels.errors import ConfigError, MissingExtraError
from softlabels.format.shard import Shard

if TYPE_CHECKING:
    import polars as pl

__all__ = ["COLUMNS", "Choice", "row_columns", "sample", "where"]

COLUMNS = (
    "row",
    "tokens",
    "positions",
    "soft_positions",
    "segments",
    "document",
    "kept_ids",
    "mean_entropy",
    "mean_tail",
    "mean_top",
    "digest",
)
Choice = Callable[[Shard], npt.NDArray[np.bool_]]


def row_columns(shard: Shard) -> dict[str, object]:
    """The columns of a shard's rows, by name."""
    t, at = shard.targets, shard.offsets
    temperature = 1.0 if 1.0 in t.temperatures else t.temperatures[0]
    soft = t.soft
    p = t.probs(temperature).astype(np.float64)
    tail = np.where(soft, t.tail(temperature), 0.0).astype(np.float64)

    def times_log(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.where(x > 0, x * np.log(np.where(x > 0, x, 1.0)), 0.0)

    entropy = -(times_log(p).sum(axis=1) + times_log(tail))

    def of_rows(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.diff(np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])[at])

    counts = of_rows(soft.astype(np.float64))

    def mean(values: npt.NDArray[np.float64]) -> list[float | None]:
        sums = of_rows(np.where(soft, values, 0.0))
        return [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]

    rows = shard.rows
    return {
        "row": np.arange(shard.start_row, shard.start_row + len(rows)),
        "tokens": np.array([r.size for r in rows], np.int64),
        "positions": np.diff(at),
        "soft_positions": counts.astype(np.int64),
        "segments": np.array([len(r.documents) for r in rows], np.int64),
        "document": np.array([int(r.documents[0]) for r in rows], np.int64),
        "kept_ids": of_rows(t.kept.sum(axis=1).astype(np.float64)).astype(np.int64),
        "mean_entropy": mean(entropy),
        "mean_tail": mean(tail),
        "mean_top": mean(p.max(axis=1, initial=0.0)),
        "digest": [r.digest().hex() for r in rows],
    }


def where(condition: str) -> Choice:
    """The rows for which an SQL expression is true; not those for which it is null.

    Raises:
        ConfigError: it is not one over the columns, not a condition, or looks at other rows.
    """
    try:
        import polars as pl
    except ImportError as e:
        raise MissingExtraError("polars", "algebra", "subset --where") from e
    from polars.exceptions import PolarsError

    flag = f"--where {condition!r}"
    try:
        expression = pl.sql_expr(condition)
    except (PolarsError, ValueError) as e:
        raise ConfigError(f"{flag}: not an SQL expression ({e})") from e

    def choose(shard: Shard) -> npt.NDArray[np.bool_]:
        frame = _frame(shard)
        try:
            found = frame.select(expression.alias("found"))["found"]
            alone = frame.select(expression.over("row").alias("found"))["found"]
        except (PolarsError, ValueError, TypeError) as e:
            raise ConfigError(f"{flag}: {e}; the columns are {', '.join(COLUMNS)}") from e
        if found.dtype != pl.Boolean:
            raise ConfigError(f"{flag}: gives {found.dtype}, expected a condition, true or false")
        if len(found) not in (1, len(frame)) or len(alone) != len(frame):
            raise ConfigError(f"{flag}: gives {len(found)} values for {len(frame)} rows")
        chosen = found.fill_null(False).to_numpy()
        if not np.array_equal(
            np.broadcast_to(chosen, len(frame)), alone.fill_null(False).to_numpy()
        ):
            raise ConfigError(
                f"{flag}: looks at other rows (a sum, a mean, a rank, …), and rows are seen one at a time; work the "
                "number out first (`softlabels inspect`), and write it into the condition"
            )
        return np.array(np.broadcast_to(chosen, len(frame)), np.bool_)

    return choose


def _frame(shard: Shard) -> pl.DataFrame:
    import polars as pl

    floats = {name: pl.Float64 for name in COLUMNS if name.startswith("mean_")}
    return pl.DataFrame(row_columns(shard), schema_overrides=floats)


def sample(share: float, seed: int) -> Choice:
    """Each row with probability `share`, decided by the seed and its input digest alone.

    So the same rows are chosen whatever store they are in: subset and merge may be done in either order.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"--sample {share:g}: expected a share above 0 and at most 1")

    def drawn(digest: bytes) -> float:
        h = hashlib.sha256(b"softlabels sample 1\n" + seed.to_bytes(8, "little") + digest)
        return int.from_bytes(h.digest()[:8], "little") / 2**64

    return lambda shard: np.array([drawn(r.digest()) < share for r in shard.rows], np.bool_)
