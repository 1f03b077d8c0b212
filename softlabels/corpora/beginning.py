"""The beginning of a corpus, to estimate the whole from: a few megabytes, however large the corpus is.

Each corpus gives a share of its own, in proportion to its size; a text that is longer than what is left is cut. How
much of the files was taken says by how much to multiply what was counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from softlabels.corpora import BytesRead, Corpus, Document


class Beginning(Corpus):
    """The first documents of a corpus.

    Args:
        corpus: one that counts the bytes of its files.
        room: bytes of content to give, at most; one document at the least.
    """

    def __init__(self, corpus: Corpus, room: int) -> None:
        self._corpus, self._room = corpus, room
        self.spec = corpus.spec
        assert corpus.read is not None
        self._files = corpus.read
        self.total, self.taken = self._files.total, 0.0
        """Bytes of all files, and of what the last pass gave."""
        self.read: BytesRead = BytesRead(min(self.total, room))

    def documents(self) -> Iterator[Document]:
        """One document after another, the same in each pass."""
        self.taken, left = 0.0, self._room
        documents = self._corpus.documents()
        document = next(documents, None)
        while document is not None and left > 0:
            before, size = self._files.done, max(1, _size(document))
            share = min(1.0, left / size) if document.text is not None else 1.0
            if share < 1:
                document = replace(document, text=(document.text or "")[:left])
            yield document
            left -= size
            document = next(documents, None)  # only now are the bytes of the one before counted
            self.taken += share * (self._files.done - before)
            self.read.done += min(size, self._room)
        if document is None and left > 0:
            self.taken = float(self.total)


def _size(document: Document) -> int:
    """Letters of its content, or ids."""
    if document.ids is not None:
        return len(document.ids)
    messages = document.messages or ()
    texts = [document.text, document.prompt, document.completion, *(document.words or ())]
    return sum(len(str(t)) for t in texts if t) + sum(len(str(m.get("content"))) for m in messages)


def beginnings(corpora: Sequence[Corpus], room: int) -> list[Beginning] | None:
    """Of each corpus its beginning; None if one does not count the bytes of its files."""
    sizes = [c.read.total for c in corpora if c.read is not None]
    if len(sizes) < len(corpora):
        return None
    whole = max(1, sum(sizes))
    return [
        Beginning(c, max(1, room * size // whole)) for c, size in zip(corpora, sizes, strict=True)
    ]


def share_taken(parts: Sequence[Beginning]) -> float:
    """Which share of all files the last pass took."""
    taken, total = sum(p.taken for p in parts), sum(p.total for p in parts)
    return float(min(1.0, taken / max(1, total)))
