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

import numpy as np
import numpy.typing as npt
import polars as pl
from polars.exceptions import PolarsError

from softlabels.core.targets import main_temperature
from softlabels.errors import ConfigError
from softlabels.format.shard import Shard
from softlabels.store.scan import positions_of

Choice = Callable[[Shard], npt.NDArray[np.bool_]]


def row_columns(shard: Shard) -> pl.DataFrame:
    """The columns of a shard's rows."""
    rows = shard.rows
    of_rows = pl.DataFrame(
        {
            "row": np.arange(shard.start_row, shard.start_row + len(rows)),
            "tokens": np.array([r.size for r in rows], np.int64),
            "positions": np.diff(shard.offsets),
            "segments": np.array([len(r.documents) for r in rows], np.int64),
            "document": np.array([int(r.documents[0]) for r in rows], np.int64),
            "digest": [r.digest().hex() for r in rows],
        }
    )
    at = main_temperature(shard.targets.temperatures)
    kept = positions_of(shard, ["row", "logp", "tail"], at).with_columns(
        kept=pl.col("logp").list.len(),
        logp=pl.col("logp").cast(pl.List(pl.Float64)),
        tail=pl.col("tail").cast(pl.Float64),
    )
    soft = kept.filter(pl.col("kept") > 0)
    of_soft = soft.group_by("row").agg(
        soft_positions=pl.len().cast(pl.Int64),
        kept_ids=pl.col("kept").sum().cast(pl.Int64),
        mean_entropy=_entropy().mean(),
        mean_tail=pl.col("tail").mean(),
        mean_top=pl.col("logp").list.first().exp().mean(),
    )
    counts = pl.col("soft_positions", "kept_ids").fill_null(0)
    return of_rows.join(of_soft, on="row", how="left", maintain_order="left").with_columns(counts)


def _entropy() -> pl.Expr:
    """Of each position, of what it keeps and its tail as one more outcome, in nats."""
    kept = pl.col("logp").list.eval(pl.element() * pl.element().exp()).list.sum()
    tail = pl.when(pl.col("tail") > 0).then(pl.col("tail") * pl.col("tail").log()).otherwise(0.0)
    return -(kept + tail)


def where(condition: str) -> Choice:
    """The rows for which an SQL expression is true; not those for which it is null.

    Raises:
        ConfigError: it is not one over the columns, not a condition, or looks at other rows.
    """
    flag = f"--where {condition!r}"
    try:
        expression = pl.sql_expr(condition)
    except (PolarsError, ValueError) as e:
        raise ConfigError(f"{flag}: not an SQL expression ({e})") from e

    def choose(shard: Shard) -> npt.NDArray[np.bool_]:
        frame = row_columns(shard)
        try:
            found = frame.select(expression.alias("found"))["found"]
            alone = frame.select(expression.over("row").alias("found"))["found"]
        except (PolarsError, ValueError, TypeError) as e:
            raise ConfigError(f"{flag}: {e}; the columns are {', '.join(frame.columns)}") from e
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
