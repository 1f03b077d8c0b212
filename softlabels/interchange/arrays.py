"""Megatron-style arrays: `input_ids [R, S]`, `ids [R, P, K]` and `logp [R, P, K]`, with P = S or S - 1.

Entry t predicts token t + 1. A `.npz` file, or a folder of `.npy` files of these names, which is not read into memory
at once. `lengths [R]` says how many tokens of a padded row are real; `label_mask [R, S]` which positions count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.core.npz import read_npz
from softlabels.errors import CorpusError
from softlabels.interchange import ForeignRow

NEEDED = ("input_ids", "ids", "logp")
OPTIONAL = ("lengths", "label_mask")


def read(path: Path) -> Iterator[ForeignRow]:
    """Rows of the arrays."""
    arrays = _load(path)
    tokens, ids, logp = (arrays[name] for name in NEEDED)
    if tokens.ndim != 2 or ids.ndim != 3 or logp.shape != ids.shape:
        raise CorpusError(
            f"{path}: input_ids {tokens.shape}, ids {ids.shape} and logp {logp.shape} must be [R, S], [R, P, K] and "
            "[R, P, K]"
        )
    r, s = tokens.shape
    if ids.shape[0] != r or ids.shape[1] not in (s, s - 1):
        raise CorpusError(
            f"{path}: ids are {ids.shape} for input_ids {tokens.shape}; expected [{r}, {s} or {s - 1}, K]"
        )
    for name, kinds in (("input_ids", "iu"), ("ids", "iu"), ("logp", "f")):
        if arrays[name].dtype.kind not in kinds:
            raise CorpusError(f"{path}: {name} is {arrays[name].dtype}, which it cannot be")
    lengths = arrays.get("lengths", np.full(r, s))
    marked = arrays.get("label_mask", np.ones((r, s), np.bool_))
    if lengths.shape != (r,) or marked.shape != (r, s):
        raise CorpusError(
            f"{path}: lengths {lengths.shape} and label_mask {marked.shape} must be [{r}] and [{r}, {s}]"
        )
    for i in range(r):
        length = int(lengths[i])
        if not 1 <= length <= s:
            raise CorpusError(f"{path}: row {i}: a length of {length}; expected 1 to {s}")
        label_mask = np.asarray(marked[i, :length]).astype(np.bool_)
        label_mask[-1] = False  # nothing follows the last token
        at = np.flatnonzero(label_mask)
        yield ForeignRow(
            where=f"{path}: row {i}",
            input_ids=np.asarray(tokens[i, :length]).astype(np.int32),
            label_mask=label_mask,
            ids=np.asarray(ids[i][at]).astype(np.int64),
            logp=np.asarray(logp[i][at]).astype(np.float32),
        )


def _load(path: Path) -> Mapping[str, npt.NDArray[Any]]:
    found: dict[str, npt.NDArray[Any]] = {}
    try:
        if path.is_dir():
            for name in (*NEEDED, *OPTIONAL):
                if (file := path / f"{name}.npy").exists():
                    found[name] = np.load(file, mmap_mode="r", allow_pickle=False)
        else:
            found = read_npz(path, (*NEEDED, *OPTIONAL))
    except (OSError, ValueError, EOFError) as e:
        raise CorpusError(
            f"{path}: cannot be read ({e}); expected a .npz file, or a folder of .npy files"
        ) from e
    if missing := [name for name in NEEDED if name not in found]:
        raise CorpusError(f"{path}: has no array {missing[0]!r}; expected {', '.join(NEEDED)}")
    return found
