"""Several stores at once, each with a weight, in one sequence of rows.

A weight is a share of the rows. Weights are exact ratios, brought to whole numbers: 0.7 and 0.3 are 7 and 3
rows of each 10, evenly spread, so every batch holds each store's share to within a row. Which store
a place belongs to, and which of the store's rows it is, follows from the place alone: the state is still one number.
With lanes (`lanes.py`) this is so of each lane.

For several teachers on one corpus this is multi-teacher distillation: a row learns from one teacher, which is
each with the probability of its weight, so that the loss is on average the weighted sum of the losses
to each; of forward KLs, that is the forward KL to the teachers' mixture, but for a constant. Each batch
costs what a batch of one store costs, and merged it goes through every loss and loop as it is. Where rows have
different numbers of positions, the weight is of rows, not of positions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.core.registry import name_of
from softlabels.errors import ConfigError, PairingError, TokenizerError
from softlabels.format.identity import Identity
from softlabels.store.demand import Demand
from softlabels.store.reader import Store, open_store
from softlabels.store.remote.cache import CacheOptions
from trainers.data.batch import Batch, collate
from trainers.data.lanes import Span
from trainers.data.stream import BatchStream, SoftTargetStream, opened
from trainers.data.tasks import check_rows

Weight = float | Fraction | str
LONGEST = 1_000_000
"""Rows of a pattern, at most."""


class Pattern:
    """Which store each place of the mixed sequence belongs to: a cycle of evenly spread turns.

    Args:
        weights: of each store, above 0; only their ratios count.

    Raises:
        ConfigError: a weight that is not above 0, or ratios that need more than a million rows.
    """

    def __init__(self, weights: Sequence[Weight]) -> None:
        exact = [_exact(w) for w in weights]
        scale = math.lcm(*(w.denominator for w in exact))
        whole = [int(w * scale) for w in exact]
        common = math.gcd(*whole)
        self.turns: tuple[int, ...] = tuple(w // common for w in whole)
        """Rows of each store in a cycle."""
        self.length = sum(self.turns)
        if self.length > LONGEST:
            raise ConfigError(
                f"weights {', '.join(map(str, weights))}: their ratio needs a cycle of {self.length} rows, at most "
                f"{LONGEST} are allowed; round them to fewer digits"
            )
        times = np.concatenate([(np.arange(n) + 0.5) / n for n in self.turns])
        store_of = np.repeat(np.arange(len(self.turns)), self.turns)
        self._store: npt.NDArray[np.int64] = store_of[np.argsort(times, kind="stable")]
        self._before = [
            np.concatenate([[0], np.cumsum(self._store == s)]) for s in range(len(exact))
        ]

    def stores(self, offset: int, count: int) -> npt.NDArray[np.int64]:
        """`[count] int64`: the store of each place from `offset` on."""
        return self._store[(offset + np.arange(count)) % self.length]

    def before(self, store: int, offset: int) -> int:
        """How many places of a store come before `offset`."""
        cycles, rest = divmod(offset, self.length)
        return cycles * self.turns[store] + int(self._before[store][rest])


def _exact(weight: Weight) -> Fraction:
    """0.7 is 7/10: what was written, not the nearest binary number."""
    try:
        exact = Fraction(str(weight))
    except (ValueError, ZeroDivisionError) as e:
        raise ConfigError(f"weight {weight}: expected a number above 0") from e
    if exact <= 0:
        raise ConfigError(
            f"weight {weight}: expected a number above 0; leave the store out instead"
        )
    return exact


class MixedStream(BatchStream):
    """Endless batches of several stores, each row's store being in `Batch.sources`.

    Args:
        stores: (path or open store, weight) of each. They must agree in tokenizer, vocabulary, estimator and grid.
        batch_size: rows in a global batch, of all stores together.

    All other arguments are those of `SoftTargetStream`, whose bound of shards that are held decoded is of each store.
    Each lane has the turns of the pattern, begun where the other lanes do not.

    Raises:
        ConfigError: no store, or weights that cannot be used; as `SoftTargetStream`.
        PairingError, TokenizerError: stores that do not go together.
        StoreError: a store cannot be opened.
    """

    def __init__(
        self,
        stores: Sequence[tuple[Store | Path | str, Weight]],
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        order: str | None = None,
        block_shards: int = 8,
        lanes: int | None = None,
        prefetch: int = 2,
        vocab: str | None = None,
        images: Sequence[str] = (),
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            order=order,
            block_shards=block_shards,
            lanes=lanes,
            prefetch=prefetch,
            rank=rank,
            world_size=world_size,
        )
        if not stores:
            raise ConfigError("a mixture of no stores: give at least one")
        self.pattern = Pattern([w for _, w in stores])
        self.stores = [opened(s, vocab, images) for s, _ in stores]
        check_alike(self.stores)
        digests = [s.digest for s in self.stores]
        self._begin(self.stores, {"stores": digests, "turns": list(self.pattern.turns)})

    @property
    def store(self) -> Store:
        """The first store, for what all of them agree in."""
        return self.stores[0]

    @property
    def epochs(self) -> tuple[float, ...]:
        """How many times each store was gone through, so far."""
        step = self.offset // self.lanes
        return tuple(
            sum(self._of_store(s, Span(c, 0, step)).rows for c in range(self.lanes))
            / reader.lanes.order.rows
            for s, reader in enumerate(self._readers)
        )

    @property
    def epoch(self) -> float:
        """How many times the store that is gone through most often was, so far."""
        return max(self.epochs)

    def _read(self, own: Sequence[Span], offset: int) -> Batch:
        turns = (self.pattern.stores(self._turn(s.lane) + s.step, s.rows) for s in own)
        sources = np.concatenate(list(turns)).tolist()
        rows = [
            iter(reader.rows([self._of_store(s, span) for span in own]))
            for s, reader in enumerate(self._readers)
        ]
        return collate([next(rows[s]) for s in sources], offset=offset, sources=sources)

    def _look_ahead(self, own: Sequence[Span]) -> None:
        for s, reader in enumerate(self._readers):
            reader.look_ahead([self._of_store(s, span) for span in own])

    def _turn(self, lane: int) -> int:
        """Where in the pattern a lane begins: evenly spread, so that a batch has each store's share."""
        return lane * self.pattern.length // self.lanes

    def _of_store(self, store: int, span: Span) -> Span:
        """The rows of a span that are of one store, in the lane of that store's own order."""
        turn = self._turn(span.lane)
        none, first, last = (
            self.pattern.before(store, turn + step)
            for step in (0, span.step, span.step + span.rows)
        )
        return Span(span.lane, first - none, last - first)


def check_alike(stores: Sequence[Store]) -> None:
    """Refuse stores whose rows cannot be laid side by side.

    Raises:
        TokenizerError: an id means different tokens in two of them.
        PairingError: they differ in vocabulary, estimator, grid or what a position predicts.
        ConfigError: one store twice, whose rows would come in one order twice.
    """
    first = stores[0]
    for i, store in enumerate(stores):
        a, b = first.identity, store.identity
        if store.digest in {s.digest for s in stores[:i]}:
            raise ConfigError(
                f"{store.path}: is in the mixture twice; give it once, with the sum of the weights"
            )
        if a.tokenizer.sha256 != b.tokenizer.sha256:
            raise TokenizerError(
                f"{store.path}: its tokenizer (sha256 {b.tokenizer.sha256[:12]}…) is not that of {first.path} (sha256 "
                f"{a.tokenizer.sha256[:12]}…), so the same id means another token; mix stores of one tokenizer"
            )
        for what, mine, other in (
            ("vocabulary", store.vocab_size, first.vocab_size),
            ("estimator", name_of(b.targets.estimator)[0], name_of(a.targets.estimator)[0]),
            ("kept set", b.targets.keeps, a.targets.keeps),
            ("temperatures", list(b.targets.temperatures), list(a.targets.temperatures)),
            ("domain", b.domain, a.domain),
            ("list of classes", b.classes, a.classes),
            (
                "width of hidden states",
                *(None if h is None else h.width for h in (b.hidden, a.hidden)),
            ),
            ("label shift", b.label_shift, a.label_shift),
            ("way to feed images", feed_of(b), feed_of(a)),
        ):
            if mine != other:
                raise PairingError(
                    f"{store.path}: its {what} is {mine!r}, that of {first.path} is {other!r}; a batch holds rows of "
                    "both: mix stores that agree in it"
                )


def feed_of(identity: Identity) -> tuple[int, list[float], list[float]] | None:
    """Size and scale of the images that a model is fed."""
    images = identity.images
    return None if images is None else (images.size, images.mean, images.std)


def parse_stores(texts: str | Sequence[str]) -> list[tuple[str, Fraction]]:
    """`PATH` or `PATH=WEIGHT` of each store; without `=` the weight is 1. A folder of that very name is a path.

    Raises:
        ConfigError: names the text.
    """
    found = []
    for text in [texts] if isinstance(texts, str) else texts:
        path, equals, weight = text.rpartition("=")
        if not equals or Path(text).exists():
            found.append((text, Fraction(1)))
            continue
        try:
            found.append((path, _exact(weight)))
        except ConfigError as e:
            raise ConfigError(
                f"--store {text!r}: no such folder, and {weight!r} is not a weight; expected PATH or PATH=WEIGHT "
                "with a number above 0, e.g. store=0.7"
            ) from e
    return found


def open_stores(
    texts: str | Sequence[str],
    *,
    vocab: str | None = None,
    inputs: str | None = None,
    images: Sequence[str] = (),
    rows: bool = True,
    cache: CacheOptions | None = None,
    demands: Sequence[Demand] | None = None,
) -> list[tuple[Store, Fraction]]:
    """The stores of `parse_stores`, open and found to go together, with their weights; all of the same `images`.

    With `rows` False none of their rows is read, and inputs and images may be elsewhere. `demands`: what each must
    be; None: anything.

    Raises:
        ConfigError, StoreError, PairingError, TokenizerError: as `MixedStream`.
    """
    parsed = parse_stores(texts)
    found = [
        (
            open_store(
                path, vocab=vocab, inputs=inputs, images=images, cache=cache, **asdict(demand)
            ),
            weight,
        )
        for (path, weight), demand in zip(parsed, demands or [Demand()] * len(parsed), strict=True)
    ]
    for store, _ in found:
        if rows:
            check_rows(store)
    check_alike([store for store, _ in found])
    return found


def mixture_digest(stores: Sequence[tuple[Store, Weight]]) -> str:
    """Names what is trained on: a store's own digest or, of several, one over their digests and their turns."""
    if len(stores) == 1:
        return stores[0][0].digest
    parts = [
        (store.digest, turns)
        for (store, _), turns in zip(stores, Pattern([w for _, w in stores]).turns, strict=True)
    ]
    return hashlib.sha256(f"softlabels mixture 1\n{parts}".encode()).hexdigest()


def make_stream(
    stores: Store | Path | str | Sequence[tuple[Store | Path | str, Weight]], **options: Any
) -> SoftTargetStream | MixedStream:
    """The stream of one store, or of (store, weight) pairs; one pair is the store alone."""
    if isinstance(stores, Store | Path | str):
        return SoftTargetStream(stores, **options)
    if len(stores) == 1:
        _exact(stores[0][1])
        return SoftTargetStream(stores[0][0], **options)
    return MixedStream(stores, **options)
