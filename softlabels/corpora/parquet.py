"""`parquet:GLOB`: a row is a document, of any kind that `records.py` knows by its columns' names (but lists of words).

`GLOB#COLUMN` names one column of texts (strings) or of conversations (lists of structs, whose null fields count as
absent). Files are read a batch of rows at a time, and only the columns that matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from softlabels.core.rows import Location
from softlabels.corpora import BytesRead, Corpus, Document
from softlabels.corpora.files import matches
from softlabels.corpora.records import KINDS, Kind, conversation, kind_of
from softlabels.errors import CorpusError

ROWS = 256
"""Read at a time."""
LABEL, TOOLS = "label", "tools"
ROW_KINDS = tuple(k for k in KINDS if "words" not in k.needs)
TEXT = next(k for k in KINDS if k.needs == ("text",))


class ParquetFiles(Corpus):
    """Every row of every matching file is one document, in order of path."""

    def __init__(self, argument: str) -> None:
        self.spec = f"parquet:{argument}"
        pattern, self._column = split_column(argument)
        self.paths = matches(pattern, "parquet")
        self.read: BytesRead = BytesRead.of(self.paths)

    def documents(self) -> Iterator[Document]:
        """One document per row."""
        return self.documents_from(Location())

    def documents_from(self, location: Location) -> Iterator[Document]:
        """From a row on; of its row group those before it are decoded, too."""
        begin = location
        for number, path in enumerate(self.paths[location.file :], location.file):
            try:
                file = pq.ParquetFile(path)
                columns = columns_of(file.schema_arrow, self._column, str(path))
                size = path.stat().st_size / max(1, file.metadata.num_rows)
                batches = self._counted(batches_from(file, columns.names, begin.row), size)
                yield from documents_in(batches, columns, str(path), begin)
                begin = Location(file=number + 1)
            except (OSError, pa.ArrowException) as e:
                raise CorpusError(f"{path}: cannot be read as Parquet ({e})") from e

    def mapping(self) -> str:
        """In words, which columns of the first file are read, and as what."""
        path = self.paths[0]
        try:
            schema = pq.read_schema(path)
        except (OSError, pa.ArrowException) as e:
            raise CorpusError(f"{path}: cannot be read as Parquet ({e})") from e
        columns = columns_of(schema, self._column, str(path))
        left = sorted(set(schema.names) - set(columns.names))
        said = f"{columns.kind.called}: reads {', '.join(columns.names)}"
        return f"{said}; leaves {', '.join(left[:8])}" if left else said

    def _counted(self, batches: Iterator[pa.RecordBatch], size: float) -> Iterator[pa.RecordBatch]:
        """The batches, each counted as read when the next is asked for; `size` bytes are a row's share."""
        for batch in batches:
            yield batch
            self.read.done += round(len(batch) * size)


def batches_from(file: pq.ParquetFile, columns: list[str], row: int) -> Iterator[pa.RecordBatch]:
    """Batches of these columns, from a row on."""
    group = 0
    while group < file.num_row_groups and row >= (n := file.metadata.row_group(group).num_rows):
        group, row = group + 1, row - n
    groups = range(group, file.num_row_groups)
    return without_first(
        file.iter_batches(batch_size=ROWS, row_groups=groups, columns=columns), row
    )


def without_first(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The batches without their first so many rows."""
    for batch in batches:
        if rows < len(batch):
            yield batch.slice(rows) if rows else batch
        rows = max(0, rows - len(batch))


def split_column(argument: str) -> tuple[str, str | None]:
    """`GLOB#COLUMN` in two; no column without `#`."""
    pattern, hash_, column = argument.rpartition("#")
    return (pattern, column) if hash_ else (argument, None)


def column_of(schema: pa.Schema, wanted: str | None, default: tuple[str, ...], where: str) -> str:
    """The column to read; `CorpusError` if it is not there, or several could be meant."""
    names = [wanted] if wanted is not None else list(default)
    found = [n for n in names if n in schema.names]
    if len(found) != 1:
        expected = " or ".join(map(repr, names)) + (", not both" if len(found) > 1 else "")
        raise CorpusError(
            f"{where}: has columns {', '.join(schema.names[:12])}; expected {expected}; name another with GLOB#COLUMN"
        )
    return found[0]


class Columns(NamedTuple):
    """Which columns make a document, and how."""

    kind: Kind
    names: list[str]
    """Those to read."""
    renamed: dict[str, str]
    """What the kind calls them."""


def columns_of(schema: pa.Schema, wanted: str | None, where: str) -> Columns:
    """The columns to read.

    Args:
        schema: of the file.
        wanted: the one that was named after `#`.
        where: the file.

    Raises:
        CorpusError: it is not there, is of a type that is neither text nor conversation, or no kind is known by the
            columns' names, or several could be meant.
    """
    if wanted is not None:
        column_of(schema, wanted, (), where)
        return _one_column(schema, wanted, where)
    try:
        kind = kind_of(schema.names, ROW_KINDS, where)
    except CorpusError as e:
        raise CorpusError(
            f"{e}; name one column of texts or conversations with GLOB#COLUMN"
        ) from None
    if len(kind.needs) == 1 and kind.needs != ("conversations",):
        return _one_column(schema, kind.needs[0], where)
    names = [n for n in (*kind.needs, *kind.may) if n in schema.names]
    return Columns(kind, names, {n: n for n in names})


def _one_column(schema: pa.Schema, name: str, where: str) -> Columns:
    """Texts, with their class beside them if there is one, or conversations."""
    kind = _plain(schema.field(name).type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        labels = [LABEL] if name != LABEL and _can_be_class(schema) else []
        return Columns(TEXT, [name, *labels], {name: "text", LABEL: LABEL})
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists or not pa.types.is_struct(kind.value_type):
        raise CorpusError(
            f"{where}: column {name!r} is {kind}; expected strings, or lists of structs with role and content (or "
            "from and value)"
        )
    turns = kind.value_type
    made = conversation([turns.field(i).name for i in range(turns.num_fields)])
    beside = [n for n in made.may if n == TOOLS and n != name and n in schema.names]
    return Columns(made, [name, *beside], {name: made.needs[0], TOOLS: TOOLS})


def _plain(kind: Any) -> Any:
    """The type of what a dictionary codes."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _can_be_class(schema: pa.Schema) -> bool:
    if LABEL not in schema.names:
        return False
    kind = _plain(schema.field(LABEL).type)
    return bool(
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    )


def documents_in(
    batches: Iterator[pa.RecordBatch], columns: Columns, where: str, begin: Location
) -> Iterator[Document]:
    """Documents of batches that hold these columns.

    Args:
        where: the file; messages get the row's number, from 0, too.
        begin: file and row of the first.

    Raises:
        CorpusError: a null, or what its kind of record does not allow.
    """
    number = begin.row
    for batch in batches:
        values = {columns.renamed[n]: batch.column(n).to_pylist() for n in columns.names}
        for row in zip(*values.values(), strict=True):
            at, location = f"{where}:{number}", Location(file=begin.file, row=number)
            number += 1
            record = dict(zip(values, map(_present, row), strict=True))
            for name in columns.kind.needs:
                if record[name] is None:
                    raise CorpusError(f'{at}: "{name}" is null; remove the row')
            yield replace(columns.kind.make(record, at), location=location)


def _present(value: Any) -> Any:
    """Turns without null fields, at any depth: a struct has every field of the column, a turn has its own."""
    if isinstance(value, dict):
        return {k: _present(v) for k, v in value.items() if v is not None}
    return [_present(v) for v in value] if isinstance(value, list) else value
