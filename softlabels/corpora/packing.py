"""Documents to rows of at most S tokens, losing nothing.

Rules, in order:
- a document that fits in a row is never split; if it does not fit in what is left of the row, a new
  row begins;
- a longer one is cut into pieces that overlap by one token, so that every token but a document's first
  is a label exactly once;
- documents that share a row are segments of it: attention and positions do not cross between them.

Rows are as long as they come out (at most S): padding is the reader's affair and is not stored.
Packing is a pure function of where it begins, the first document of a row and the token in it, and carries nothing else
from row to row: so a builder starts at any row of the plan, and reads nothing before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from softlabels.core.rows import BEGINNING, Cursor, Location, Row
from softlabels.corpora import Corpus, Document, Message, Tool, documents_of
from softlabels.corpora.ahead import BatchTokenizer, tokenized_ahead
from softlabels.errors import ConfigError, CorpusError


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokenized:
    """A document's tokens."""

    input_ids: npt.NDArray[np.int32]
    """`[L] int32`."""
    learn: npt.NDArray[np.bool_]
    """`[L] bool`: whether each token is to be learnt. All of a text; a chat's assistant turns; a completion."""


class Tokenizer(Protocol):
    """What packing needs of a tokenizer."""

    vocab_size: int

    def encode(self, text: str) -> Tokenized:
        """Tokenise a whole document, with whatever marks its begin and end."""

    def encode_completion(self, prompt: str, completion: str) -> Tokenized:
        """Tokenise both as one document, of which the completion and the end are to be learnt."""

    def encode_chat(
        self, messages: Sequence[Message], *, where: str, tools: Sequence[Tool] = ()
    ) -> Tokenized:
        """Render a conversation with the chat template and tokenise it."""


@dataclass(kw_only=True)
class CorpusCounts:
    """What a pass over the corpus met."""

    documents: int = 0
    skipped_empty: int = 0
    skipped_short: int = 0
    truncated: int = 0


def pack(
    corpora: Sequence[Corpus],
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    vocab_size: int,
    start: Cursor = BEGINNING,
    skip_empty: bool = False,
    counts: CorpusCounts | None = None,
    alive: Callable[[], None] = lambda: None,
    ahead: bool = False,
) -> Iterator[tuple[Cursor, Row]]:
    """Yield rows and where each begins, from `start` on.

    Args:
        seq_len: S, at least 2.
        vocab_size: V of the teacher; an id beyond it is refused.
        start: a cursor that an earlier pass yielded; documents before it are not tokenised, and not read if it has
            their location.
        counts: filled in as rows are yielded.
        alive: called for each document that is read.
        ahead: read and tokenise documents some at a time (`ahead.py`), if the tokenizer gains by that; for a pass that
            goes far.

    Raises:
        CorpusError: an empty document, one without anything to learn, an id outside the vocabulary.
    """
    if seq_len < 2:
        raise ConfigError(f"--seq-len {seq_len}: a row needs 2 tokens to hold a prediction")
    counts = counts if counts is not None else CorpusCounts()
    open_row: list[_Piece] = []
    room = seq_len
    documents = documents_of(corpora, skip_empty=skip_empty, start=start, alive=alive)
    if ahead and isinstance(tokenizer, BatchTokenizer):
        taken = tokenized_ahead(documents, tokenizer)
    else:
        taken = ((number, document, None) for number, document in documents)
    for number, document, known in taken:
        if document is None:
            counts.skipped_empty += 1
            continue
        tokens = _tokens(document, tokenizer) if known is None else known
        _check_ids(tokens.input_ids, vocab_size, document.where)
        if not tokens.learn[1:].any():
            _check_can_learn(document)
            counts.skipped_short += 1
            continue
        offset = start.offset if number == start.document else 0
        counts.documents += 1
        length = len(tokens.input_ids)
        if open_row and length - offset > room:
            yield _close(open_row)
            open_row, room = [], seq_len
        while length - offset > room:
            assert not open_row, "only a document that fills whole rows is cut"
            yield _close([_Piece(number, offset, tokens, offset + room, document.location)])
            offset += (
                room - 1
            )  # the last token of a piece is the first of the next: it predicts, too
        open_row.append(_Piece(number, offset, tokens, length, document.location))
        room -= length - offset
    if open_row:
        yield _close(open_row)


def _tokens(document: Document, tokenizer: Tokenizer) -> Tokenized:
    if document.ids is not None:
        assert document.learn is not None
        return Tokenized(input_ids=document.ids, learn=document.learn)
    if document.messages is not None:
        more = {"tools": document.tools} if document.tools else {}  # not all tokenizers know them
        return tokenizer.encode_chat(document.messages, where=document.where, **more)
    if document.completion is not None:
        return tokenizer.encode_completion(document.prompt or "", document.completion)
    return tokenizer.encode(document.text or "")


def _check_can_learn(document: Document) -> None:
    """Refuse a document that is masked as a whole; a text of one token is only short."""
    masked = document.ids is not None and len(document.ids) > 1
    if document.messages is None and not masked:
        return
    what = "loss_mask is 0 throughout" if masked else "no assistant turn"
    raise CorpusError(f"{document.where}: {what}, so nothing is to be learnt; remove the line")


@dataclass(frozen=True)
class _Piece:
    document: int
    start: int
    tokens: Tokenized
    stop: int
    location: Location | None


def _close(pieces: Sequence[_Piece]) -> tuple[Cursor, Row]:
    ids, masks = [], []
    for p in pieces:
        ids.append(p.tokens.input_ids[p.start : p.stop])
        mask = np.zeros(p.stop - p.start, np.bool_)
        mask[:-1] = p.tokens.learn[p.start + 1 : p.stop]
        masks.append(mask)
    row = Row(
        input_ids=np.concatenate(ids).astype(np.int32),
        segment_lengths=np.array([p.stop - p.start for p in pieces], np.int32),
        documents=np.array([p.document for p in pieces], np.int64),
        label_mask=np.concatenate(masks),
    )
    return Cursor(pieces[0].document, pieces[0].start, pieces[0].location), row


def _check_ids(ids: npt.NDArray[np.int32], vocab_size: int, where: str) -> None:
    bad = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    if len(bad):
        raise CorpusError(
            f"{where}: token {bad[0]} has id {ids[bad[0]]}, but the teacher's vocabulary ends at {vocab_size - 1}; "
            "tokenizer and teacher do not belong together"
        )
