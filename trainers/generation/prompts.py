"""Where a student begins: lines of text, JSON lines, or the first tokens of what a store's rows hold, as token ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from softlabels.core.rows import Row
from softlabels.errors import CorpusError, RunError, TokenizerError
from softlabels.store.reader import open_store
from softlabels.store.tokenizer_process import ChatTemplate, TokenizerProcess

Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]


class Prompt(NamedTuple):
    """What one or more sequences begin with."""

    ids: npt.NDArray[np.int64]
    """`[L]`, at least one."""
    messages: list[dict[str, Any]] | None
    """The conversation that an assistant's turn is to follow; None of plain text."""
    tools: tuple[dict[str, Any], ...] = ()
    """What the assistant may call in it."""


class Words:
    """The tokenizer that a run's student was saved with, used as the builder used it."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer
        from transformers import AutoTokenizer

        if not (folder / "tokenizer.json").is_file():
            raise RunError(
                f"{folder}: holds no tokenizer.json (a run whose --vocab renumbers ids has none), so no text can be "
                "read "
                "or written"
            )
        file = folder / "tokenizer.json"
        data = file.read_bytes()
        TokenizerProcess(data, where=file).close()  # it may be of a store from anywhere
        try:
            self.inner: Any = AutoTokenizer.from_pretrained(folder)
        except ValueError as e:
            raise RunError(f"{folder}: its tokenizer cannot be loaded ({e})") from e
        if self.inner.get_vocab() != Tokenizer.from_buffer(data).get_vocab():
            raise RunError(  # a file that cannot be looked at is, to the library, one that is not there
                f"{file}: was not read whole; run the same command again"
            )
        self.inner.model_max_length = int(1e30)
        self.end: int | None = self.inner.eos_token_id
        self._template: ChatTemplate | None = None

    def encode(self, text: str) -> list[int]:
        """A text's tokens with the special ones that begin it, without the end mark."""
        ids = [int(i) for i in self.inner(text, add_special_tokens=True)["input_ids"]]
        return ids[:-1] if ids and ids[-1] == self.end else ids

    def encode_chat(
        self, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()
    ) -> list[int]:
        """A conversation's tokens, up to where the assistant begins to speak."""
        if self._template is None:
            named = {k: str(v) for k, v in self.inner.special_tokens_map.items()}
            source = self.inner.get_chat_template()
            self._template = ChatTemplate(source, named, where="the student's chat template")
        text = self._template.render(messages, tools)
        return [int(i) for i in self.inner(text, add_special_tokens=False)["input_ids"]]

    def decode(self, ids: npt.NDArray[np.int64]) -> str:
        """Text without special tokens."""
        return str(
            self.inner.decode(
                ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


def read_prompts(path: Path, words: Words, *, prompt_tokens: int) -> Iterator[Prompt]:
    """Prompts in order.

    Args:
        path: a store, of whose rows each document's piece gives its beginning (`_beginning`); `.jsonl`, with
            `{"prompt": text}` or `{"messages": [...]}` (and `"tools"`) in each line; else text, each line a prompt.
        words: the student's tokenizer.
        prompt_tokens: of a store's texts only.

    Raises:
        CorpusError: names the line.
        RunError: a store of another tokenizer.
    """
    if path.is_dir():
        yield from _beginnings(path, words, prompt_tokens)
        return
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise CorpusError(f"--prompts {path}: cannot be read as UTF-8 text ({e})") from e
    if not lines:
        raise CorpusError(f"--prompts {path}: is empty")
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        prompt = _record(line, where, words) if path.suffix == ".jsonl" else _text(line, words)
        if not len(prompt.ids):
            raise CorpusError(f"{where}: the prompt has no token; remove the line")
        yield prompt


def _text(text: str, words: Words) -> Prompt:
    return Prompt(np.array(words.encode(text) if text.strip() else [], np.int64), None)


def _record(line: str, where: str, words: Words) -> Prompt:
    try:
        record = json.loads(line)
    except ValueError as e:
        raise CorpusError(f"{where}: not a JSON object ({e}); correct or remove the line") from e
    prompt = record.get("prompt") if isinstance(record, dict) else None
    messages = record.get("messages") if isinstance(record, dict) else None
    if isinstance(prompt, str) and messages is None:
        return _text(prompt, words)
    listed = isinstance(messages, list) and all(isinstance(m, dict) for m in messages)
    if not listed or not messages or prompt is not None:
        raise CorpusError(
            f'{where}: expected an object with either a string "prompt" or a list "messages"'
        )
    if messages[-1].get("role") == "assistant":
        raise CorpusError(f"{where}: the assistant has spoken last; leave its turn to the student")
    tools = record.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools):
        raise CorpusError(f'{where}: "tools" is no list of objects, each a tool')
    try:
        ids = np.array(words.encode_chat(messages, tools), np.int64)
        return Prompt(ids, messages, tuple(tools))
    except (TokenizerError, ValueError) as e:  # ValueError: there is no template
        raise CorpusError(f"{where}: the chat template refuses the conversation: {e}") from e


def _beginnings(path: Path, words: Words, prompt_tokens: int) -> Iterator[Prompt]:
    store = open_store(path)
    for i in range(len(store)):
        row = store.row(i).row
        if not isinstance(row, Row):
            raise RunError(
                f"--prompts {path}: is a store of {store.identity.domain}; expected causal-lm"
            )
        stops = np.cumsum(row.segment_lengths)
        for stop, length in zip(stops.tolist(), row.segment_lengths.tolist(), strict=True):
            piece = slice(stop - length, stop)
            ids = _beginning(
                row.input_ids[piece], row.label_mask[piece], prompt_tokens, end=words.end
            )
            if len(ids):
                yield Prompt(ids.astype(np.int64), None)


def _beginning(ids: Int32, mask: Bool, prompt_tokens: int, *, end: int | None) -> Int32:
    """What a student is to go on from: `[L]`, the first tokens of a document's piece `[S]`.

    - Of a text, `prompt_tokens` of them. The mark that ends a document is none: nothing comes after it.
    - Where the first tokens are not learnt (`mask[t]`: token t+1 is), all of these: a conversation up to where the
      assistant first speaks, a prompt up to its completion. Fewer would be the same header of every conversation.
    - Nothing of a piece in which nothing is learnt: there, others speak.
    """
    if len(mask) > 1 and not mask[0]:
        learnt = np.flatnonzero(mask)
        return ids[: learnt[0] + 1] if len(learnt) else ids[:0]
    if len(ids) > 1 and ids[-1] == end:
        ids = ids[:-1]
    return ids[:prompt_tokens]
