"""How the rows of stores come where somebody named it, or nobody did: the one home of that default.

A run, a stream, and the trainers of others take the same rows of the same seed because all of them ask here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from softlabels.format.pages import column
from softlabels.store.reader import Store
from trainers.data.lanes import Lanes, block_parts, check_lanes, default_lanes
from trainers.data.order import PLANNED, CorpusOrder, RowOrder, check_order

EARLIER: dict[str, Any] = {"order": "store", "lanes": 1}
"""What runs and states had before each could be named; where they do not name it, they go on with it."""


class Arrangement(NamedTuple):
    """How the rows of a store come."""

    order: str
    """By `corpus`, by `plan` or by `store`."""
    lanes: int
    """Of the order."""

    @classmethod
    def chosen(
        cls, order: str | None, lanes: int | None, batch_size: int, *, shuffle: bool = True
    ) -> Arrangement:
        """What is named; None: by corpus, in the most lanes up to `MOST` that divide a batch.

        Where nothing is shuffled, and by plan, it is one lane.

        Raises:
            ConfigError: an order that is not known, or lanes that do not divide a batch.
        """
        if order is None:
            order = "corpus"
        if lanes is None:
            lanes = default_lanes(batch_size) if shuffle and order != PLANNED else 1
        check_order(order, lanes)
        check_lanes(lanes, batch_size)
        return cls(order, lanes)

    def facts(self, batch_size: int) -> dict[str, Any]:
        """What a stream's state says of it: what is not as in `EARLIER`, and with lanes the rows of a batch."""
        facts: dict[str, Any] = {n: v for n, v in self._asdict().items() if v != EARLIER[n]}
        return facts if self.lanes == 1 else {**facts, "batch_size": batch_size}


def orders_of(
    stores: Sequence[Store],
    seed: int,
    arrangement: Arrangement,
    *,
    block_shards: int,
    shuffle: bool,
) -> list[Lanes]:
    """The order of the rows of each of the stores of a stream, in its lanes.

    By corpus, stores of one corpus beside each other differ in it: else a batch would hold the same rows twice.
    """
    found: list[RowOrder] = []
    seen: list[str] = []
    order, lanes = arrangement
    block = block_parts(lanes, block_shards)
    for store in stores:
        sizes, corpus = column(store.shards, "rows").tolist(), store.identity.corpus
        if order == "store":
            found.append(RowOrder(sizes, store.digest, seed, block_shards=block, shuffle=shuffle))
            continue
        copy = seen.count(corpus.fingerprint)
        seen.append(corpus.fingerprint)
        found.append(
            CorpusOrder(
                sizes,
                corpus.positions,
                corpus.fingerprint,
                seed,
                copy=copy,
                block_slices=block,
                shuffle=shuffle,
                forward=order == PLANNED,
            )
        )
    return [Lanes(o, lanes) for o in found]
