"""`text:GLOB` (a file is a document) and `jsonl:GLOB` (a line is a document)."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from softlabels.core.rows import Location
from softlabels.corpora import BytesRead, Corpus, Document, sound
from softlabels.corpora.records import KINDS, kind_of
from softlabels.errors import CorpusError


def matches(pattern: str, kind: str) -> list[Path]:
    """The files that a pattern names, in order of path; `CorpusError` if there are none."""
    paths = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
    if not paths:
        raise CorpusError(
            f"--corpus {kind}:{pattern}: no file matches (looked in {Path.cwd()}); quote the pattern so that the "
            "shell leaves it alone"
        )
    return paths


def _seek_line(file: BinaryIO, byte: int, where: str) -> None:
    """Go to where a line begins; `CorpusError` if none begins there."""
    if byte:
        file.seek(byte - 1)
        if file.read(1) != b"\n":
            raise CorpusError(
                f"{where}: no line begins at byte {byte} any more, as it did when the shards were planned: the corpus "
                "changed; restore it, or choose another --out"
            )


class TextFiles(Corpus):
    """Every matching file is one document, in order of path.

    UTF-8, with or without a byte-order mark; line endings are kept as they are.
    """

    def __init__(self, pattern: str) -> None:
        self.spec = f"text:{pattern}"
        self.paths = matches(pattern, "text")
        self.read: BytesRead = BytesRead.of(self.paths)

    def documents(self) -> Iterator[Document]:
        """One document per file."""
        return self.documents_from(Location())

    def documents_from(self, location: Location) -> Iterator[Document]:
        """From a file on."""
        return sound(self._tried_from(location))

    def tried(self) -> Iterator[Document | CorpusError]:
        """One document per file, or what is wrong with the file."""
        return self._tried_from(Location())

    def _tried_from(self, location: Location) -> Iterator[Document | CorpusError]:
        for number, path in enumerate(self.paths[location.file :], location.file):
            try:
                data = path.read_bytes()
                text = data.decode("utf-8").removeprefix("\ufeff")
            except OSError as e:
                yield _unreadable(path, e)
            except UnicodeDecodeError as e:
                yield CorpusError(
                    f"{path}: byte {e.start} is not UTF-8; convert the file (iconv -t utf-8)"
                )
            else:
                yield Document(where=str(path), text=text, location=Location(file=number))
                self.read.done += len(data)


class JsonLines(Corpus):
    """Every line is one document, of any kind that `records.py` knows."""

    def __init__(self, pattern: str) -> None:
        self.spec = f"jsonl:{pattern}"
        self.paths = matches(pattern, "jsonl")
        self.read: BytesRead = BytesRead.of(self.paths)

    def documents(self) -> Iterator[Document]:
        """One document per line; blank lines are refused like any other line that is not an object."""
        return self.documents_from(Location())

    def documents_from(self, location: Location) -> Iterator[Document]:
        """From a line on."""
        return sound(self._tried_from(location))

    def tried(self) -> Iterator[Document | CorpusError]:
        """One document per line, or what is wrong with the line."""
        return self._tried_from(Location())

    def _tried_from(self, location: Location) -> Iterator[Document | CorpusError]:
        row, byte = location.row, location.byte
        for number, path in enumerate(self.paths[location.file :], location.file):
            try:
                with path.open("rb") as f:
                    _seek_line(f, byte, f"{path}:{row + 1}")
                    for line in f:
                        place = Location(file=number, row=row, byte=byte)
                        yield _parsed(line, f"{path}:{row + 1}", place)
                        self.read.done += len(line)
                        row, byte = row + 1, byte + len(line)
            except OSError as e:
                yield _unreadable(path, e)
            row = byte = 0


def _parsed(line: bytes, where: str, place: Location) -> Document | CorpusError:
    try:
        record = json_object(line, where)
        return replace(kind_of(record, KINDS, where).make(record, where), location=place)
    except CorpusError as e:
        return e


def json_object(line: bytes, where: str) -> dict[str, Any]:
    """The fields of one line; `CorpusError` if it is no object of JSON."""
    try:
        record = json.loads(line)
        if b"\\u" in line:  # only an escape can give half a surrogate pair, which is not text
            json.dumps(record, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as e:
        raise CorpusError(f"{where}: not a JSON object ({e}); correct or remove the line") from e
    if not isinstance(record, dict):
        raise CorpusError(f"{where}: expected an object, found {type(record).__name__}")
    return record


def _unreadable(path: Path, error: OSError) -> CorpusError:
    return CorpusError(f"{path}: cannot be read ({error.strerror})")
