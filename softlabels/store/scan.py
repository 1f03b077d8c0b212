"""A store as a table of polars, one line for each position, read lazily.

    softlabels.scan("STORE").filter(pl.col("entropy") > 3).select("token", "label", "ids").collect()

docs/read-with.md says what each column holds. `label_logp`, `entropy` and `top` are there if the store has summaries;
`token` and `label` if it holds its inputs, or they are given, and `token` not of images.

Polars says which columns it needs, and targets are decoded only if one of them is `ids`, `logp`, `tail` or `top`. Of
a filter over `row` alone (`(pl.col("row") < 100) & …`) shards without such a row are not even opened. A shard is in
memory at a time, every one checked like those that a trainer reads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from softlabels.core.rows import UNLABELLED
from softlabels.core.summary import UNKNOWN, Summary
from softlabels.core.targets import SoftTargets, main_temperature
from softlabels.format.shard import Shard, rows_alone
from softlabels.store.reader import READ_AHEAD, Store, open_store

SCHEMA: Mapping[str, Any] = {
    "row": pl.Int64(),
    "position": pl.Int32(),
    "token": pl.Int32(),
    "label": pl.Int32(),
    "label_logp": pl.Float32(),
    "entropy": pl.Float32(),
    "top": pl.Int32(),
    "ids": pl.List(pl.Int32()),
    "logp": pl.List(pl.Float32()),
    "tail": pl.Float32(),
}
INPUTS = {"token", "label"}
SUMMARIES = {"label_logp", "entropy", "top"}
TARGETS = {"top", "ids", "logp", "tail"}
"""What no shard tells before its targets are decoded."""


def scan(url: str | Path, *, temperature: float | None = None, **how: Any) -> pl.LazyFrame:
    """A store as a LazyFrame of its positions, in order.

    Args:
        url: as `open_store` takes it: a folder or an address.
        temperature: of `logp` and `tail`, one of the store's grid; default 1, or the grid's first if it lacks 1.
        how: what else `open_store` takes: `inputs`, `view`, `key`, …

    Raises:
        PairingError: the temperature is not of the grid.
        FormatError, IntegrityError, …: as `open_store`; while the frame is collected, as reading a shard does.
    """
    store = open_store(url, **how)
    at = temperature_of(store, temperature)
    schema = {name: SCHEMA[name] for name in columns_of(store)}

    def read(
        wanted: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, _: int | None
    ) -> Iterator[pl.DataFrame]:
        return _read(store, wanted or list(schema), predicate, n_rows, at)

    return register_io_source(read, schema=schema)


def temperature_of(store: Store, asked: float | None) -> float:
    """The temperature of `logp` and `tail`; `PairingError` if the one that is asked for is not of the grid."""
    grid = store.manifest.identity.targets.temperatures
    at = main_temperature(grid) if asked is None else asked
    rows_alone(0, (), store.manifest.identity, None).targets.grid_index(at)  # or refused
    return at


def columns_of(store: Store) -> list[str]:
    """What is known of the positions of a store."""
    identity = store.manifest.identity
    missing = set() if identity.summary is not None else set(SUMMARIES)
    if not identity.encoding.has_inputs and store.inputs is None:
        missing |= INPUTS
    if identity.images is not None:
        missing.add("token")
    return [name for name in SCHEMA if name not in missing]


def _read(
    store: Store,
    wanted: Sequence[str],
    predicate: pl.Expr | None,
    n_rows: int | None,
    temperature: float,
) -> Iterator[pl.DataFrame]:
    needed = {*wanted, *(() if predicate is None else predicate.meta.root_names())}
    store = _narrowed(store, needed, temperature)
    numbers = list(_shards(store, predicate))
    for i, number in enumerate(numbers):
        if n_rows is not None and n_rows <= 0:
            return
        store.ahead(numbers[i : i + READ_AHEAD])
        frame = _frame(store, number, needed, temperature)[:n_rows]
        n_rows = None if n_rows is None else n_rows - len(frame)
        yield (frame if predicate is None else frame.filter(predicate)).select(wanted)


def shard_frame(
    store: Store, number: int, columns: Sequence[str], temperature: float
) -> pl.DataFrame:
    """These columns of one shard, as `scan` gives them; no more is decoded than they need."""
    needed = set(columns)
    return _frame(_narrowed(store, needed, temperature), number, needed, temperature).select(
        columns
    )


def _frame(store: Store, number: int, needed: Set[str], temperature: float) -> pl.DataFrame:
    """Of a store that was narrowed."""
    targets = bool(needed & TARGETS) or store.view is not None
    shard = store.read_shard(number, named=not needed & INPUTS, targets=targets)
    return positions_of(shard, [c for c in SCHEMA if c in needed], temperature)


def _narrowed(store: Store, needed: Set[str], temperature: float) -> Store:
    """The store as if it held no more than what is needed: the rest is not decoded."""
    identity = store.manifest.identity
    narrow = msgspec.structs.replace(
        identity,
        hidden=None,
        summary=identity.summary if needed & SUMMARIES else None,
        targets=msgspec.structs.replace(identity.targets, temperatures=[temperature]),
    )
    narrowed = copy.copy(store)
    narrowed.manifest = msgspec.structs.replace(store.manifest, identity=narrow)
    return narrowed


def _shards(store: Store, predicate: pl.Expr | None) -> Iterator[int]:
    """Those that can have a position for which the predicate is true, as far as row numbers tell."""
    about_rows = [] if predicate is None else list(_about_rows(predicate))
    for i, shard in enumerate(store.manifest.shards):
        rows = np.arange(shard.start_row, shard.start_row + shard.rows)
        if not about_rows or len(pl.DataFrame({"row": rows}).filter(*about_rows)):
            yield i


def _about_rows(predicate: pl.Expr) -> Iterator[pl.Expr]:
    """The parts, all of which must be true, that look at the row's number alone."""
    parts = predicate.meta.pop()
    if len(parts) == 2 and predicate.meta == (parts[1] & parts[0]):
        for part in parts:
            yield from _about_rows(part)
    elif set(predicate.meta.root_names()) == {"row"}:
        yield predicate


def positions_of(shard: Shard, names: Sequence[str], temperature: float) -> pl.DataFrame:
    """These columns of a shard's positions."""
    t, starts = shard.targets, shard.offsets[:-1]
    order: npt.NDArray[np.int64] | None = (
        None  # the likeliest first, as `packed` holds them already
    )
    if (t.gaps[:, 1:] < t.gaps[:, :-1]).any():
        order = np.argsort(t.gaps, axis=1, kind="stable")

    has_tail = t.soft & (not t.keeps.sample)  # what a sample left out, nobody knows

    def repeated(of_rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.repeat(of_rows, np.diff(shard.offsets))

    def joined(of_row: Callable[[Any], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.concatenate([of_row(row) for row in shard.rows])

    def lists(values: npt.NDArray[Any]) -> pa.Array:
        kept = t.kept
        if order is not None:
            values, kept = (np.take_along_axis(x, order, axis=1) for x in (values, kept))
        ends = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
        return pa.LargeListArray.from_arrays(pa.array(ends), pa.array(values[kept]))

    columns: Mapping[str, Callable[[], Any]] = {
        "row": lambda: repeated(np.arange(len(shard.rows)) + shard.start_row),
        "position": lambda: np.arange(t.n) - repeated(starts),
        "token": lambda: joined(_tokens),
        "label": lambda: _known(joined(lambda row: row.labels), UNLABELLED),
        "label_logp": lambda: _known(_summary(t).label_logp),
        "entropy": lambda: _known(_summary(t).entropy),
        "top": lambda: _known(_summary(t).top, UNKNOWN),
        "ids": lambda: lists(t.ids),
        "logp": lambda: lists(t.log_probs(temperature)),
        "tail": lambda: _known(np.where(has_tail, t.tail(temperature), np.float32(np.nan))),
    }
    return pl.DataFrame({name: pl.Series(columns[name]()).cast(SCHEMA[name]) for name in names})


def _tokens(row: Any) -> npt.NDArray[Any]:
    """`[N]`: the token that a model has just read when it answers."""
    fed = row.inputs
    if "decoder_input_ids" in fed:
        return np.asarray(fed["decoder_input_ids"])
    return np.asarray(fed["input_ids"][fed["label_mask"]])


def _summary(targets: SoftTargets) -> Summary:
    assert targets.summary is not None, "asked only of a store that has them"
    return targets.summary


def _known(values: npt.NDArray[Any], unknown: int | None = None) -> pl.Series:
    """Null where a number stands for what is not known; without one NaN does."""
    found = pl.Series(values)
    return found.fill_nan(None) if unknown is None else found.set(found == unknown, None)
