"""A teacher's states: what its head was given at each position of some rows, and the head; so all of its distribution.

    DIR/
      plan.json                     which job this is, written first
      states/0000000256.safetensors the rows from number 256 of the store on: `hidden [N, D]`, of each row its `digests`
                                    `[R, 16] uint8` and how many `positions` it has `[R] int32`
      head.safetensors              `weight [V, D]`, `bias [V]` where the head has one
      states.json                   size and sha256 of each file, scale and cap of the logits, the teacher; written last

Rows are found by the digest of their inputs, as in a store without inputs: a folder serves every store of its corpus,
and of any part of it, whatever the store keeps. A piece is compared with its record when it is first read from.

Numbers are those of the teacher's body, in its own dtype, so that nothing is lost; 2 or 4 bytes times D a position.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softlabels.core.folder_record import Seal, SealedRecord, compare, read_seal
from softlabels.core.linear_head import LinearHead
from softlabels.core.records import Count, Positive, Sha256
from softlabels.errors import FormatError, IntegrityError, PairingError
from softlabels.format.identity import Ids, TeacherRecord

RECORD, PLAN, HEAD, PIECES = "states.json", "plan.json", "head.safetensors", "states"
OPEN_PIECES = 64
"""Pieces that are held open, mapped into memory."""
DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class StatesRecord(SealedRecord, frozen=True, kw_only=True):
    """`states.json`."""

    domain: str
    teacher: TeacherRecord
    tokenizer_sha256: Sha256
    rows: Positive
    positions: Count
    width: Ids
    """D."""
    scale: float
    """Of the logits, before the cap."""
    softcap: float | None


STATES = Seal(
    RECORD, "softlabels-states", "1.0", StatesRecord, "take another copy of it, or make it again"
)


class TeacherStates:
    """The states of a folder, by the digests of rows. Not shared between threads.

    Args:
        folder: that `softlabels states` wrote.

    Raises:
        FormatError: not such a folder, or unfinished.
        IntegrityError: a file is missing, or not as recorded.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        try:
            self.record = read_seal(self.folder, STATES, contents=False)
        except (FileNotFoundError, NotADirectoryError) as e:
            raise FormatError(
                f"{self.folder}: holds no finished states of a teacher (no {RECORD}); write them with `softlabels "
                f"states STORE --teacher … --out {self.folder}`"
            ) from e
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._compared: set[str] = set()
        self._pieces = sorted(n for n in self.record.files if n.startswith(f"{PIECES}/"))
        names, starts, counts, piece_of = [], [], [], []
        for i, name in enumerate(self._pieces):
            digests, positions = self._index(i, name)
            names.append(digests.tobytes())
            starts.append(np.cumsum(positions) - positions)
            counts.append(positions)
            piece_of.append(np.full(len(positions), i))
        flat = np.frombuffer(b"".join(names), np.dtype("S16"))
        if len(flat) != self.record.rows:
            raise IntegrityError(
                f"{self.folder}: its pieces hold {len(flat)} rows, {RECORD} says {self.record.rows}; {STATES.remedy}"
            )
        self._order = np.argsort(flat, kind="stable")
        self._names = flat[self._order]
        self._starts, self._counts, self._piece_of = map(np.concatenate, (starts, counts, piece_of))

    @property
    def digest(self) -> str:
        """Names the content."""
        return self.record.digest

    def head(self) -> LinearHead:
        """The teacher's head, on the CPU.

        Raises:
            IntegrityError: it is not as recorded, or not a head of that teacher.
        """
        self._check(HEAD)
        with _reading(self.folder / HEAD) as file:
            found = {name: file.get_tensor(name) for name in _names(file)}
        v, d = self.record.teacher.vocab_size, self.record.width
        weight, bias = found.get("weight"), found.get("bias")
        if weight is None or weight.shape != (v, d) or (bias is not None and bias.shape != (v,)):
            shapes = {name: list(t.shape) for name, t in found.items()}
            raise IntegrityError(
                f"{self.folder / HEAD}: holds {shapes}, expected a weight [{v}, {d}]; {STATES.remedy}"
            )
        return LinearHead(weight, bias, self.record.scale, self.record.softcap)

    def of(self, digests: Sequence[bytes], counts: Sequence[int], *, where: str) -> Tensor:
        """States `[N, D]` of rows, one after the other, as the teacher's body gave them.

        Args:
            digests: of the rows' inputs.
            counts: how many positions each has.
            where: for messages: what the rows are of.

        Raises:
            PairingError: a row is not among them.
            IntegrityError: it has another number of positions, or a piece is not as recorded or not finite.
        """
        wanted = np.frombuffer(b"".join(digests), np.dtype("S16"))
        at = np.minimum(np.searchsorted(self._names, wanted), len(self._names) - 1)
        missing = np.flatnonzero(self._names[at] != wanted)
        if len(missing):
            raise PairingError(
                f"{where}: {len(missing)} of {len(digests)} rows have no states in {self.folder} (the first has the "
                f"input digest {digests[int(missing[0])].hex()}); write them of this very store: `softlabels states`"
            )
        parts = []
        for row, n in zip(self._order[at].tolist(), counts, strict=True):
            if self._counts[row] != n:
                raise IntegrityError(
                    f"{where}: a row of {n} positions has {self._counts[row]} states in {self.folder}; {STATES.remedy}"
                )
            piece, start = int(self._piece_of[row]), int(self._starts[row])
            parts.append(self._file(piece).get_slice("hidden")[start : start + n])
        found = torch.cat(parts) if parts else torch.empty(0, self.record.width)
        if not bool(found.isfinite().all()):
            raise IntegrityError(
                f"{self.folder}: a state of {where} is not finite; {STATES.remedy}"
            )
        return found

    def _index(self, i: int, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Digests `[R, 16]` and positions `[R]` of a piece, whose states are as many and as wide as they say."""
        with _reading(self.folder / name) as file:
            if {"hidden", "digests", "positions"} <= _names(file):
                digests, positions = file.get_tensor("digests"), file.get_tensor("positions")
                hidden = file.get_slice("hidden")
                shape, kind = hidden.get_shape(), hidden.get_dtype()
                if (
                    digests.dtype == torch.uint8
                    and digests.shape == (len(positions), 16)
                    and positions.dtype == torch.int32
                    and positions.dim() == 1
                    and bool((positions >= 0).all())
                    and shape == [int(positions.sum(dtype=torch.int64)), self.record.width]
                    and kind in DTYPES
                ):
                    return digests.numpy(), positions.numpy().astype(np.int64)
        raise IntegrityError(
            f"{self.folder / name}: is no piece of states of width {self.record.width}; {STATES.remedy}"
        )

    def _file(self, piece: int) -> Any:
        if piece not in self._open:
            name = self._pieces[piece]
            self._check(name)
            self._open[piece] = _reading(self.folder / name)
            if len(self._open) > OPEN_PIECES:
                self._open.popitem(last=False)
        self._open.move_to_end(piece)
        return self._open[piece]

    def _check(self, name: str) -> None:
        if name not in self._compared:
            if name not in self.record.files:
                raise IntegrityError(f"{self.folder / RECORD}: lists no {name}; {STATES.remedy}")
            compare(self.folder / name, self.record.files[name], STATES, contents=True)
            self._compared.add(name)


def _names(file: Any) -> set[str]:
    return set(file.keys())


def _reading(path: Path) -> Any:
    """A file of tensors, mapped into memory.

    Raises:
        IntegrityError: it is none.
    """
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as e:
        raise IntegrityError(f"{path}: cannot be read ({e}); {STATES.remedy}") from e
