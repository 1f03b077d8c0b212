"""`hidden:DIR?head=MODEL`: last hidden states that were made elsewhere, and the model's own norm and head.

    hidden:DIR?head=MODEL            a folder that `softlabels states` wrote, or one of state files (`state_files.py`)
    hidden:DIR?head=MODEL&norm=yes   states from before the final norm, which is applied here

Either kind says in which dtype the body computed; the head has that of the states. Rows that it holds no states of
are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import msgspec
from torch import Tensor

from softlabels.core.registry import name_of, without_folder
from softlabels.core.rows import Row
from softlabels.errors import ConfigError, TeacherError, TokenizerError
from softlabels.store.states import RECORD, TeacherStates
from softlabels.teachers import TeacherOptions, causal_only
from softlabels.teachers.bodiless import NORM, BodilessTeacher
from softlabels.teachers.state_files import StateFiles


class States(Protocol):
    """Where states lie."""

    @property
    def dtype(self) -> str:
        """`float32`, `bfloat16`, …: of them."""

    @property
    def engine(self) -> str:
        """What made them, for a record."""

    def given(self, rows: Sequence[Row], *, where: str) -> Iterator[Tensor]:
        """`[n, D]`: at the positions of all rows, in order, some at a time."""


class HiddenTeacher(BodilessTeacher):
    """States of a folder, and a head.

    Raises:
        ConfigError: a malformed argument, or a dtype that is not the states'.
        TeacherError: no such model, or states of another one.
        FormatError, IntegrityError: the folder holds no states, or they are damaged.
    """

    def __init__(self, argument: str, options: TeacherOptions) -> None:
        path, written = name_of(argument)
        extra = {"norm": "no", **dict(written)}
        if set(extra) != {"head", "norm"} or extra["norm"] not in NORM or not extra["head"]:
            raise ConfigError(
                f"--teacher hidden:{argument}: expected hidden:FOLDER?head=MODEL, and &norm=yes if the states are from "
                "before the final norm"
            )
        spec = without_folder(f"hidden:{path}")
        causal_only(options, spec)
        folder = Path(path)
        own = (folder / RECORD).exists()
        self._states: States = _Written(folder) if own else StateFiles(folder)
        if options.dtype not in ("auto", self._states.dtype):
            raise ConfigError(
                f"--dtype {options.dtype}: the states of hidden:{path} are in {self._states.dtype}; leave it out"
            )
        super().__init__(
            extra["head"], replace(options, dtype=self._states.dtype), norm=NORM[extra["norm"]]
        )
        if isinstance(self._states, _Written):
            self._states.check(self, path)
        self.record = msgspec.structs.replace(
            self.record, spec=spec, engine=self._states.engine, parameters=0
        )

    def given(self, rows: Sequence[Row]) -> Iterator[Tensor]:
        """As the folder has them."""
        return self._states.given(rows, where=self.record.spec)


class _Written:
    """What `softlabels states` wrote: found by the digests of rows."""

    def __init__(self, folder: Path) -> None:
        self._states = TeacherStates(folder)
        record = self._states.record
        self.dtype = record.teacher.dtype
        self.engine = f"states of {record.teacher.engine}"

    def given(self, rows: Sequence[Row], *, where: str) -> Iterator[Tensor]:
        """Of one row at a time."""
        for row in rows:
            yield self._states.of([row.digest()], [row.n], where=where)

    def check(self, head: BodilessTeacher, path: str) -> None:
        """Refuse the head of another model than the states are of."""
        record, own = self._states.record, head.record
        if record.teacher.weights_sha256 != own.weights_sha256:
            raise TeacherError(
                f"hidden:{path}: its states are of {record.teacher.name}, weights sha256 "
                f"{record.teacher.weights_sha256[:12]}…; head= gives {own.name}, {own.weights_sha256[:12]}…; give the "
                "model that they are of"
            )
        if record.tokenizer_sha256 != head.tokenizer.record.sha256:
            raise TokenizerError(
                f"hidden:{path}: its states are of rows of the tokenizer {record.tokenizer_sha256[:12]}…; head= has "
                f"{head.tokenizer.record.sha256[:12]}…; give the folder with the same tokenizer"
            )
