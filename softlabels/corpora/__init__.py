"""What is taught: documents of text, in a fixed order.

A corpus yields documents; `packing.py` turns them into rows. To add one: one file here, one line in
`CORPORA`, one file in tests/corpora.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from softlabels.core.registry import Registry, split_spec
from softlabels.core.rows import BEGINNING, Cursor, Location
from softlabels.errors import ConfigError, CorpusError

BEGIN = 8
"""Documents that are read before anything else is done."""
Message = dict[str, Any]
"""`{"role": "user" | "assistant" | "system" | "tool" | …, "content": str}`, and what else its template knows:
`tool_calls`, …"""
Tool = dict[str, Any]
"""What an assistant may call, as chat templates take it: `{"type": "function", "function": {"name", …}}`."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text, or one conversation, before it is tokenised; or token ids."""

    where: str
    """For messages: `FILE`, `FILE:LINE`, or, where a file has rows, `FILE:ROW`, counted from 0."""
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    tools: tuple[Tool, ...] = ()
    """Of a conversation: what the assistant may call."""
    prompt: str | None = None
    completion: str | None = None
    """Text of which only the completion is to be learnt; both or neither are there."""
    label: str | int | None = None
    """Of classification: its class, by name or number."""
    words: tuple[str, ...] | None = None
    """Of token classification: the text in words, each with a label."""
    word_labels: tuple[str | int | None, ...] | None = None
    ids: npt.NDArray[np.int32] | None = None
    """`[L] int32`: tokens of the teacher's own, taken as they are."""
    learn: npt.NDArray[np.bool_] | None = None
    """`[L] bool`, with `ids`: which tokens are to be learnt."""
    location: Location | None = field(default=None, compare=False)
    """Where it begins in the files of its corpus, which can then be read from there; None: only from the beginning."""

    def empty(self) -> bool:
        """Whether there is nothing to learn: only white space, or no message with content."""
        if self.ids is not None:
            return len(self.ids) == 0
        if self.messages is not None:
            return not any(str(m.get("content") or "").strip() for m in self.messages)
        if self.words is not None:
            return not any(w.strip() for w in self.words)
        if self.completion is not None:
            return not self.completion.strip()
        return not (self.text or "").strip()


@dataclass
class BytesRead:
    """How much of its files a corpus has read."""

    total: int
    """Bytes of all of its files."""
    done: int = 0
    """Of documents that were taken and left behind; grows on through a second pass."""

    @staticmethod
    def of(paths: Iterable[Path]) -> BytesRead:
        """Of files of which nothing was read."""
        return BytesRead(sum(p.stat().st_size for p in paths))


class Corpus(ABC):
    """An ordered source of documents: what every kind of corpus derives from."""

    spec: str
    """`name:argument`."""
    paths: Sequence[Path] = ()
    """Its files or folders, if it has any: no store may lie among them."""
    read: BytesRead | None = None
    """How much of its files it has read; None: it does not know."""

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """All documents, always in the same order."""

    def documents_from(self, location: Location) -> Iterator[Document]:
        """Those from a document on that had this `location`; the same as in a pass from the beginning.

        Asked only of a corpus whose documents have one.

        Raises:
            CorpusError: what is there now is no document.
        """
        return dropwhile(lambda document: document.location != location, self.documents())

    def tried(self) -> Iterator[Document | CorpusError]:
        """All documents, with the error of each record that is none in its place.

        A kind of corpus that cannot go on after a bad record ends with its error.
        """
        try:
            yield from self.documents()
        except CorpusError as e:
            yield e


def sound(tried: Iterable[Document | CorpusError]) -> Iterator[Document]:
    """Documents up to the first that is none, whose `CorpusError` is raised."""
    for document in tried:
        if isinstance(document, CorpusError):
            raise document
        yield document


CORPORA: Registry[Callable[[str], Corpus]] = Registry(
    "softlabels.corpora",
    {
        "text": "softlabels.corpora.files:TextFiles",
        "jsonl": "softlabels.corpora.files:JsonLines",
        "parquet": "softlabels.corpora.parquet:ParquetFiles",
        "dataset": "softlabels.corpora.dataset:SavedDataset",
        "ids": "softlabels.corpora.ids:IdFiles",
    },
)


def open_corpora(specs: Sequence[str]) -> list[Corpus]:
    """Open each `name:argument`, or path whose suffix says the name.

    Raises:
        ConfigError: an unknown kind.
        CorpusError: nothing matches.
    """
    corpora: list[Corpus] = []
    for spec in named(specs):
        name, argument = split_spec(spec, flag="--corpus")
        corpus = CORPORA.load(name)(argument)
        if not isinstance(corpus, Corpus):
            raise ConfigError(
                f"--corpus {spec}: {name} is made by a {type(corpus).__name__}, which is no softlabels.corpora.Corpus; "
                "derive that class from it"
            )
        corpora.append(corpus)
    return corpora


def named(specs: Sequence[str]) -> list[str]:
    """Each as `name:argument` (`spelling.py`); `ConfigError` if the kind of a path cannot be told."""
    from softlabels.corpora.spelling import spelled_out

    return [spelled_out(spec) for spec in specs]


def check_begin(corpora: Iterable[Corpus], *, skip_empty: bool) -> None:
    """Read the first documents of each corpus, so that what is wrong from the start is said before a teacher loads.

    Raises:
        CorpusError: a file that cannot be read, a column that is not there, a record that is none, an empty document
            unless `skip_empty`.
    """
    for corpus in corpora:
        for document in islice(corpus.documents(), BEGIN):
            if document.empty() and not skip_empty:
                raise _nothing_to_teach(document)


def documents_of(
    corpora: Sequence[Corpus],
    *,
    skip_empty: bool,
    start: Cursor = BEGINNING,
    alive: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, Document | None]]:
    """Number the documents, in order; None is an empty one that is skipped, `CorpusError` one that is not to be.

    Args:
        start: the document to begin with; without its location the corpora are read from their beginning all the same.
        alive: called for each document that is read.
    """
    location = start.location
    first = 0 if location is None else location.corpus
    number = 0 if location is None else start.document
    for which, corpus in enumerate(corpora[first:], first):
        if location is not None and which == first:
            own = msgspec.structs.replace(location, corpus=0, view=0, document=None)
            documents = corpus.documents_from(own)
        else:
            documents = corpus.documents()
        for document in documents:
            alive()
            if number < start.document:
                number += 1
                continue
            if which and document.location is not None:
                at = msgspec.structs.replace(document.location, corpus=which)
                document = replace(document, location=at)
            if document.empty():
                if not skip_empty:
                    raise _nothing_to_teach(document)
                yield number, None
            else:
                yield number, document
            number += 1


def _nothing_to_teach(document: Document) -> CorpusError:
    return CorpusError(
        f"{document.where}: the text is empty, so there is nothing to teach; remove it, or pass --skip-empty to leave "
        "such documents out (they are counted in the manifest)"
    )
