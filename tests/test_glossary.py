"""The glossary has each word of ours that a help text uses."""

from __future__ import annotations

import re

from tests.blocks import text_of

OURS = (
    "acceptance",
    "adapter",
    "address",
    "alpha",
    "builder",
    "card",
    "checkpoint",
    "codec",
    "container",
    "content digest",
    "corpus",
    "dense",
    "dictionary",
    "digest",
    "document",
    "domain",
    "draw",
    "EMA",
    "estimator",
    "fake-quant",
    "forgetting",
    "generation",
    "grid",
    "hard loss",
    "head",
    "held-out store",
    "hidden states",
    "inputs",
    "job",
    "KL",
    "label",
    "lanes",
    "manifest",
    "mask",
    "nat",
    "open",
    "order",
    "packed",
    "padding",
    "part",
    "peak",
    "position",
    "profile",
    "reference",
    "release",
    "row",
    "rs",
    "run",
    "sampled",
    "shard",
    "share",
    "soft loss",
    "soft target",
    "states",
    "store",
    "student",
    "summary",
    "systematic",
    "tail",
    "target",
    "teacher",
    "temperature",
    "top-p",
    "view",
    "vocabulary",
    "weight",
    "wide",
)
"""What this project means by a word, or the field does, that some `--help` uses. Add yours; `--help` is docs/cli.md."""
ENTRY = re.compile(r"^\| (\*\*.*?) \| (.*) \|$", re.MULTILINE)


def entries() -> dict[str, str]:
    return {
        word: meaning
        for words, meaning in ENTRY.findall(text_of("glossary.md"))
        for word in re.findall(r"\*\*(.*?)\*\*", words)
    }


def test_each_word_of_ours_is_in_the_glossary():
    assert set(OURS) - {re.sub(r" \(.*\)", "", w) for w in entries()} == set()


def test_an_entry_is_a_sentence_or_two():
    for word, meaning in entries().items():
        sentences = re.findall(r"[.!?](?:\s|$)", meaning)
        assert 1 <= len(sentences) <= 3, word
        assert len(meaning.split()) <= 40, word


def test_entries_are_in_order():
    words = [
        re.findall(r"\*\*(.*?)\*\*", w)[0].lower() for w, _ in ENTRY.findall(text_of("glossary.md"))
    ]
    assert words == sorted(words)


def test_the_list_names_words_of_help_texts():
    """No word is on the list that no help text has: a list that only grows says nothing."""
    helps = text_of("cli.md").lower()
    spelled = {"acceptance": "accept"}
    unused = [w for w in OURS if spelled.get(w, w).lower() not in helps]
    assert unused == []
