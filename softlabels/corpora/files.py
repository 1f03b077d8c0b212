"""`text:GLOB` (a file is a document) and `jsonl:GLOB` (a line is a document)."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from softlabels.corpora import BytesRead, Document
from softlabels.errors import CorpusError

__all__ = ["JsonLines", "TextFiles", "check_messages", "matches"]

KINDS = ("text", "messages", "words")


def matches(pattern: str, kind: str) -> list[Path]:
    """The files that a pattern names, in order of path.

    Raises:
        CorpusError: there are none.
    """
    paths = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
    if not paths:
        raise CorpusError(
            f"--corpus {kind}:{pattern}: no file matches (looked in {Path.cwd()}); quote the pattern so that the "
            "shell leaves it alone"
        )
    return paths


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise CorpusError(f"{path}: cannot be read ({e.strerror})") from e


class TextFiles:
    """Every matching file is one document, in order of path.

    UTF-8, with or without a byte-order mark; line endings are kept as they are.
    """

    def __init__(self, pattern: str) -> None:
        self.spec = f"text:{pattern}"
        self.paths = matches(pattern, "text")
        self.read = BytesRead.of(self.paths)

    def documents(self) -> Iterator[Document]:
        """One document per file."""
        for path in self.paths:
            with _readable(path):
                data = path.read_bytes()
            try:
                text = data.decode("utf-8").removeprefix("\ufeff")
            except UnicodeDecodeError as e:
                raise CorpusError(
                    f"{path}: byte {e.start} is not UTF-8; convert the file (iconv -t utf-8)"
                ) from e
            yield Document(where=str(path), text=text)
            self.read.done += len(data)


class JsonLines:
    """Every line is one document: `{"text": …}`, `{"messages": [{"role", "content"}, …]}` or `{"words": […]}`.

    A text may have a `"label"`: the name or number of its class; words may have `"labels"`, one for each or null.
    """

    def __init__(self, pattern: str) -> None:
        self.spec = f"jsonl:{pattern}"
        self.paths = matches(pattern, "jsonl")
        self.read = BytesRead.of(self.paths)

    def documents(self) -> Iterator[Document]:
        """One document per line; blank lines are refused like any other line that is not an object."""
        for path in self.paths:
            with _readable(path), path.open("rb") as f:
                for number, line in enumerate(f, start=1):
                    yield self._parse(line, f"{path}:{number}")
                    self.read.done += len(line)

    def _parse(self, line: bytes, where: str) -> Document:
        try:
            record = json.loads(line)
            if b"\\u" in line:  # only an escape can give half a surrogate pair, which is not text
                json.dumps(record, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as e:
            raise CorpusError(
                f"{where}: not a JSON object ({e}); correct or remove the line"
            ) from e
        if not isinstance(record, dict) or sum(k in record for k in KINDS) != 1:
            keys = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise CorpusError(
                f'{where}: expected an object with one of "text", "messages" and "words", found {keys}'
            )
        if "words" in record:
            return _words(record["words"], record.get("labels"), where)
        if "text" in record:
            if not isinstance(record["text"], str):
                raise CorpusError(
                    f'{where}: "text" is {type(record["text"]).__name__}, expected a string'
                )
            return Document(
                where=where, text=record["text"], label=check_label(record.get("label"), where)
            )
        return Document(where=where, messages=check_messages(record["messages"], where))


def check_messages(messages: Any, where: str) -> tuple[dict[str, Any], ...]:
    """A conversation, as a file holds it.

    Raises:
        CorpusError: not a list of objects with a role and a content, both strings.
    """
    if not isinstance(messages, list):
        raise CorpusError(f'{where}: "messages" is {type(messages).__name__}, expected a list')
    for i, m in enumerate(messages):
        if not isinstance(m, dict) or not isinstance(m.get("role"), str):
            raise CorpusError(f'{where}: message {i} has no "role"')
        if not isinstance(m.get("content"), str):
            raise CorpusError(f'{where}: message {i} has no "content" string')
    return tuple(messages)


def _words(words: Any, labels: Any, where: str) -> Document:
    if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
        raise CorpusError(f'{where}: "words" is no list of strings')
    if labels is None:
        return Document(where=where, words=tuple(words))
    if not isinstance(labels, list) or len(labels) != len(words):
        found = f"{len(labels)} entries" if isinstance(labels, list) else type(labels).__name__
        raise CorpusError(
            f'{where}: "labels" is {found}, expected a list of {len(words)}, one for each word'
        )
    return Document(
        where=where,
        words=tuple(words),
        word_labels=tuple(check_label(v, f"{where}: word {i}") for i, v in enumerate(labels)),
    )


def check_label(value: Any, where: str) -> str | int | None:
    """A label, as a file holds it; None if there is none.

    Raises:
        CorpusError: neither a string nor a whole number.
    """
    if value is None or (isinstance(value, (str, int)) and not isinstance(value, bool)):
        return value
    raise CorpusError(f'{where}: "label" is {value!r}, expected the name or number of a class')
