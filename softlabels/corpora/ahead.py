"""Texts tokenised some at a time, ahead of whoever packs them: a fast tokenizer encodes a batch on all cores.

Batches grow from one document, so that whoever takes a few rows has few documents too many tokenised, and end at
`MOST` documents or `CHARACTERS`, which are held in memory. Order is kept, and so is what goes wrong: an error of the
corpus is raised after the documents before it, and a batch that a tokenizer refuses is left to be tokenised one by one.

The price: what is read and tokenised beyond the last row that is taken, which is as much again at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from softlabels.corpora import Document

if TYPE_CHECKING:
    from softlabels.corpora.packing import Tokenized

MOST = 512
"""Documents of a batch."""
CHARACTERS = 2**20
"""Of the texts of a batch, less the last."""

Numbered = tuple[int, Document | None]


@runtime_checkable
class BatchTokenizer(Protocol):
    """A tokenizer that gains by many texts at a time."""

    def encode_texts(self, texts: Sequence[str]) -> Sequence[Tokenized]:
        """What `encode` gives for each."""


def tokenized_ahead(
    documents: Iterator[Numbered], tokenizer: BatchTokenizer
) -> Iterator[tuple[int, Document | None, Tokenized | None]]:
    """The same documents, with the tokens of those that are plain text; None: still to be tokenised."""
    for batch in _batches(documents):
        texts = {number: _text(document) for number, document in batch}
        plain = {number: text for number, text in texts.items() if text}
        try:
            tokens = dict(zip(plain, tokenizer.encode_texts(list(plain.values())), strict=True))
        except Exception:  # it is raised again by the one text that it is of
            tokens = {}
        for number, document in batch:
            yield number, document, tokens.get(number)


def _batches(documents: Iterator[Numbered]) -> Iterator[list[Numbered]]:
    most = 1
    while True:
        batch: list[Numbered] = []
        characters, error = 0, None
        try:
            for number, document in islice(documents, most):
                batch.append((number, document))
                text = _text(document)
                characters += len(text)
                if characters >= CHARACTERS or not text:
                    break  # of what is not tokenised here, nothing is gained by more
        except Exception as e:
            error = e
        if batch:
            yield batch
        if error is not None:
            raise error
        if not batch:
            return
        most = min(2 * most, MOST)


def _text(document: Document | None) -> str:
    """What `Tokenizer.encode` would be given; empty: something else is done with it."""
    if document is None or document.ids is not None or document.messages is not None:
        return ""
    return "" if document.completion is not None else document.text or ""
