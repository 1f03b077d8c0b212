"""Texts tokenised ahead: the same rows and the same errors as one by one, and little is read that nobody asks for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabels.corpora import Corpus, Document
from softlabels.corpora.ahead import CHARACTERS, MOST, BatchTokenizer
from softlabels.corpora.packing import CorpusCounts, Tokenized, pack
from softlabels.errors import CorpusError
from tests.fakes import ByteTokenizer


class Batches(ByteTokenizer):
    """Counts, and refuses a text with a mark."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []

    def encode(self, text: str) -> Tokenized:
        if "\0" in text:
            raise ValueError(f"no {text!r}")
        return super().encode(text)

    def encode_texts(self, texts: list[str]) -> list[Tokenized]:
        self.batches.append(list(texts))
        return [self.encode(text) for text in texts]


@dataclass
class Listed(Corpus):
    """Documents of a list; None is a record that cannot be read."""

    texts: list[str | None]
    spec: str = "listed:"
    taken: int = 0

    def documents(self) -> Iterator[Document]:
        for i, text in enumerate(self.texts):
            self.taken = i + 1
            if text is None:
                raise CorpusError(f"listed:{i}: broken")
            if text.startswith("?"):
                yield Document(where=f"listed:{i}", prompt=text, completion=text or None)
            else:
                yield Document(where=f"listed:{i}", text=text)


def packed(texts, *, ahead: bool):
    """What comes of a pass: rows, counts, and how it ended."""
    rows, counts, ended = [], CorpusCounts(), ""
    try:
        for cursor, row in pack(
            [Listed(texts)],
            Batches(),
            seq_len=12,
            vocab_size=300,
            skip_empty=True,
            counts=counts,
            ahead=ahead,
        ):
            rows.append((cursor, row.digest(), counts.documents, counts.skipped_empty))
    except (CorpusError, ValueError) as e:
        ended = str(e)
    return rows, counts, ended


TEXTS = st.one_of(
    st.text("ab", max_size=30),
    st.sampled_from(["", "?prompt", None, "a\0", "x" * 40]),
)


@given(st.lists(TEXTS, max_size=40))
def test_rows_counts_and_errors_are_those_of_one_by_one(texts):
    assert packed(texts, ahead=True) == packed(texts, ahead=False)


def test_who_takes_a_few_rows_has_few_documents_read():
    corpus, tokenizer = Listed(["0123456789"] * 1000), Batches()
    rows = pack([corpus], tokenizer, seq_len=12, vocab_size=300, ahead=True)
    assert corpus.taken == 0
    assert len(list(islice(rows, 10))) == 10
    assert corpus.taken <= 24
    assert [len(batch) for batch in tokenizer.batches] == [1, 2, 4, 8]


def test_batches_are_bounded():
    long = "x" * (CHARACTERS // 4 + 1)
    tokenizer = Batches()
    texts = ["short"] * (3 * MOST) + [long] * 10
    rows = pack([Listed(texts)], tokenizer, seq_len=CHARACTERS, vocab_size=300, ahead=True)
    assert sum(len(row.segment_lengths) for _, row in rows) == len(texts)
    assert max(map(len, tokenizer.batches)) == MOST
    assert max(sum(map(len, batch)) for batch in tokenizer.batches) < 2 * CHARACTERS


def test_a_tokenizer_that_takes_one_text_at_a_time_is_not_asked_for_more():
    assert not isinstance(ByteTokenizer(), BatchTokenizer)
    rows = pack([Listed(["ab"])], ByteTokenizer(), seq_len=12, vocab_size=300, ahead=True)
    assert len(list(rows)) == 1


def test_the_error_of_a_text_names_it_after_the_rows_before():
    rows = pack(
        [Listed(["0123456789"] * 5 + ["\0"])], Batches(), seq_len=12, vocab_size=300, ahead=True
    )
    assert len(list(islice(rows, 4))) == 4
    with pytest.raises(ValueError, match="no"):
        next(rows)
