"""The dictionary of a packed store: given, or trained on the store's own first shards.

The flow, if it is trained:
 1. the plan says how many of the first shards are coded without (`dictionary_shards`): 200,000 positions,
    if the corpus holds as many again;
 2. when they are committed, by whichever builders, any builder trains on four fifths of their rows, codes
    the last fifth with it and without, and so knows what it saves on the shards to come;
 3. it publishes the one that makes the store smallest, or, if none pays, an empty one; of several
    builders' one is in force;
 4. all other shards are coded with it.

No builder keeps anything for this: what is needed is read from the committed shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from softlabels.codecs.codebook import Codebook
from softlabels.codecs.training import LARGEST_TABLE, train
from softlabels.core.durable import publish
from softlabels.core.inside import inside
from softlabels.core.progress import Reporter
from softlabels.core.records import read_file
from softlabels.errors import ConfigError, IntegrityError
from softlabels.format.dictionaries import DICTIONARY, Dictionaries
from softlabels.format.encoding import decode_shard, encode_shard
from softlabels.format.identity import Identity
from softlabels.format.manifest import Plan, Statistics
from softlabels.format.shard import Reading, Shard, joined, take
from softlabels.format.shard_records import PlannedShard
from softlabels.making.commit import committed

POSITIONS = 200_000
IDS = 2**25
"""Positions that a dictionary is trained on, and kept ids, at most."""
TABLES = (LARGEST_TABLE, LARGEST_TABLE // 4, LARGEST_TABLE // 16)
"""Sizes of its tables that are tried."""


def enough(k: int) -> int:
    """Positions to train on, where k ids are kept of each."""
    return min(POSITIONS, max(IDS // k, 1))


def first_shards(shards: Sequence[PlannedShard], k: int) -> int | None:
    """How many shards a dictionary is trained on; None: too few would be left to profit by it."""
    total = sum(s.positions for s in shards)
    seen = 0
    for i, shard in enumerate(shards):
        seen += shard.positions
        if seen >= enough(k):
            return i + 1 if total - seen >= seen else None
    return None


def given_dictionary(path: str, vocab_size: int) -> bytes:
    """The file that `--dictionary` names: a dictionary, or a store that has one.

    Raises:
        ConfigError: there is none.
        IntegrityError: it is damaged, or of a smaller vocabulary.
    """
    file = Path(path) / DICTIONARY if Path(path).is_dir() else Path(path)
    try:
        data = read_file(file)
    except OSError as e:
        if isinstance(e, IntegrityError):
            raise
        raise ConfigError(
            f"--dictionary {path}: no dictionary there ({e.strerror or e}); give a packed store that has one, its "
            f"{DICTIONARY}, 'auto' or 'none'"
        ) from e
    Codebook.from_bytes(data, vocab_size=vocab_size, where=str(file))
    return data


class ShardDictionary:
    """Which dictionary a shard is coded with, and, when its time has come, the making of it."""

    def __init__(self, store: Path, plan: Plan) -> None:
        self._store, self._plan = store, plan
        self._any = plan.identity.encoding.dictionary_shards is not None
        self.first = plan.identity.encoding.dictionary_shards or 0
        """So many shards are coded without, and must be committed before any other is begun."""
        self._vocab_size = plan.identity.teacher.vocab_size
        self.find = Dictionaries(store, self._vocab_size)
        self._book: Codebook | None = None

    def of(self, shard: PlannedShard) -> Codebook | None:
        """The dictionary of a shard; None: it is coded without.

        Raises:
            IntegrityError: it is damaged, or not there.
        """
        if not self._any or shard.index < self.first:
            return None
        if self._book is None:
            path = self._store / DICTIONARY
            try:
                data = read_file(path)
            except FileNotFoundError as e:
                raise IntegrityError(
                    f"{path}: missing; shard {shard.index} is coded with it: make the first {self.first} shards first"
                ) from e
            self._book = Codebook.from_bytes(data, vocab_size=self._vocab_size, where=str(path))
        return self._book if len(self._book.order) else None

    def train(self, shard: PlannedShard, report: Reporter) -> None:
        """Train and publish the dictionary of a shard, if it is still to be made.

        Raises:
            StoreError: a shard that it would be trained on is damaged.
        """
        path = self._store / DICTIONARY
        if self._any and shard.index >= self.first and not path.exists():
            publish(inside(self._store, DICTIONARY), self._trained(report))

    def _trained(self, report: Reporter) -> bytes:
        """The dictionary, from the shards that are there."""
        identity = self._plan.identity
        assert self.first, "a dictionary that was given is published with the plan"
        report.notice(f"training a dictionary on the first {self.first} shards")
        shards = [self._read(shard) for shard in self._plan.shards[: self.first]]
        left = identity.corpus.positions - sum(s.targets.n for s in shards)
        return trained(shards, identity, report, left=left).to_bytes()

    def _read(self, shard: PlannedShard) -> Shard:
        path = self._store / shard.name
        if committed(self._store, self._plan, shard) is None:
            raise IntegrityError(
                f"{path}: its commit record is gone; run the same build again to make the shard again"
            )
        reading = Reading.of(shard, self._plan.identity, where=str(path))
        return decode_shard(read_file(path), reading)


def trained(
    shards: Sequence[Shard], identity: Identity, report: Reporter, *, left: int
) -> Codebook:
    """A dictionary trained on the first shards of a store, or the empty one, if none would pay for `left` positions."""

    def bytes_each(shard: Shard, book: Codebook | None) -> float:
        nothing = Statistics(kept_ids=0, kept_mass=[], teacher_nll=None)
        return len(encode_shard(shard, identity, nothing, dictionary=book)) / max(
            shard.targets.n, 1
        )

    places = [np.split(np.arange(len(s.rows)), [int(0.8 * len(s.rows))]) for s in shards]
    seen, test = (
        joined([take(s, p[part]) for s, p in zip(shards, places, strict=True)], 0)
        for part in (0, 1)
    )
    best, chosen = bytes_each(test, None) * left, 0
    for size in TABLES if seen.rows else ():  # of one row in each shard nothing is seen
        data = _train(seen, size).to_bytes()
        book = Codebook.from_bytes(
            data, vocab_size=identity.teacher.vocab_size, where="a dictionary"
        )
        total = bytes_each(test, book) * left + len(data)
        if total < best:
            best, chosen = total, size
    if not chosen:
        report.notice("a dictionary would not pay here; all shards are coded without")
        return Codebook.empty()
    return _train(joined(shards, 0), chosen)


def _train(shard: Shard, largest: int) -> Codebook:
    tokens = np.concatenate([r.context for r in shard.rows])
    return train(tokens, shard.targets.ids, shard.targets.kept, largest=largest)
