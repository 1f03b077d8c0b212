"""Domains: what a row is, which columns hold it, and what it must obey.

A domain is a folder here:

    __init__.py    `DOMAIN`: rows and their columns, which builder and trainer share
    corpus.py      `MAKER`: how a build makes rows of documents (`maker.py`)
    teacher.py     how a model of transformers teaches them, if one does

and, on the trainers' side, a file of the same name in `trainers/domains/`. Another package registers its own as an
entry point of the group, the folder's `DOMAIN`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from softlabels.core.registry import Registry
from softlabels.core.rows import InputRow
from softlabels.format.columns import Column, Expected, cut, offsets_of

if TYPE_CHECKING:
    from softlabels.format.identity import Identity


class Domain(ABC):
    """One domain. What a row is called in its columns is what it is called in the row."""

    name: ClassVar[str]
    """As a store's identity spells it."""
    label_shift: ClassVar[int] = 0
    """How many tokens after its position a label lies."""
    lists: ClassVar[tuple[tuple[str, npt.DTypeLike], ...]] = ()
    """Columns with a list a row: name and type. No list has more than `seq_len` entries."""
    numbers: ClassVar[tuple[tuple[str, npt.DTypeLike], ...]] = ()
    """Columns with a number a row; None is held as 0."""
    digest_bytes: ClassVar[int] = 16
    """Of a row's input digest that a file holds."""
    packed_digest_bytes: ClassVar[int] = 16
    """The same in the profile `packed`."""
    classified: ClassVar[bool] = False
    """Whether the ids of its targets are classes; else they are tokens."""
    chained: ClassVar[bool] = False
    """Whether rows are a causal LM's, `softlabels.core.rows.Row`: tokens of the teacher's vocabulary, each predicting
    the next. `packed` codes them like kept ids, and another vocabulary may be read into them."""
    student: ClassVar[str] = "--student new:10M"
    """Flags of `softtrain run` that make a student of any of its stores."""
    transformers: ClassVar[str | None] = None
    """The class of transformers that loads its models."""

    @abstractmethod
    def rows_of(
        self, columns: Mapping[str, Column], identity: Identity, *, where: str
    ) -> Sequence[InputRow]:
        """The rows of some columns, which are of the expected types but may hold anything; undoes `columns`.

        Raises:
            IntegrityError: lists whose lengths do not fit together.
        """

    @abstractmethod
    def check(self, row: Any, identity: Identity, *, where: str) -> None:
        """Refuse a row that contradicts itself, or the identity.

        Raises:
            IntegrityError: names `where` and the contradiction.
        """

    def columns(self, rows: Sequence[Any]) -> dict[str, Column]:
        """What is stored of rows, besides their numbers and digests."""
        lists = {n: _listed([getattr(r, n) for r in rows], t) for n, t in self.lists}
        return lists | {
            n: Column(values=np.array([getattr(r, n) or 0 for r in rows], t))
            for n, t in self.numbers
        }

    def expected(self, identity: Identity, rows: int | None) -> dict[str, Expected]:
        """What these columns must be, of so many rows (None: not known)."""
        tokens = None if rows is None else rows * identity.corpus.seq_len
        lists = {n: Expected(dtype=np.dtype(t), most=tokens) for n, t in self.lists}
        return lists | {
            n: Expected(dtype=np.dtype(t), listed=False, most=rows) for n, t in self.numbers
        }

    def records(self, columns: Mapping[str, Column]) -> Iterator[dict[str, Any]]:
        """What the columns hold of each row, by name."""
        parts = [_lists_of(columns[n]) for n, _ in self.lists]
        parts += [columns[n].values.tolist() for n, _ in self.numbers]
        names = [n for n, _ in (*self.lists, *self.numbers)]
        return (dict(zip(names, values, strict=True)) for values in zip(*parts, strict=True))

    @property
    def maker(self) -> Any:
        """How its rows are made (`maker.RowMaker`), which only a build has to know: imported when it is asked for."""
        return import_module(f"{type(self).__module__}.corpus").MAKER


def _listed(arrays: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> Column:
    values = np.concatenate(arrays).astype(dtype, copy=False)
    return Column(values=values, offsets=offsets_of([len(a) for a in arrays]))


def _lists_of(column: Column) -> list[npt.NDArray[Any]]:
    assert column.offsets is not None
    return cut(column.values, column.offsets)


BUILT_IN = (
    "causal-lm",
    "masked-lm",
    "sequence-classification",
    "token-classification",
    "image-classification",
    "seq2seq",
)
"""Each in a folder of its name, with `_` for `-`."""

DOMAINS: Registry[Domain] = Registry(
    "softlabels.domains", {n: f"{__name__}.{n.replace('-', '_')}:DOMAIN" for n in BUILT_IN}
)
