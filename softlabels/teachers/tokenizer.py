"""A Hugging Face tokenizer as packing wants it, checked against what its file declares."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.core.local_model import offline_transformers
from softlabels.corpora import Message, Tool
from softlabels.corpora.packing import Tokenized
from softlabels.errors import CorpusError, TeacherError
from softlabels.format.identity import TeacherRecord, TokenizerRecord
from softlabels.store.tokenizer_files import read_files
from softlabels.teachers import TeacherTokenizer

VERIFIED_PRE_TOKENIZERS = frozenset({"gpt-2"})
"""GGUF pre-tokenizers that transformers rebuilds as declared."""


def repair_pre_tokenizer(
    tokenizer: Any, declared: str | None, notice: Callable[[str], None]
) -> None:
    """Make a tokenizer loaded from GGUF split text as its file declares.

    transformers rebuilds every byte-level GGUF tokenizer with GPT-2's splitting rule. Where the file
    declares another rule that is known here it is put in place; where it isn't, the user is told.
    """
    if declared is None or declared in VERIFIED_PRE_TOKENIZERS:
        return
    if declared == "smollm":
        from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [
                Digits(individual_digits=True),
                ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
            ]
        )
        notice(
            "tokenizer: the GGUF declares pre-tokenizer 'smollm'; its digit splitting was restored"
        )
        return
    notice(
        f"warning: the GGUF declares pre-tokenizer {declared!r}, which may not be what was loaded; compare a few "
        "texts with the original tokenizer, or load the teacher from a folder with tokenizer.json"
    )


def load_tokenizer(folder: Path, *, spec: str) -> HFTokenizer:
    """The tokenizer of a local folder, for back-ends whose model does not bring one.

    Raises:
        TeacherError: there is none.
        MissingExtraError: transformers is not installed.
    """
    if not (folder / "tokenizer.json").is_file():
        raise TeacherError(
            f"{spec}: {folder} holds no tokenizer.json; copy the model's tokenizer there, or name its folder with "
            "?tokenizer=PATH where the back-end has it"
        )
    transformers = offline_transformers(f"the tokenizer of --teacher {spec}")
    try:
        return HFTokenizer(transformers.AutoTokenizer.from_pretrained(folder))
    except (OSError, ValueError, KeyError) as e:
        raise TeacherError(f"{spec}: the tokenizer in {folder} cannot be loaded: {e}") from e


def check_covers(ids: int, record: TeacherRecord) -> None:
    """Refuse a head that has not one logit for each of the tokenizer's ids with a `TeacherError`."""
    if ids > record.vocab_size:
        raise TeacherError(
            f"{record.spec}: the tokenizer has {ids} ids, the head only {record.vocab_size}; "
            "they do not belong together"
        )


class FastTokenizer(TeacherTokenizer):
    """Wraps a fast tokenizer of transformers.

    Args:
        tokenizer: of transformers.
        special: names of the special tokens that the record lists.
    """

    def __init__(self, tokenizer: Any, special: Sequence[str]) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise TeacherError(
                "the teacher's tokenizer has no fast version, whose serialised form names it, and whose offsets mask "
                "chats; convert it to tokenizer.json"
            )
        self._tokenizer = tokenizer
        self.vocab_size = len(tokenizer)
        tokenizer.model_max_length = int(1e30)  # it would only warn of lengths that are handled
        ids = {name: getattr(tokenizer, f"{name}_token_id") for name in special}
        serialised = tokenizer.backend_tokenizer.to_str() + "\n" + self._template()
        self.record = TokenizerRecord(
            sha256=hashlib.sha256(serialised.encode()).hexdigest(),
            vocab_size=self.vocab_size,
            special_ids={n: int(i) for n, i in ids.items() if i is not None},
        )

    def _template(self) -> str:
        """What else decides how inputs become ids."""
        return ""

    def files(self) -> Mapping[str, bytes]:
        """`tokenizer.json` and what else `save_pretrained` writes."""
        with tempfile.TemporaryDirectory() as folder:
            self._tokenizer.save_pretrained(folder)
            return read_files(Path(folder))


class HFTokenizer(FastTokenizer):
    """Documents of causal LMs, chats included."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, ("bos", "eos", "pad", "unk"))

    def _template(self) -> str:
        template = self._tokenizer.chat_template
        if isinstance(template, str | None):
            return template or ""
        return str(sorted(template.items()))

    def encode(self, text: str) -> Tokenized:
        """The tokenizer's own special tokens, and an end-of-text token if it has one."""
        return self._ended(self._tokenizer(text, add_special_tokens=True)["input_ids"])

    def encode_texts(self, texts: Sequence[str]) -> list[Tokenized]:
        """What `encode` gives for each; on all cores, unless `TOKENIZERS_PARALLELISM` or `RAYON_NUM_THREADS` says less.

        A class that is derived from this one, and has its own `encode`, is asked for one after the other.
        """
        if type(self).encode is not HFTokenizer.encode:
            return [self.encode(text) for text in texts]
        if not texts:
            return []
        return [
            self._ended(ids)
            for ids in self._tokenizer(list(texts), add_special_tokens=True)["input_ids"]
        ]

    def _ended(self, ids: Sequence[int]) -> Tokenized:
        eos = self._tokenizer.eos_token_id
        if eos is not None and (not ids or ids[-1] != eos):
            ids = [*ids, eos]
        array = np.array(ids, np.int32)
        return Tokenized(input_ids=array, learn=np.ones(len(array), np.bool_))

    def encode_completion(self, prompt: str, completion: str) -> Tokenized:
        """As `encode`; tokens that hold anything of the completion are learnt, and the end-of-text token."""
        encoded = self._tokenizer(
            prompt + completion, add_special_tokens=True, return_offsets_mapping=True
        )
        ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        eos = self._tokenizer.eos_token_id
        if eos is not None and (not ids or ids[-1] != eos):
            ids.append(eos)
            offsets.append((0, 0))
        learn = np.array([stop > len(prompt) for _, stop in offsets], np.bool_)
        learn[-1:] |= ids[-1] == eos
        return Tokenized(input_ids=np.array(ids, np.int32), learn=learn)

    def encode_chat(
        self, messages: Sequence[Message], *, where: str, tools: Sequence[Tool] = ()
    ) -> Tokenized:
        """Tokens of assistant turns are learnt: content, calls of tools and end-of-turn mark, not the header before."""
        if self._tokenizer.chat_template is None:
            raise CorpusError(
                f'{where}: holds messages, but the teacher\'s tokenizer has no chat template; use "text" records'
            )
        text = self._render(messages, where=where, tools=tools)
        if tools and text == self._render(messages, where=where):
            raise CorpusError(
                f'{where}: the chat template leaves "tools" out, so the teacher would not read them; take a teacher '
                "that calls tools, or remove them from the records"
            )
        _check_arguments(text, messages, where=where)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:i], where=where, tools=tools, prompt=True)
            after = self._render(messages[: i + 1], where=where, tools=tools).rstrip()
            if not (text.startswith(after) and after.startswith(before)):
                raise CorpusError(
                    f"{where}: the chat template renders message {i} differently once more messages follow, so its "
                    'tokens cannot be told apart; render the conversation to "text" yourself'
                )
            if message.get("tool_calls"):
                bare = {k: v for k, v in message.items() if k != "tool_calls"}
                turns = [*messages[:i], bare]
                if self._render(turns, where=where, tools=tools).rstrip() == after:
                    raise CorpusError(
                        f'{where}: the chat template leaves the "tool_calls" of message {i} out; take a teacher that '
                        'calls tools, or write the calls into "content" yourself'
                    )
            spans.append((len(before), len(after)))
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.array(encoded["input_ids"], np.int32)
        offsets = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2)
        return Tokenized(input_ids=ids, learn=_inside(offsets, spans))

    def _render(
        self,
        messages: Sequence[Message],
        *,
        where: str,
        tools: Sequence[Tool] = (),
        prompt: bool = False,
    ) -> str:
        if not messages:  # an assistant that speaks first: templates refuse an empty conversation
            return ""
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    tools=list(tools) or None,
                    tokenize=False,
                    add_generation_prompt=prompt,
                )
            )
        except Exception as e:  # a template is the model's own program and may raise anything
            raise CorpusError(f"{where}: the chat template refuses the conversation: {e}") from e


def _check_arguments(text: str, messages: Sequence[Message], *, where: str) -> None:
    """Refuse arguments of a call that are JSON in a string, as servers give them, where the template quotes them.

    Most templates of transformers write them as JSON themselves; a string comes out as one, which no model calls a tool
    with.
    """
    for i, message in enumerate(messages):
        for call in message.get("tool_calls") or ():
            function = call.get("function", call) if isinstance(call, dict) else {}
            given = function.get("arguments") if isinstance(function, dict) else None
            if not isinstance(given, str) or not given.lstrip().startswith("{"):
                continue
            if any(json.dumps(given, ensure_ascii=ascii) in text for ascii in (False, True)):
                raise CorpusError(
                    f'{where}: message {i} calls a tool with "arguments" that are a string, which the chat template '
                    "writes as a quoted string; give them as a JSON object"
                )


def _inside(
    offsets: npt.NDArray[np.int64], spans: Sequence[tuple[int, int]]
) -> npt.NDArray[np.bool_]:
    """Which tokens begin inside one of the character spans."""
    learn = np.zeros(len(offsets), np.bool_)
    for start, stop in spans:
        learn |= (offsets[:, 0] >= start) & (offsets[:, 0] < stop)
    return learn
