"""The tokenizer of an encoder: texts, pieces of texts and words to ids, with the marks at their ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.errors import ConfigError
from softlabels.teachers.tokenizer import FastTokenizer

SPECIAL = ("cls", "sep", "pad", "mask", "unk", "bos", "eos")


class EncoderTokenizer(FastTokenizer):
    """Wraps a fast tokenizer; a text comes with the marks at its ends.

    Args:
        tokenizer: of transformers.
        longest: tokens that the model can read at a time, if that is limited.
    """

    def __init__(self, tokenizer: Any, *, longest: int | None = None) -> None:
        super().__init__(tokenizer, SPECIAL)
        self._longest = longest

    def encode_text(self, text: str, *, most: int) -> tuple[npt.NDArray[np.int32], int]:
        """At most so many tokens `[S] int32` with the marks at their ends, and how many the whole text has."""
        kept, length = self._cut(text, most)
        return np.array(kept["input_ids"], np.int32), length

    def encode_pieces(self, text: str, *, most: int) -> list[npt.NDArray[np.int32]]:
        """The whole text in pieces of at most so many tokens `[S] int32`, each with the marks at its ends."""
        self._check_room(most)
        pieces = self._tokenizer(
            text,
            add_special_tokens=True,
            truncation=True,
            max_length=most,
            return_overflowing_tokens=True,
        )["input_ids"]
        self._check_length(max(map(len, pieces)))
        return [np.array(ids, np.int32) for ids in pieces]

    def encode_words(
        self, words: Sequence[str], *, most: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], int]:
        """At most so many tokens `[S] int32`, the word of each `[S] int32` (-1: a mark), and how many there are."""
        self._check_room(most)
        kept, length = self._cut(list(words), most, is_split_into_words=True)
        of_word = [-1 if w is None else w for w in kept.word_ids()]
        return np.array(kept["input_ids"], np.int32), np.array(of_word, np.int32), length

    def _cut(self, text: str | list[str], most: int, **settings: Any) -> tuple[Any, int]:
        """At most so many tokens with their marks, and how many the whole has."""
        kept = self._tokenizer(text, add_special_tokens=True, **settings)
        length = len(kept["input_ids"])
        if length > most:
            settings |= {"truncation": True, "max_length": most}
            kept = self._tokenizer(text, add_special_tokens=True, **settings)
        self._check_length(len(kept["input_ids"]))
        return kept, length

    def _check_length(self, length: int) -> None:
        if self._longest is not None and length > self._longest:
            raise ConfigError(
                f"a row of {length} tokens is longer than the {self._longest} that the teacher can read; lower "
                f"--seq-len to {self._longest}"
            )

    def _check_room(self, most: int) -> None:
        marks = self._tokenizer.num_special_tokens_to_add(pair=False)
        if most <= marks:
            raise ConfigError(
                f"--seq-len {most}: the tokenizer's {marks} marks leave no room for a token; expected at least "
                f"{marks + 1}"
            )
