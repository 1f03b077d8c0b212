"""`parquet:GLOB`: a row is a document; its column `text` or `messages`, or the one named in `GLOB#COLUMN`.

A column of strings holds texts; one of lists of structs holds conversations, whose null fields count as absent. Files
are read a batch of rows at a time, that column alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from softlabels.corpora import BytesRead, Document
from softlabels.corpora.files import check_messages, matches
from softlabels.errors import CorpusError

__all__ = ["ParquetFiles", "column_of", "documents_in", "split_column", "with_label"]

ROWS = 256
"""Read at a time."""
DEFAULT = ("text", "messages")
LABEL = "label"


class ParquetFiles:
    """Every row of every matching file is one document, in order of path."""

    def __init__(self, argument: str) -> None:
        self.spec = f"parquet:{argument}"
        pattern, self._column = split_column(argument)
        self.paths = matches(pattern, "parquet")
        self.read = BytesRead.of(self.paths)

    def documents(self) -> Iterator[Document]:
        """One document per row."""
        for path in self.paths:
            try:
                file = pq.ParquetFile(path)
                column = column_of(file.schema_arrow, self._column, DEFAULT, str(path))
                columns = with_label(file.schema_arrow, column)
                batches = file.iter_batches(batch_size=ROWS, columns=columns)
                size = path.stat().st_size / max(1, file.metadata.num_rows)
                yield from documents_in(self._counted(batches, size), str(path))
            except (OSError, pa.ArrowException) as e:
                raise CorpusError(f"{path}: cannot be read as Parquet ({e})") from e

    def _counted(self, batches: Iterator[pa.RecordBatch], size: float) -> Iterator[pa.RecordBatch]:
        """The batches, each counted as read when the next is asked for; `size` bytes are a row's share."""
        for batch in batches:
            yield batch
            self.read.done += round(len(batch) * size)


def split_column(argument: str) -> tuple[str, str | None]:
    """`GLOB#COLUMN` in two; no column without `#`."""
    pattern, hash_, column = argument.rpartition("#")
    return (pattern, column) if hash_ else (argument, None)


def column_of(schema: pa.Schema, wanted: str | None, default: tuple[str, ...], where: str) -> str:
    """The column to read.

    Raises:
        CorpusError: it is not there, or several could be meant.
    """
    names = [wanted] if wanted is not None else list(default)
    found = [n for n in names if n in schema.names]
    if len(found) != 1:
        expected = " or ".join(map(repr, names)) + (", not both" if len(found) > 1 else "")
        raise CorpusError(
            f"{where}: has columns {', '.join(schema.names[:12])}; expected {expected}; name another with GLOB#COLUMN"
        )
    return found[0]


def with_label(schema: pa.Schema, column: str) -> list[str]:
    """The columns to read: `column`, and a `label` that can be a class."""
    if LABEL not in schema.names or column in (LABEL, "messages"):
        return [column]
    kind = schema.field(LABEL).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    classes = (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    )
    return [column, LABEL] if classes else [column]


def documents_in(batches: Iterator[pa.RecordBatch], where: str) -> Iterator[Document]:
    """Documents of batches with one column, or with `label` as the second; `where` gets the row's number, from 0.

    Raises:
        CorpusError: a null, or a type that is neither text nor conversation.
    """
    number = 0
    for batch in batches:
        values = batch.column(0)
        kind = values.type
        if pa.types.is_dictionary(kind):
            values, kind = values.dictionary_decode(), kind.value_type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not text and not _conversation(kind):
            raise CorpusError(
                f"{where}: column {batch.schema.names[0]!r} is {kind}; expected strings, or lists of structs with "
                "role and "
                "content"
            )
        nothing = [None] * len(batch)
        labels = batch.column(1).to_pylist() if batch.num_columns > 1 else nothing
        for value, label in zip(values.to_pylist(), labels, strict=True):
            at = f"{where}:{number}"
            number += 1
            if value is None:
                raise CorpusError(f"{at}: is null; remove the row")
            if text:
                yield Document(where=at, text=value, label=label)
            else:
                yield Document(where=at, messages=check_messages(_present(value), at))


def _conversation(kind: Any) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(lists and pa.types.is_struct(kind.value_type))


def _present(messages: list[Any]) -> list[Any]:
    """Without null fields: a struct has every field of the column, a message has its own."""
    return [None if m is None else {k: v for k, v in m.items() if v is not None} for m in messages]
