"""Another vocabulary over a store, when it is read: fewer ids, or other numbers for them.

    trim:N            ids below N, as they are: without the padding rows of a teacher's head
    map:FILE          FILE says of each id of the store its new id, or -1 to drop it
    map:FILE?size=M   the same, for a vocabulary of M ids (default: the largest new id, and one)

The target becomes the teacher's distribution on condition that an id of the view comes. Dropped ids leave
the kept set, the rest of it and the tail share their mass: with s_T = log(remaining kept mass / kept mass)
at T, which needs the gaps alone, the tail's log-odds become lambda_T - s_T, exactly. What is dropped is
counted at each T. What cannot be known is how much of the *tail* lies on dropped ids: it stays in the
tail. For a view that drops padding rows, which have next to no mass, that is next to nothing.

The summary of a position stays the teacher's own, over its whole vocabulary; a likeliest id that is dropped is not
known any more.

The weights of a sample are renormalised. Of weights that are renormalised only the ratio is an estimate, so they
are as good as unbiased where little is dropped, and not otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.core.registry import split_spec
from softlabels.core.rows import Row
from softlabels.core.summary import UNKNOWN, Summary
from softlabels.core.targets import SoftTargets
from softlabels.errors import ConfigError, PairingError

Int32 = npt.NDArray[np.int32]
LARGEST = 2**31
"""No vocabulary is larger: ids are int32."""
_SIZE = "?size="


@dataclass(frozen=True, kw_only=True, eq=False)
class Dropped:
    """The mass of kept ids that a view dropped, over some positions."""

    temperatures: tuple[float, ...]
    """G: the grid."""
    positions: int
    """Those that had a soft target."""
    emptied: int
    """Of them, those that kept no id, and became hard-label only."""
    mass: npt.NDArray[np.float64]
    """`[G]`: sum over positions of the dropped share of the teacher's mass."""
    largest: npt.NDArray[np.float64]
    """`[G]`: the largest of any position; 0 without any."""
    renormalised: bool
    """Whether the targets are weights of a sample."""

    @staticmethod
    def total(parts: Iterable[Dropped]) -> Dropped | None:
        """Over the positions of all parts, which are of one store; None without parts."""
        every = list(parts)
        if not every:
            return None
        return replace(
            every[0],
            positions=sum(d.positions for d in every),
            emptied=sum(d.emptied for d in every),
            mass=np.sum([d.mass for d in every], axis=0),
            largest=np.max([d.largest for d in every], axis=0),
        )

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """`[G]`: mean over positions of the dropped share."""
        return self.mass / max(self.positions, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "temperatures": list(self.temperatures),
            "positions": self.positions,
            "emptied": self.emptied,
            "mean": self.mean.tolist(),
            "largest": self.largest.tolist(),
            "renormalised": self.renormalised,
        }

    def __str__(self) -> str:
        """For people."""
        each = ", ".join(
            f"{m:.2g} of the mass at T={t:g} (at most {x:.2g})"
            for t, m, x in zip(self.temperatures, self.mean, self.largest, strict=True)
        )
        text = f"dropped {each}, mean over {self.positions:,} soft positions"
        if self.emptied:
            text += f"; {self.emptied:,} kept no id and became hard-label only"
        if self.renormalised and self.mass.any():
            text += "; the weights of the sample that remain were renormalised"
        return text


@dataclass(frozen=True, kw_only=True, eq=False)
class VocabView:
    """A vocabulary of M ids over a store's V. Make one with `trim`, `mapping` or `parse`."""

    spec: str
    """As it was named, without folders."""
    source_size: int
    """V."""
    size: int
    """M."""
    table: Int32 | None
    """`[V] int32`: the new id, or -1; None: ids below M, as they are."""

    # -- making -----------------------------------------------------------------------------------

    @staticmethod
    def trim(size: int, vocab_size: int) -> VocabView:
        """The ids below `size`, of V = `vocab_size`; `ConfigError` unless it is 1 to V."""
        if not 1 <= size <= vocab_size:
            raise ConfigError(
                f"--vocab trim:{size}: the store's vocabulary has {vocab_size} ids; expected 1 to {vocab_size}"
            )
        return VocabView(spec=f"trim:{size}", source_size=vocab_size, size=size, table=None)

    @staticmethod
    def mapping(
        table: npt.NDArray[Any], vocab_size: int, *, size: int | None = None, spec: str = "map"
    ) -> VocabView:
        """New ids by table, of which a wrong one is a `ConfigError`.

        Args:
            table: `[V]` integers: the new id of each id, different ones, or -1.
            size: M; None: the largest new id, and one.
        """
        where = f"--vocab {spec}"
        if table.ndim != 1 or len(table) != vocab_size:
            raise ConfigError(
                f"{where}: has the shape {list(table.shape)}, expected one entry for each of the store's "
                f"{vocab_size} ids"
            )
        if table.dtype.kind not in "iu":
            raise ConfigError(f"{where}: holds {table.dtype}, expected whole numbers")
        wrong = np.flatnonzero(
            (table >= LARGEST) | ((table < -1) if table.dtype.kind == "i" else False)
        )
        if len(wrong):
            raise ConfigError(
                f"{where}: id {wrong[0]} becomes {table[wrong[0]]}; expected -1 (dropped) to {LARGEST - 1}"
            )
        kept = np.flatnonzero(table.astype(np.int64) >= 0)
        if len(kept) == 0:
            raise ConfigError(f"{where}: drops every id")
        new = table[kept].astype(np.int64)
        order = np.argsort(new, kind="stable")
        twice = np.flatnonzero(np.diff(new[order]) == 0)
        if len(twice):
            a, b = kept[order[twice[0]]], kept[order[twice[0] + 1]]
            raise ConfigError(
                f"{where}: ids {a} and {b} both become {table[a]}; each must become another, or -1"
            )
        least = int(new.max()) + 1
        if size is not None and not least <= size <= LARGEST:
            raise ConfigError(
                f"{where}: size={size}, but the largest new id is {least - 1}; expected {least} to {LARGEST}"
            )
        return VocabView(
            spec=spec,
            source_size=vocab_size,
            size=size or least,
            table=np.ascontiguousarray(table, np.int32),
        )

    @staticmethod
    def parse(text: str, vocab_size: int) -> VocabView:
        """From `trim:N` or `map:FILE`, for a store of V = `vocab_size`; `ConfigError` if it does not fit that."""
        name, argument = split_spec(text, flag="--vocab", example="trim:32000")
        if name == "trim":
            if not (argument.isascii() and argument.isdigit()):
                raise ConfigError(f"--vocab {text}: expected trim:N, N a number of ids")
            return VocabView.trim(int(argument), vocab_size)
        if name != "map":
            raise ConfigError(f"--vocab {text!r}: expected trim:N or map:FILE")
        file, size = _file_and_size(argument)
        given = size.removeprefix(_SIZE)
        if "?" in PurePath(file).name or (size and not (given.isascii() and given.isdigit())):
            raise ConfigError(f"--vocab {text}: expected map:FILE or map:FILE?size=M")
        spec = f"map:{PurePath(file).name}{size}"
        table = _read_table(Path(file), text)
        return VocabView.mapping(table, vocab_size, size=int(given) if size else None, spec=spec)

    @staticmethod
    def anywhere(text: str) -> str:
        """A spec that means the same to processes that work in another folder."""
        name, argument = split_spec(text, flag="--vocab", example="trim:32000")
        file, size = _file_and_size(argument)
        return f"map:{Path(file).absolute()}{size}" if name == "map" else text

    @property
    def table_sha256(self) -> str | None:
        """Names the renumbering; None where ids stay as they are."""
        if self.table is None:
            return None
        return hashlib.sha256(self.table.astype("<i4").tobytes()).hexdigest()

    # -- using ------------------------------------------------------------------------------------

    def ids(self, ids: npt.NDArray[np.integer[Any]]) -> Int32:
        """New ids, of the shape of `ids`, int32; -1 where the view drops one."""
        if self.table is None:
            return np.where(ids < self.size, ids, -1).astype(np.int32)
        return np.asarray(self.table[ids])

    def row(self, row: Row, *, where: str) -> Row:
        """The row in the view's ids, which has not the store's digest; `PairingError` names a token that is dropped."""
        ids = self.ids(row.input_ids)
        gone = np.flatnonzero(ids < 0)
        if len(gone):
            raise PairingError(
                f"{where}, token {gone[0]}: id {row.input_ids[gone[0]]} is not in the vocabulary of --vocab "
                f"{self.spec}, so no student of it can be fed this row; choose a view that keeps the id, or build a "
                "store of text without it"
            )
        return replace(row, input_ids=ids)

    def targets(self, t: SoftTargets) -> tuple[SoftTargets, Dropped]:
        """The targets on condition that an id of the view comes, and what was dropped of them."""
        new = self.ids(t.ids)
        stays = t.kept & (new >= 0)
        had = t.soft
        mass = [t.probs(x).astype(np.float64) for x in t.temperatures]
        lost = np.array([np.where(stays, 0.0, p).sum(axis=1) for p in mass], np.float64).reshape(
            len(t.temperatures), t.n
        )
        soft = np.asarray(stays.any(axis=1))
        dropped = Dropped(
            temperatures=t.temperatures,
            positions=int(had.sum()),
            emptied=int((had & ~soft).sum()),
            mass=lost.sum(axis=1),
            largest=lost.max(axis=1, initial=0.0),
            renormalised=t.keeps.sample,
        )
        return self._conditional(t, new, stays, soft), dropped

    def _conditional(
        self, t: SoftTargets, new: Int32, stays: npt.NDArray[np.bool_], soft: npt.NDArray[np.bool_]
    ) -> SoftTargets:
        gaps = np.where(stays, t.gaps, np.float32(np.inf))
        least = np.where(soft, gaps.min(axis=1, initial=np.inf), 0.0)[:, None]
        odds = t.log_odds.astype(np.float64)
        for i, temperature in enumerate(t.temperatures):  # of a sample it is -inf, and stays so
            before = np.exp(-t.gaps.astype(np.float64) / temperature).sum(axis=1)
            after = np.exp(-(gaps - least.astype(np.float64)) / temperature).sum(axis=1)
            share = np.log(after[soft]) - least[soft, 0] / temperature - np.log(before[soft])
            odds[soft, i] -= share
        odds[~soft] = np.inf
        # Kept ids to the front, in their order: padding repeats the first.
        k = int(stays.sum(axis=1).max(initial=0))
        order = np.argsort(~stays, axis=1, kind="stable")[:, :k]
        gaps = np.take_along_axis((gaps - least).astype(np.float32), order, axis=1)
        ids = np.take_along_axis(new, order, axis=1)
        first = np.where(soft[:, None], ids[:, :1], 0)
        return replace(
            t,
            ids=np.where(np.isfinite(gaps), ids, first).astype(np.int32),
            gaps=gaps,
            log_odds=odds.astype(np.float32),
            vocab_size=self.size,
            summary=None if t.summary is None else self._summary(t.summary),
        )

    def _summary(self, s: Summary) -> Summary:
        """The teacher's own, over its whole vocabulary: what lies on dropped ids is not known. Only ids change."""
        top = np.where(s.top == UNKNOWN, UNKNOWN, self.ids(np.maximum(s.top, 0)))
        return replace(s, top=top.astype(np.int32))


def _file_and_size(argument: str) -> tuple[str, str]:
    """FILE, and `?size=M` or nothing; of a folder's name a `?` is a part."""
    folder, slash, last = argument.rpartition("/")
    name, mark, size = last.rpartition(_SIZE)
    return (f"{folder}{slash}{name}", mark + size) if mark else (argument, "")


def _read_table(path: Path, text: str) -> npt.NDArray[Any]:
    """What FILE holds: a JSON list, or a NumPy array if it ends in .npy."""
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        values = json.loads(path.read_text(encoding="utf-8"))
        return np.asarray(values)
    except (OSError, ValueError, OverflowError, EOFError) as e:
        raise ConfigError(
            f"--vocab {text}: cannot be read as a JSON list or .npy array of new ids ({e})"
        ) from e
