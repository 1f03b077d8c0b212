"""`lines:FILE`: each line of a file is a document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from softlabels.corpora import Corpus, Document
from softlabels.errors import CorpusError


class Lines(Corpus):
    def __init__(self, argument: str) -> None:
        self.spec = f"lines:{argument}"
        self._path = Path(argument)
        if not self._path.is_file():
            raise CorpusError(f"--corpus {self.spec}: no such file")

    def documents(self) -> Iterator[Document]:
        with self._path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield Document(where=f"{self._path}:{number}", text=line.rstrip("\n"))
