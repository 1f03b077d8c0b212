from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabels.core.rows import BEGINNING, Cursor, Row
from softlabels.corpora import Document
from softlabels.corpora.packing import CorpusCounts, Tokenized, pack
from softlabels.errors import ConfigError, CorpusError
from tests.fakes import EOS, ByteTokenizer

TOKENIZER = ByteTokenizer()
V = ByteTokenizer.vocab_size


@dataclass
class Memory:
    """A corpus of the documents it is given."""

    given: Sequence[Document]
    spec: str = "memory:"

    def documents(self) -> Iterator[Document]:
        return iter(self.given)


class BareTokenizer(ByteTokenizer):
    """Marks no end: a document may have one token, or none."""

    def encode(self, text: str) -> Tokenized:
        ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        return Tokenized(input_ids=ids, learn=np.ones(len(ids), np.bool_))


def corpus_of(texts: Sequence[str]) -> Memory:
    return Memory([Document(where=f"m:{i + 1}", text=t) for i, t in enumerate(texts)])


def packed(texts: Sequence[str], seq_len: int, **options) -> list[tuple[Cursor, Row]]:
    options = {"tokenizer": TOKENIZER, "vocab_size": V} | options
    return list(pack([corpus_of(texts)], seq_len=seq_len, **options))


def chat(*turns: tuple[str, str], where: str = "m:1") -> Document:
    messages = tuple({"role": role, "content": content} for role, content in turns)
    return Document(where=where, messages=messages)


def segments(row: Row) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(document, ids, mask) of each segment."""
    start = 0
    for document, length in zip(row.documents, row.segment_lengths, strict=True):
        stop = start + int(length)
        yield int(document), row.input_ids[start:stop], row.label_mask[start:stop]
        start = stop
    assert start == len(row.input_ids), "segment lengths do not sum to the row's length"


def same(a: tuple[Cursor, Row], b: tuple[Cursor, Row]) -> bool:
    return (
        a[0] == b[0]
        and a[1].digest() == b[1].digest()
        and np.array_equal(a[1].documents, b[1].documents)
    )


words = st.text("ab 1\né€😀", min_size=1, max_size=20).filter(str.strip)
corpora = st.lists(words, min_size=1, max_size=7)
lengths = st.integers(2, 30)


# -- nothing is lost, nothing is invented ---------------------------------------------------------


@given(corpora, lengths)
def test_every_token_but_the_first_is_a_label_once_and_in_order(texts, seq_len):
    labels: dict[int, list[int]] = {}
    for _, row in packed(texts, seq_len):
        for document, ids, mask in segments(row):
            labels.setdefault(document, []).extend(ids[np.flatnonzero(mask) + 1].tolist())
    expected = {i: TOKENIZER.encode(t).input_ids[1:].tolist() for i, t in enumerate(texts)}
    assert labels == expected


@given(corpora, lengths)
def test_rows_are_legal(texts, seq_len):
    for _, row in packed(texts, seq_len):
        assert 2 <= len(row.input_ids) <= seq_len
        assert row.segment_lengths.min() >= 2
        assert row.segment_lengths.sum() == len(row.input_ids) == len(row.label_mask)
        assert len(row.documents) == len(row.segment_lengths)
        assert not row.label_mask[np.cumsum(row.segment_lengths) - 1].any()
        assert row.input_ids.dtype == row.segment_lengths.dtype == np.int32
        assert row.documents.dtype == np.int64
        assert row.label_mask.dtype == np.bool_


@given(corpora, lengths)
def test_a_document_that_fits_is_never_split(texts, seq_len):
    pieces: dict[int, int] = {}
    for _, row in packed(texts, seq_len):
        for document, _, _ in segments(row):
            pieces[document] = pieces.get(document, 0) + 1
    for i, text in enumerate(texts):
        n = len(TOKENIZER.encode(text).input_ids)
        # A longer one takes as few pieces as pieces of seq_len tokens that overlap by one allow.
        assert pieces[i] == (1 if n <= seq_len else -(-(n - 1) // (seq_len - 1)))


@given(corpora, lengths)
def test_pieces_of_a_document_overlap_by_one_token_and_fill_whole_rows(texts, seq_len):
    last: dict[int, int] = {}
    rows = [r for _, r in packed(texts, seq_len)]
    for row in rows:
        for document, ids, _ in segments(row):
            if document in last:
                assert ids[0] == last[document]
            last[document] = int(ids[-1])
    for row, following in pairwise(rows):
        if row.documents[-1] == following.documents[0]:
            assert len(row.input_ids) == seq_len
            assert len(row.documents) == 1, "a document that is cut shares its full rows with none"


@given(corpora, lengths)
def test_a_new_row_begins_only_where_the_next_piece_does_not_fit(texts, seq_len):
    rows = [r for _, r in packed(texts, seq_len)]
    for row, following in pairwise(rows):
        if row.documents[-1] != following.documents[0]:
            document = int(following.documents[0])
            needed = len(TOKENIZER.encode(texts[document]).input_ids)
            assert needed > seq_len - len(row.input_ids)


def test_an_example():
    found = packed(["abc", "d", "efghijklm", "n"], 6)
    assert [r.input_ids.tolist() for _, r in found] == [
        [*b"abc", EOS, *b"d", EOS],
        [*b"efghij"],
        [*b"jklm", EOS],
        [*b"n", EOS],
    ]
    assert [r.segment_lengths.tolist() for _, r in found] == [[4, 2], [6], [5], [2]]
    assert [r.documents.tolist() for _, r in found] == [[0, 1], [2], [2], [3]]
    assert [c[:2] for c, _ in found] == [(0, 0), (2, 0), (2, 5), (3, 0)]
    assert found[0][1].label_mask.tolist() == [True, True, True, False, True, False]
    assert found[1][1].label_mask.tolist() == [True] * 5 + [False]


# -- packing from a cursor ------------------------------------------------------------------------


@given(st.lists(st.one_of(words, st.just(" \n")), min_size=1, max_size=7), lengths, st.data())
def test_packing_from_any_cursor_gives_the_same_following_rows(texts, seq_len, data):
    """Empty documents that are skipped keep their numbers."""
    whole = packed(texts, seq_len, skip_empty=True)
    if not whole:
        return
    for i in data.draw(st.sets(st.integers(0, len(whole) - 1), min_size=1, max_size=5)):
        again = packed(texts, seq_len, start=whole[i][0], skip_empty=True)
        assert len(again) == len(whole) - i
        assert all(same(a, b) for a, b in zip(again, whole[i:], strict=True))


def test_the_first_row_begins_at_the_beginning():
    assert packed(["abc"], 8)[0][0] == BEGINNING


@given(st.lists(corpora, min_size=1, max_size=3), lengths)
def test_several_corpora_are_one_after_the_other(parts, seq_len):
    corpora = [corpus_of(texts) for texts in parts]
    joined = packed([t for texts in parts for t in texts], seq_len)
    found = list(pack(corpora, TOKENIZER, seq_len=seq_len, vocab_size=V))
    assert len(found) == len(joined)
    assert all(same(a, b) for a, b in zip(found, joined, strict=True))


def test_documents_before_the_cursor_are_not_tokenised():
    class Counting(ByteTokenizer):
        seen = 0

        def encode(self, text: str) -> Tokenized:
            self.seen += 1
            return super().encode(text)

    tokenizer = Counting()
    texts = ["a" * 9, "b" * 9, "c" * 9]
    packed(texts, 10, tokenizer=tokenizer, start=Cursor(2, 0))
    assert tokenizer.seen == 1


# -- counts and refusals --------------------------------------------------------------------------


def test_counts():
    counts = CorpusCounts()
    texts = ["abc", "  ", "x", "", "def", "\n"]
    rows = packed(texts, 8, tokenizer=BareTokenizer(), skip_empty=True, counts=counts)
    assert counts == CorpusCounts(documents=2, skipped_empty=3, skipped_short=1)
    assert [d for _, r in rows for d in r.documents] == [0, 4]


@given(st.lists(st.sampled_from(["", " ", "x", "word", "long " * 9]), max_size=9), lengths)
def test_every_document_is_counted_once(texts, seq_len):
    counts = CorpusCounts()
    packed(texts, seq_len, tokenizer=BareTokenizer(), skip_empty=True, counts=counts)
    assert counts.skipped_empty == sum(not t.strip() for t in texts)
    assert counts.skipped_short == texts.count("x")
    assert counts.documents + counts.skipped_empty + counts.skipped_short == len(texts)


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_an_empty_text_is_refused(text):
    with pytest.raises(CorpusError, match=r"^m:2: the text is empty.*--skip-empty"):
        packed(["abc", text], 8)


def test_an_empty_conversation_is_refused_or_skipped():
    for document in (chat(), chat(("user", " "), ("assistant", ""))):
        with pytest.raises(CorpusError, match=r"^m:1: the text is empty"):
            list(pack([Memory([document])], TOKENIZER, seq_len=8, vocab_size=V))
        counts = CorpusCounts()
        rows = pack(
            [Memory([document])], TOKENIZER, seq_len=8, vocab_size=V, skip_empty=True, counts=counts
        )
        assert list(rows) == []
        assert counts.skipped_empty == 1


@pytest.mark.parametrize(("vocab_size", "bad"), [(EOS, EOS), (99, ord("c"))])
def test_an_id_outside_the_teachers_vocabulary_is_refused(vocab_size, bad):
    with pytest.raises(CorpusError, match=rf"^m:1: token \d has id {bad}.*at {vocab_size - 1};"):
        packed(["abc"], 8, vocab_size=vocab_size)


def test_a_negative_id_is_refused():
    class Broken(ByteTokenizer):
        def encode(self, text: str) -> Tokenized:
            ids = np.array([1, -1, 2], np.int32)
            return Tokenized(input_ids=ids, learn=np.ones(3, np.bool_))

    with pytest.raises(CorpusError, match=r"^m:1: token 1 has id -1"):
        packed(["abc"], 8, tokenizer=Broken())


@pytest.mark.parametrize("seq_len", [1, 0, -3])
def test_a_row_of_one_token_is_refused(seq_len):
    with pytest.raises(ConfigError, match=rf"--seq-len {seq_len}: a row needs 2 tokens"):
        packed(["abc"], seq_len)


# -- chats ----------------------------------------------------------------------------------------

turns = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text("abc é", max_size=12)),
    max_size=6,
)


@given(st.lists(st.tuples(turns, st.text("xyz", min_size=1)), min_size=1, max_size=4), lengths)
def test_only_assistant_tokens_of_a_chat_are_labels(chats, seq_len):
    documents = [chat(*before, ("assistant", last)) for before, last in chats]
    rows = list(pack([Memory(documents)], TOKENIZER, seq_len=seq_len, vocab_size=V))
    labels: dict[int, list[int]] = {}
    tokens: dict[int, list[int]] = {}
    for _, row in rows:
        for document, ids, mask in segments(row):
            labels.setdefault(document, []).extend(ids[np.flatnonzero(mask) + 1].tolist())
            seen = tokens.setdefault(document, [])
            seen.extend(ids[1:].tolist() if seen else ids.tolist())
    for i, document in enumerate(documents):
        answers = [m["content"] + "\n" for m in document.messages if m["role"] == "assistant"]
        assert bytes(labels[i]).decode() == "".join(answers)
        whole = TOKENIZER.encode_chat(document.messages, where="").input_ids
        assert tokens[i] == whole.tolist(), "what is not learnt is still read"


def test_a_label_whose_predictor_lies_in_the_row_before_is_not_lost():
    """The assistant's first token begins a new row: the piece before must not claim it, the next must."""
    document = chat(("user", "1234"), ("assistant", "ab"))  # u:1234\na:ab\n
    rows = [r for _, r in pack([Memory([document])], TOKENIZER, seq_len=9, vocab_size=V)]
    assert [bytes(r.input_ids.tolist()) for r in rows] == [b"u:1234\na:", b":ab\n"]
    assert rows[0].label_mask.sum() == 0
    assert bytes(rows[1].labels.tolist()) == b"ab\n"


def test_a_conversation_without_an_assistant_is_refused():
    document = chat(("user", "hello"), ("user", "anyone?"), where="chats.jsonl:7")
    with pytest.raises(CorpusError, match=r"^chats.jsonl:7: no assistant turn"):
        list(pack([Memory([document])], TOKENIZER, seq_len=64, vocab_size=V))
