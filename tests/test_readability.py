"""Sentences of the pages stay short: what was counted, and what would be counted."""

from __future__ import annotations

import re

import click

from tests.page_ground import MAINS
from tests.readability import LONGEST, counts, long_sentences, sentences

BEFORE = 146
"""Sentences of more than 30 words in all pages before they were edited (`python -m tests.readability`)."""


def test_less_than_half_of_the_long_sentences_are_left():
    found = counts()
    assert sum(found.values()) <= BEFORE // 2, sorted(found.items(), key=lambda x: -x[1])[:5]


def test_what_a_long_sentence_is():
    long = " ".join(["word"] * 31) + "."
    assert long_sentences(f"# {long}\n\n{long} Short.\n\n- {long}\n- Short.\n\n| {long} |\n") == [
        long,
        long,
    ]
    assert long_sentences(f"```sh\n{long}\n```\n<!-- {long} -->\n") == []
    assert sentences("See [a page](x.md). `a. B` is 1.5 of it. Next") == [
        "See a page.",
        "CODE is 1.5 of it.",
        "Next",
    ]


def test_no_sentence_of_a_help_text_is_long():
    texts = [
        (f"{program} {verb} {parameter.opts}", parameter.help or "")
        for program, main in MAINS.items()
        for verb, command in main.commands.items()
        for parameter in command.params
        if isinstance(parameter, click.Option)
    ]
    assert len(texts) > 300
    parts = [(name, s) for name, text in texts for s in re.split(r"(?<=[.!?])\s+", text)]
    assert [name for name, sentence in parts if len(sentence.split()) > LONGEST] == []
