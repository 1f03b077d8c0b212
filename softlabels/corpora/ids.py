"""`ids:GLOB`: documents that are token ids already, of the teacher's own tokenizer; nothing is added to them.

    FILE.npy       [L]: one document; [D, L]: a document in each line; whole numbers
    FILE.parquet   a row is a document: lists of whole numbers in `input_ids` (or `GLOB#COLUMN`); a column `loss_mask`,
                   if there is one, of lists of the same lengths, says by 1 or true which tokens are to be learnt

Ids name tokens only together with a tokenizer, and none is recorded in such files: that it is the teacher's is your
word, and what a build can check is that no id lies outside its vocabulary. A .npy file is mapped; one line of it is in
memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from softlabels.core.rows import Location
from softlabels.corpora import BytesRead, Corpus, Document
from softlabels.corpora.files import matches
from softlabels.corpora.parquet import batches_from, column_of, split_column
from softlabels.errors import CorpusError

COLUMN, MASK = "input_ids", "loss_mask"
LARGEST = 2**31 - 1


class IdFiles(Corpus):
    """Documents of ids, in order of path."""

    def __init__(self, argument: str) -> None:
        self.spec = f"ids:{argument}"
        pattern, self._column = split_column(argument)
        self.paths = matches(pattern, "ids")
        self.read: BytesRead = BytesRead.of(self.paths)
        for path in self.paths:
            if path.suffix not in (".npy", ".parquet"):
                raise CorpusError(f"{path}: expected .npy or .parquet")

    def documents(self) -> Iterator[Document]:
        """One document per row, or line."""
        return self.documents_from(Location())

    def documents_from(self, location: Location) -> Iterator[Document]:
        """From a row or line on."""
        row = location.row
        for number, path in enumerate(self.paths[location.file :], location.file):
            read = self._parquet if path.suffix == ".parquet" else self._npy
            try:
                for at, document in enumerate(read(path, row), row):
                    yield replace(document, location=Location(file=number, row=at))
                row = 0
            except (OSError, EOFError, ValueError, pa.ArrowException) as e:
                if isinstance(e, CorpusError):
                    raise
                raise CorpusError(f"{path}: cannot be read ({e})") from e

    def _npy(self, path: Path, row: int) -> Iterator[Document]:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.ndim not in (1, 2) or array.dtype.kind not in "iu":
            raise CorpusError(
                f"{path}: holds {array.dtype} of shape {list(array.shape)}; expected whole numbers [L] or [D, L]"
            )
        lines = array[None] if array.ndim == 1 else array
        for number, line in enumerate(lines[row:], row):
            yield _document(np.asarray(line), None, f"{path}:{number}")
            self.read.done += array.nbytes // len(lines)

    def _parquet(self, path: Path, row: int) -> Iterator[Document]:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        column = column_of(schema, self._column, (COLUMN,), str(path))
        columns = [column, *([MASK] if MASK in schema.names and column != MASK else [])]
        for name in columns:
            kind = schema.field(name).type
            inner = getattr(kind, "value_type", kind)
            fits = pa.types.is_integer(inner) or (name == MASK and pa.types.is_boolean(inner))
            if not fits or inner is kind:
                raise CorpusError(
                    f"{path}: column {name!r} is {kind}; expected lists of whole numbers"
                )
        number, size = row, path.stat().st_size / max(1, file.metadata.num_rows)
        for batch in batches_from(file, columns, row):
            of = [_lists(batch.column(name)) for name in columns]
            for values in zip(*of, strict=True):
                at = f"{path}:{number}"
                number += 1
                if any(v is None or v.null_count for v in values):
                    raise CorpusError(f"{at}: holds a null; remove the row")
                ids, *mask = (v.to_numpy(zero_copy_only=False) for v in values)
                yield _document(ids, mask[0] if mask else None, at)
            self.read.done += round(len(batch) * size)


def _lists(column: Any) -> Iterator[Any]:
    """The values of each list; None where it is null."""
    for scalar in column:
        yield scalar.values if scalar.is_valid else None


def _document(ids: npt.NDArray[Any], mask: npt.NDArray[Any] | None, where: str) -> Document:
    if len(ids) and (ids.min() < 0 or ids.max() > LARGEST):
        bad = int(np.flatnonzero((ids < 0) | (ids > LARGEST))[0])
        raise CorpusError(f"{where}: token {bad} has id {ids[bad]}; expected 0 to {LARGEST}")
    learn = np.ones(len(ids), np.bool_)
    if mask is not None:
        if len(mask) != len(ids) or not np.isin(mask, (0, 1)).all():
            raise CorpusError(
                f"{where}: loss_mask has {len(mask)} values for {len(ids)} ids; expected 0 or 1 for each"
            )
        learn = mask.astype(np.bool_)
    return Document(where=where, ids=ids.astype(np.int32), learn=learn)
