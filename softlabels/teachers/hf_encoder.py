"""`hf:PATH` for texts as a whole: an encoder with a head over classes or tokens, as transformers loads it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from softlabels.devices import choose
from softlabels.domains.text import TextRow
from softlabels.errors import ConfigError, TeacherError
from softlabels.registry import without_folder
from softlabels.store.identity import TokenizerRecord
from softlabels.teachers import MIB, TeacherOptions
from softlabels.teachers.hf_masked import HFMaskedTeacher
from softlabels.teachers.hf_source import HFSource, pad_texts

__all__ = ["EncoderTokenizer", "HFEncoderTeacher", "load_hf_encoder"]

HEADS = {
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
"""Domain and the class of transformers that loads its models."""
SPECIAL = ("cls", "sep", "pad", "mask", "unk", "bos", "eos")


def load_hf_encoder(
    path: str, options: TeacherOptions, transformers: Any, weights_sha256: str
) -> HFEncoderTeacher | HFMaskedTeacher:
    """Load model and tokenizer of a folder.

    Args:
        path: the folder.
        options: how to run it; its domain is a key of `HEADS`.
        transformers: the module.
        weights_sha256: of the folder's weights.

    Raises:
        TeacherError: it cannot be loaded, its head is not in the folder, or it is not a classifier where one is asked
            for.
    """
    choice = choose(options.device, options.dtype)
    options.notice(f"teacher: {choice.reason}")
    loader = getattr(transformers, HEADS[options.domain])
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        model, loading = loader.from_pretrained(path, dtype=choice.dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise TeacherError(f"hf:{path}: transformers cannot load it: {e}") from e
    if loading["missing_keys"]:
        raise TeacherError(
            f"hf:{path}: the folder has no weights for {sorted(loading['missing_keys'])[0]}, so a "
            f"{type(model).__name__} would guess at random; fine-tune it first, and give the folder of that model"
        )
    model = model.to(choice.device).eval()
    longest = getattr(model.config, "max_position_embeddings", None)
    source = HFSource(
        spec=without_folder(f"hf:{path}"),
        name=Path(path).resolve().name,
        weights_sha256=weights_sha256,
        engine=f"transformers {transformers.__version__}, torch {torch.__version__}",
    )
    if options.domain == "masked-lm":
        budget = options.head_bytes or (256 if choice.device.type == "cuda" else 16) * MIB
        return HFMaskedTeacher(
            model, EncoderTokenizer(tokenizer, longest=longest), source, head_bytes=budget
        )
    _check_classifier(model, path)
    return HFEncoderTeacher(model, EncoderTokenizer(tokenizer, longest=longest), source)


def _check_classifier(model: Any, path: str) -> None:
    if getattr(model.config, "problem_type", None) in ("regression", "multi_label_classification"):
        raise TeacherError(
            f"hf:{path}: its head is one of {model.config.problem_type}, which gives no distribution over classes; "
            "soft targets are for classifiers of one class among several"
        )
    if model.config.num_labels < 2:
        raise TeacherError(
            f"hf:{path}: its head has one output: a regression, which gives no distribution over classes; soft targets "
            "are for classifiers"
        )


class EncoderTokenizer:
    """Wraps a fast tokenizer; a text comes with the marks at its ends.

    Args:
        tokenizer: of transformers.
        longest: tokens that the model can read at a time, if that is limited.
    """

    def __init__(self, tokenizer: Any, *, longest: int | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise TeacherError(
                "the teacher's tokenizer has no fast version, whose serialised form names it; convert it to "
                "tokenizer.json"
            )
        self._tokenizer, self._longest = tokenizer, longest
        self.vocab_size = len(tokenizer)
        tokenizer.model_max_length = int(
            1e30
        )  # it would only warn of lengths that are handled here
        special = {name: getattr(tokenizer, f"{name}_token_id") for name in SPECIAL}
        serialised = tokenizer.backend_tokenizer.to_str() + "\n"
        self.record = TokenizerRecord(
            sha256=hashlib.sha256(serialised.encode()).hexdigest(),
            vocab_size=self.vocab_size,
            special_ids={n: int(i) for n, i in special.items() if i is not None},
        )

    def files(self) -> Mapping[str, bytes]:
        """`tokenizer.json` and what else `save_pretrained` writes."""
        with tempfile.TemporaryDirectory() as folder:
            self._tokenizer.save_pretrained(folder)
            paths = [p for p in Path(folder).iterdir() if p.is_file()]
            return {p.name: p.read_bytes() for p in sorted(paths)}

    def encode_text(self, text: str, *, most: int) -> tuple[npt.NDArray[np.int32], int]:
        """At most so many tokens `[S] int32` with the marks at their ends, and how many the whole text has."""
        whole = self._tokenizer(text, add_special_tokens=True)["input_ids"]
        ids = whole
        if len(whole) > most:
            ids = self._tokenizer(text, add_special_tokens=True, truncation=True, max_length=most)[
                "input_ids"
            ]
        self._check_length(len(ids))
        return np.array(ids, np.int32), len(whole)

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
        settings: dict[str, Any] = {"is_split_into_words": True, "add_special_tokens": True}
        whole = self._tokenizer(list(words), **settings)
        length, kept = len(whole["input_ids"]), whole
        if length > most:
            kept = self._tokenizer(list(words), truncation=True, max_length=most, **settings)
        self._check_length(len(kept["input_ids"]))
        of_word = [-1 if w is None else w for w in kept.word_ids()]
        return np.array(kept["input_ids"], np.int32), np.array(of_word, np.int32), length

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


class HFEncoderTeacher:
    """An encoder of transformers with a head over classes."""

    def __init__(
        self,
        model: Any,
        tokenizer: EncoderTokenizer,
        source: HFSource,
    ) -> None:
        self._model, self.tokenizer = model, tokenizer
        self.device = next(model.parameters()).device
        config = model.config
        self.classes = tuple(str(config.id2label[i]) for i in range(config.num_labels))
        self.record = source.record(model, vocab_size=config.num_labels)
        if tokenizer.vocab_size > config.vocab_size:
            raise TeacherError(
                f"{source.spec}: the tokenizer has {tokenizer.vocab_size} ids, the model only {config.vocab_size}; "
                "they do not belong together"
            )

    @torch.no_grad()
    def logits(self, rows: Sequence[TextRow]) -> Iterator[Tensor]:
        """One chunk `[N, C] float32`: of the texts, or of the words in them."""
        padded, ids, mask = pad_texts(rows, self.device)
        logits = self._model(input_ids=ids, attention_mask=mask).logits
        if logits.dim() == 3:
            flat = torch.from_numpy(padded.flat_positions).to(self.device)
            logits = logits.flatten(0, 1).index_select(0, flat)
        yield logits.float()
