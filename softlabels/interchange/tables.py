"""Records of Parquet files or JSON lines, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from softlabels.errors import CorpusError

BATCH = 64
"""Records decoded together: log-probabilities as Python lists take 30 bytes each."""


def records(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each record is, and its fields. `path` is a file, or a folder of them.

    Raises:
        CorpusError: no such files, unreadable, or a field is missing.
    """
    files = sorted(p for p in path.glob("*") if p.suffix in (".parquet", ".jsonl"))
    if path.is_file():
        files = [path]
    if not files:
        raise CorpusError(f"{path}: no .parquet or .jsonl file here; is the path right?")
    for file in files:
        source = _parquet(file) if file.suffix == ".parquet" else _lines(file)
        for number, record in enumerate(source):
            where = f"{file}: row {number}"
            for name in needed:
                if record.get(name) is None:
                    raise CorpusError(f"{where}: has no {name!r}; expected {', '.join(needed)}")
            yield where, record


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    try:
        for batch in pq.ParquetFile(file).iter_batches(BATCH):
            yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as e:
        raise CorpusError(f"{file}: cannot be read as Parquet ({e})") from e


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as f:
        for number, line in enumerate(f):
            try:
                record = msgspec.json.decode(line)
            except msgspec.DecodeError as e:
                raise CorpusError(f"{file}: row {number}: not JSON ({e})") from e
            if not isinstance(record, dict):
                raise CorpusError(f"{file}: row {number}: not a JSON object")
            yield record


def vector(value: Any, where: str, name: str) -> npt.NDArray[np.int64]:
    """A list of whole numbers."""
    try:
        array = np.asarray(value)
    except ValueError as e:
        raise CorpusError(f"{where}: {name} is not a list of numbers ({e})") from e
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iub"):
        raise CorpusError(f"{where}: {name} is not a list of whole numbers")
    return array.astype(np.int64)


def matrix(value: Any, where: str, name: str) -> npt.NDArray[Any]:
    """A list of lists of equal length.

    Raises:
        CorpusError: they differ in length: a kept set of `topk` has k ids at every position.
    """
    try:
        array = np.asarray(value)
    except ValueError as e:
        raise CorpusError(
            f"{where}: the lists of {name} differ in length; expected the same number of ids at every position"
        ) from e
    if array.ndim != 2 or array.dtype.kind not in "iufb":
        raise CorpusError(f"{where}: {name} is not a list of lists of numbers")
    return array
