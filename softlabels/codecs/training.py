"""Making codebooks: an order from a shard's own ids, a dictionary from what a teacher kept elsewhere.

A token's table holds the ids that were kept after it, by count, and between them those that are frequent
anywhere, as if each had been seen a little after every token.

Shapes: N positions, K kept ids, U ids in the order, E entries of all tables.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.codecs import codebook
from softlabels.codecs.codebook import Codebook, class_starts

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

LARGEST_TABLE, TABLE_PER_SIGHT, PRIOR = 1024, 96, 2.0
"""A token seen n times gets a table of at most 96 n ids; a table's order is by count, to which the ids'
frequency anywhere adds as much as two sights."""


def count(ids: npt.NDArray[Any]) -> tuple[Int32, Int64]:
    """Distinct ids of an array, and how often each occurs."""
    if len(ids) and int(ids.min()) >= 0 and int(ids.max()) < 64 * len(ids):
        counts = np.bincount(ids)
        distinct = np.flatnonzero(counts)
        return distinct.astype(np.int32), counts[distinct]
    distinct, counts = np.unique(ids, return_counts=True)
    return distinct.astype(np.int32), counts


def order_of(ids: Int32, counts: Int64, *, most: int | None = None) -> Codebook:
    """A codebook without tables, from distinct ids and how often each occurs (classes of half octaves).

    Of more than `most` the rarest have no place in it.
    """
    kind = np.floor(2 * np.log2(np.maximum(counts, 1))).astype(np.int64)
    by = np.lexsort((ids, -kind))[:most]
    _, classes = np.unique(-kind[by], return_counts=True)
    return Codebook(order=ids[by].astype(np.int32), classes=classes.astype(np.int32))


def train(
    tokens: Int32, ids: Int32, kept: npt.NDArray[np.bool_], *, largest: int = LARGEST_TABLE
) -> Codebook:
    """A codebook with tables, from what a teacher kept elsewhere.

    Args:
        tokens: `[N] int32`, the input token of each position.
        ids: `[N, K] int32`.
        kept: `[N, K] bool`.
        largest: ids of the largest table; halved until the file keeps to its limit.
    """
    flat = ids[kept]
    per_position = len(flat) / max(len(tokens), 1)
    distinct, counts = count(flat)
    common = order_of(distinct, counts)
    u = len(common.order)
    # Of each place in the order: what stands in for counts where there are none.
    prior = np.empty(u)
    prior[common.ranks_of(distinct)] = PRIOR * per_position * counts / max(len(flat), 1)
    seen, table_of = np.unique(tokens, return_inverse=True)
    sights = np.bincount(table_of, minlength=len(seen))
    pairs = np.repeat(table_of.astype(np.int64) * u, kept.sum(axis=1)) + common.ranks_of(flat)
    pairs, together = np.unique(pairs, return_counts=True)
    starts = np.searchsorted(pairs, np.arange(len(seen) + 1, dtype=np.int64) * u)
    ranks = pairs % max(u, 1)
    while True:
        tables = [
            _table(ranks[a:b], together[a:b], prior, min(largest, TABLE_PER_SIGHT * int(n)))
            for a, b, n in zip(starts, starts[1:], sights, strict=False)
        ]
        found = replace(
            common,
            tokens=seen.astype(np.int32) if largest else np.zeros(0, np.int32),
            sizes=np.array([len(t) for t in tables if largest], np.int32),
            entries=np.concatenate([*tables, np.zeros(0, np.int32)]).astype(np.int32),
        )
        entries = max(len(found.entries), len(found.order))
        if entries <= codebook.ENTRY_LIMIT and len(found.to_bytes()) <= codebook.DICTIONARY_LIMIT:
            return found
        if largest == 0:  # without tables it is the order that is too long: its rarest ids leave it
            assert len(common.order) > 0, "an empty dictionary has its place"
            most = len(common.order) // 2
            classes = np.minimum(common.classes, most - class_starts(common.classes))
            common = replace(
                common, order=common.order[:most], classes=classes[classes > 0].astype(np.int32)
            )
        largest //= 2


def _table(ranks: Int64, together: Int64, prior: npt.NDArray[np.float64], size: int) -> Int32:
    """The places in the order of the `size` ids that are likeliest after one token."""
    common = prior[: 2 * size].copy()
    often = ranks < len(common)
    common[ranks[often]] += together[often]
    rare = ranks[~often]
    score = np.concatenate([common, together[~often] + prior[rare]])
    candidates = np.concatenate([np.arange(len(common)), rare])
    return candidates[np.argsort(-score, kind="stable")[:size]].astype(np.int32)
