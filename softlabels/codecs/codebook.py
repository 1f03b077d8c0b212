"""Ids as ranks: the more usual an id is in its place, the smaller the number that stands for it.

A codebook has one order of ids for all places, the most frequent first, and for some input tokens a table
of their own: the ids that a teacher keeps after that very token. The reader of a store knows the input
tokens, so an id is written as its place in the token's table, or, if it isn't there, as the table's size
plus its place in the common order, or, if it isn't there either, plus the id itself. Decoding is one
gather.

Two kinds are made (`training.py`): from a shard's own ids, an order without tables, written into the
shard; and from other shards, with tables, written once beside them: a dictionary.

Shapes: N positions, K kept ids, U ids in the order, E entries of all tables.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.codecs.streams import Stream, join, pack, split, unpack
from softlabels.errors import IntegrityError

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]

MAGIC = b"softlabels dictionary 1"
DICTIONARY_LIMIT = 32 * 2**20
"""Bytes of a dictionary's file."""
CLASS_LIMIT = 128
ENTRY_LIMIT = 2**24
"""Entries of all tables, and ids in the order: 64 MiB of memory each."""
ENTRIES_ALWAYS, ENTRIES_PER_BYTE = 2**22, 64
"""A stream of more entries than the first has at most so many for each of its bytes: 300 bytes of equal numbers would
otherwise take 700 MB."""
SCRATCH = 2**19
"""Places that `encode` looks up at a time."""
SPELLED = 2**18
"""Up to this V ids that have no place in the order are looked up like others."""
DENSE_VOCAB = 2**24
"""Up to this V the place of an id in the order is looked up in an array of V numbers."""
TABLE_LIMIT = 2**15 - 1
"""Ids of one table."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Codebook:
    """An order of ids, and tables of the ids that follow certain tokens."""

    order: Int32
    """`[U] int32`: ids by class of like frequency, the most frequent first; in a class they ascend."""
    classes: Int32
    """How many ids each class has; sums to U."""
    tokens: Int32 = field(default_factory=lambda: np.zeros(0, np.int32))
    """`[M] int32`, ascending: the input tokens that have a table."""
    sizes: Int32 = field(default_factory=lambda: np.zeros(0, np.int32))
    """`[M] int32`: ids in each table."""
    entries: Int32 = field(default_factory=lambda: np.zeros(0, np.int32))
    """`[E] int32`: the tables one after the other, as places in `order`."""
    vocab_size: int = 0
    """V, if it is known: decoding is faster then."""
    sha256: str | None = None
    """Of the file that it was read from; None: it is part of a shard."""

    # -- ids and codes ----------------------------------------------------------------------------

    def encode(self, tokens: Int32, ids: Int32) -> UInt32:
        """Codes `[N, K] uint32` of `ids [N, K]` after the input tokens `[N]`, which ascend."""
        ranks = self.ranks_of(ids)
        tables, sizes = self._tables_of(tokens)
        rows = np.flatnonzero(tables >= 0)
        if len(rows) == 0:
            return ranks
        tables, all_ranks = tables[rows], ranks
        ranks = ranks if len(rows) == len(tokens) else ranks[rows]
        codes = ranks + sizes[rows, None].astype(np.uint32)
        u, width = len(self.order), len(self.order) + 1
        used, first_row = np.unique(tables, return_index=True)
        first_row = np.append(first_row, len(rows))
        some = max(1, SCRATCH // width)
        # Of some tables at a time: the place of every id in each, -1 where it isn't, or isn't in the order.
        places = np.full(min(some, len(used)) * width, -1, np.int16)
        for begin in range(0, len(used), some):
            chunk = used[begin : begin + some]
            counts = self.sizes[chunk]
            entry = _ranges(self._starts[chunk], counts)
            at = np.repeat(np.arange(len(chunk), dtype=np.int64) * width, counts)
            at += self.entries[entry]
            places[at] = self._places_in_tables[entry]
            part = slice(first_row[begin], first_row[begin + len(chunk)])
            line = np.searchsorted(chunk, tables[part]) * width
            found = places.take(np.minimum(ranks[part], u) + line[:, None])
            np.copyto(codes[part], found, where=found >= 0, casting="unsafe")
            places[at] = -1
        if len(rows) == len(tokens):
            return codes
        all_ranks[rows] = codes
        return all_ranks

    def offsets(self, tokens: Int32) -> tuple[UInt32, UInt32, UInt32]:
        """For `decode`, of each of N tokens: its table's size, and what makes an index of a code.

        That is what to add to a code in the table, and to one beyond it, for a place in `_all_ids`.
        """
        tables, sizes = self._tables_of(tokens)
        inside, beyond = self._starts[np.maximum(tables, 0)], len(self.entries) - sizes
        return sizes.astype(np.uint32), inside.astype(np.uint32), beyond.astype(np.uint32)

    def decode(self, codes: UInt32, sizes: UInt32, inside: UInt32, beyond: UInt32) -> Int32:
        """Ids `[..., N] int32` of codes `[..., N] uint32` after N tokens whose `offsets` are given.

        A code that stands for nothing gives a number that is no id; whoever calls checks the range.
        """
        index = codes
        if len(self.tokens):
            index = np.where(codes < sizes, inside, beyond)
            index += codes
        known = len(self._all_ids)
        if known == 0 or int(index.max(initial=0)) >= known:  # some are spelled out
            spelled = index >= known
            ids = (index - np.uint32(len(self.entries) + len(self.order))).view(np.int32)
            ids[~spelled] = self._all_ids[index[~spelled]]
            return ids
        return self._all_ids.take(index, mode="clip")  # none is beyond: the fastest mode

    @cached_property
    def _starts(self) -> Int64:
        return np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)])

    @cached_property
    def _places_in_tables(self) -> npt.NDArray[np.int16]:
        """`[E]`: the place of each entry in its table."""
        return _ranges(np.zeros(len(self.sizes), np.int64), self.sizes).astype(np.int16)

    @cached_property
    def _all_ids(self) -> Int32:
        literal = np.arange(self.vocab_size if self.vocab_size <= SPELLED else 0, dtype=np.int32)
        return np.concatenate([self.order[self.entries], self.order, literal])

    def _tables_of(self, tokens: Int32) -> tuple[Int64, Int64]:
        """Which table each token has, -1 for none, and its size."""
        if not len(self.tokens):
            return np.full(len(tokens), -1, np.int64), np.zeros(len(tokens), np.int64)
        at = np.minimum(np.searchsorted(self.tokens, tokens), len(self.tokens) - 1)
        has = self.tokens[at] == tokens
        return np.where(has, at, -1), np.where(has, self.sizes[at], 0).astype(np.int64)

    def ranks_of(self, ids: Int32) -> UInt32:
        """Places in the order; U + id where it isn't there."""
        u = len(self.order)
        if u == 0:
            return ids.astype(np.uint32)
        if (inverse := self._inverse) is not None:
            try:
                return inverse.take(ids)
            except IndexError:  # ids beyond the largest of the order
                beyond = ids.astype(np.uint32) + np.uint32(u)
                return np.where(ids < len(inverse), inverse.take(ids, mode="clip"), beyond)
        sorter = np.argsort(self.order)
        at = np.minimum(np.searchsorted(self.order, ids, sorter=sorter), u - 1)
        rank = sorter[at]
        known = self.order[rank] == ids
        return np.where(known, rank, u + ids.astype(np.int64)).astype(np.uint32)

    @cached_property
    def _inverse(self) -> UInt32 | None:
        """What `ranks_of` says of every id up to the largest in the order."""
        top = int(self.order.max()) + 1
        if top > DENSE_VOCAB:
            return None
        inverse = np.arange(top, dtype=np.uint32) + np.uint32(len(self.order))
        inverse[self.order] = np.arange(len(self.order), dtype=np.uint32)
        return inverse

    @classmethod
    def empty(cls) -> Codebook:
        """One that knows no id: what is published where a dictionary does not pay."""
        return cls(order=np.zeros(0, np.int32), classes=np.zeros(0, np.int32))

    # -- as bytes ---------------------------------------------------------------------------------

    def order_streams(self) -> dict[str, Stream]:
        """The order as the streams `order_classes` and `order`: in a class, the steps between ids."""
        steps = np.diff(self.order.astype(np.int64), prepend=0)
        starts = class_starts(self.classes)
        steps[starts] = self.order[starts]
        return {
            "order_classes": pack(self.classes.astype(np.uint32)),
            "order": pack(steps.astype(np.uint32)),
        }

    @classmethod
    def from_order_streams(
        cls, streams: Mapping[str, Stream], *, vocab_size: int, where: str
    ) -> Codebook:
        """A codebook without tables; `IntegrityError` if it is no order of distinct ids of the vocabulary."""
        classes = read_numbers(streams, "order_classes", CLASS_LIMIT, where)
        steps = _table_numbers(streams, "order", vocab_size, where)
        if int(classes.sum(dtype=np.int64)) != len(steps) or (len(classes) and classes.min() == 0):
            raise IntegrityError(f"{where}: the classes of its order do not add up")
        starts = class_starts(classes)
        if len(steps) - np.count_nonzero(steps) > np.count_nonzero(steps[starts] == 0):
            raise IntegrityError(f"{where}: its order holds an id twice")  # a step of 0 in a class
        order = np.cumsum(steps, dtype=np.int64)
        before = order[starts] - steps[starts]  # what came before each class does not count
        for start, size, less in zip(starts, classes.astype(np.int64), before, strict=True):
            order[start : start + size] -= less
        if len(order) and int(order.max()) >= vocab_size:
            raise IntegrityError(f"{where}: its order holds ids outside 0..{vocab_size - 1}")
        ids = order.astype(np.int32)
        del order
        if not _distinct(ids, vocab_size):
            raise IntegrityError(f"{where}: its order holds an id twice")
        return cls(order=ids, classes=classes.astype(np.int32), vocab_size=vocab_size)

    def to_bytes(self) -> bytes:
        """A dictionary's file."""
        streams = {
            **self.order_streams(),
            "tokens": pack(np.diff(self.tokens, prepend=0).astype(np.uint32)),
            "sizes": pack(self.sizes.astype(np.uint32)),
            "entries": pack(self.entries.astype(np.uint32)),
        }
        return join(MAGIC, {}, streams)

    @classmethod
    def from_bytes(cls, data: bytes, *, vocab_size: int, where: str) -> Codebook:
        """Read a dictionary's file; `IntegrityError` if it contradicts itself, or is of another vocabulary."""
        if len(data) > DICTIONARY_LIMIT:
            raise IntegrityError(
                f"{where}: {len(data)} bytes, more than the {DICTIONARY_LIMIT} of a dictionary"
            )
        _, streams = split(MAGIC, data, where=where)
        plain = cls.from_order_streams(streams, vocab_size=vocab_size, where=where)
        steps = _table_numbers(streams, "tokens", vocab_size, where)
        sizes = _table_numbers(streams, "sizes", len(steps), where)
        entries = _table_numbers(streams, "entries", ENTRY_LIMIT, where)
        tokens = np.cumsum(steps, dtype=np.int64)
        if len(sizes) != len(tokens) or int(sizes.sum(dtype=np.int64)) != len(entries):
            raise IntegrityError(f"{where}: its tables do not add up")
        if len(tokens) and (int(tokens[-1]) >= vocab_size or (steps[1:] == 0).any()):
            raise IntegrityError(f"{where}: tables of tokens outside 0..{vocab_size - 1}, or twice")
        if len(sizes) and int(sizes.max()) > TABLE_LIMIT:
            raise IntegrityError(f"{where}: a table of {sizes.max()} ids, at most {TABLE_LIMIT}")
        if len(entries) and int(entries.max()) >= len(plain.order):
            raise IntegrityError(f"{where}: a table names an id that has no place in the order")
        if _any_twice(sizes.astype(np.int64), entries):
            raise IntegrityError(f"{where}: a table names an id twice")
        return replace(
            plain,
            tokens=tokens.astype(np.int32),
            sizes=sizes.astype(np.int32),
            entries=entries.astype(np.int32),
            sha256=hashlib.sha256(data).hexdigest(),
        )


def _table_numbers(streams: Mapping[str, Stream], name: str, most: int, where: str) -> UInt32:
    """What an order or table holds: no more than the limits above."""
    size = len(streams[name].data) if name in streams else 0
    most = min(most, ENTRY_LIMIT, max(ENTRIES_ALWAYS, ENTRIES_PER_BYTE * size))
    return read_numbers(streams, name, most, where)


def read_numbers(streams: Mapping[str, Stream], name: str, most: int, where: str) -> UInt32:
    """A stream of at most so many `uint32`; `IntegrityError` if it is missing, longer, or cannot be decoded."""
    stream = streams.get(name)
    if stream is None or stream.entries > most:
        raise IntegrityError(
            f"{where}: stream {name!r} is missing, or declares more than {most} entries; not decoded"
        )
    out = np.empty(stream.entries, np.uint32)
    unpack(stream, out, where=f"{where}: stream {name!r}")
    return out


def _ranges(starts: Int64, counts: npt.NDArray[Any]) -> Int64:
    """`starts[i]` to `starts[i] + counts[i] - 1`, one range after the other."""
    ends = np.cumsum(counts, dtype=np.int64)
    each: Int64 = np.repeat(starts - ends + counts, counts)
    return each + np.arange(len(each))


def _distinct(ids: Int32, vocab_size: int) -> bool:
    if vocab_size <= DENSE_VOCAB:
        seen = np.zeros(vocab_size, bool)
        seen[ids] = True
        return int(seen.sum()) == len(ids)
    ascending = np.sort(ids)  # not np.unique, which takes half a minute for 16 million
    return not bool((ascending[1:] == ascending[:-1]).any())


def _any_twice(sizes: Int64, entries: UInt32) -> bool:
    """Whether a table has an entry twice; looks at about a million entries at a time."""
    ends = np.cumsum(sizes)
    begin = at = 0
    while at < len(entries):
        stop = max(int(np.searchsorted(ends, at + 2**20, side="right")), begin + 1)
        line = np.repeat(np.arange(stop - begin), sizes[begin:stop])
        pairs = (line << 32) + entries[at : int(ends[stop - 1])]
        pairs.sort()
        if (pairs[1:] == pairs[:-1]).any():
            return True
        begin, at = stop, int(ends[stop - 1])
    return False


def class_starts(classes: npt.NDArray[Any]) -> Int64:
    """Where each class begins in the order."""
    starts: Int64 = np.cumsum(classes, dtype=np.int64) - classes
    return starts
