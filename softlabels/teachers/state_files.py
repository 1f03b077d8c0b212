"""Hidden states as engines write them: any number of `*.safetensors` in a folder, each of one document.

    token_ids        [T] integers: what the engine was given
    hidden_states    [T, D], or [T, L, D] of L layers, of which the last is taken

These are the names and shapes of vLLM's connector for hidden states, whose states are from before the final norm.
A document, or a row's piece of one, is found by its ids, exactly; what surrounded it in a row has no part in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softlabels.core.rows import Row
from softlabels.errors import FormatError, IntegrityError, PairingError
from softlabels.store.states import DTYPES
from softlabels.teachers.segments import segments_of

IDS, STATES = "token_ids", "hidden_states"


class StateFiles:
    """A folder of them; their headers and ids are read at once.

    Raises:
        FormatError: no such folder, no file in it, or several dtypes.
        IntegrityError: a file that is not such a one.
    """

    engine = "states of an engine"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[bytes, Path] = {}
        dtypes: set[str] = set()
        for path in sorted(folder.rglob("*.safetensors")):
            ids, dtype = _ids_of(path)
            self._files[_key(ids)] = path
            dtypes.add(dtype)
        if not dtypes:
            raise FormatError(
                f"{folder}: holds no states: neither what `softlabels states` writes, nor *.safetensors with {IDS} and "
                f"{STATES}"
            )
        if len(dtypes) > 1:
            raise FormatError(
                f"{folder}: holds states in {' and '.join(sorted(dtypes))}; expected one"
            )
        (self.dtype,) = dtypes

    def given(self, rows: Sequence[Row], *, where: str) -> Iterator[Tensor]:
        """Of one document, or piece of one, at a time."""
        for segment in segments_of(rows):
            ids = torch.from_numpy(segment.input_ids)
            path = self._files.get(_key(ids))
            if path is None:
                raise PairingError(
                    f"{where}: {self._folder} has no states of a sequence of {len(ids)} tokens ({ids[:5].tolist()}…); "
                    "its files must be of the very pieces that the rows have: same tokenizer, same --seq-len"
                )
            with _reading(path) as file:
                states = file.get_tensor(STATES)
            last = states[:, -1] if states.dim() == 3 else states
            yield last[torch.from_numpy(segment.positions)]


def _ids_of(path: Path) -> tuple[Tensor, str]:
    """What the file's states are of, `[T] int64`, and their dtype."""
    with _reading(path) as file:
        if {IDS, STATES} <= set(file.keys()):
            ids, states = file.get_tensor(IDS), file.get_slice(STATES)
            shape, kind = states.get_shape(), states.get_dtype()
            sound = ids.dim() == 1 and not ids.is_floating_point() and kind in DTYPES
            if sound and len(shape) in (2, 3) and shape[0] == len(ids) and min(shape[1:]) > 0:
                return ids.long(), DTYPES[kind]
    raise IntegrityError(
        f"{path}: expected {IDS} [T] and {STATES} [T, D] or [T, L, D] of the same T, in floating point"
    )


def _key(ids: Tensor) -> bytes:
    return hashlib.sha256(ids.numpy().astype("<i8").tobytes()).digest()


def _reading(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as e:
        raise IntegrityError(f"{path}: cannot be read ({e}); take another copy of it") from e
