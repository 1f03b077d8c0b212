"""One record of a corpus to one document: what the kinds of records are called, and what each is checked for.

JSON lines, Parquet and saved datasets all come through here, so that a kind is known to all of them or to none.

    {"text": …}                                 a text; with "label", the name or number of its class
    {"messages": [{"role", "content"}, …]}      a conversation, rendered with the teacher's chat template; with "tools",
                                                those that the assistant may call
    {"words": […], "labels": […]}               a text in words, each with a class
    {"prompt": …, "completion": …}              a text of which only the completion is learnt; no template
    {"source": …, "target": …}                  the same, also for an encoder and a decoder
    {"conversations": [{"from", "value"}, …]}   ShareGPT's conversation
    {"instruction", "input", "output"}          Alpaca's: one turn of a user, one of an assistant

A record that has one of the first three is of that kind, whatever else it holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softlabels.corpora import Document, Message, Tool
from softlabels.errors import CorpusError

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of record."""

    needs: tuple[str, ...]
    """Fields that say it is of this kind."""
    may: tuple[str, ...]
    """Fields that it may have besides; the others are not read."""
    make: Callable[[Fields, str], Document]
    """Of the fields, and where the record stands; raises a CorpusError that begins with that."""
    first: bool = False
    """Whether a record of this kind is of no other."""
    called: str = ""
    """What people call it."""

    def mapping(self, names: Collection[str]) -> str:
        """In words, what is read of a record with fields of these names, and what is not."""
        read = [n for n in (*self.needs, *self.may) if n in names]
        left = sorted(set(names) - set(read))
        said = f"{self.called}: reads {', '.join(read)}"
        return f"{said}; leaves {', '.join(left[:8])}" if left else said

    def __str__(self) -> str:
        return " and ".join(f'"{name}"' for name in self.needs)


def kind_of(names: Collection[str], kinds: Sequence[Kind], where: str) -> Kind:
    """The kind of a record with fields of these names; `CorpusError` if it is of none, or of several."""
    fitting = [k for k in kinds if all(n in names for n in k.needs)]
    fitting = [k for k in fitting if k.first] or fitting
    if len(fitting) == 1:
        return fitting[0]
    found = f"found {sorted(names)[:12]}"
    if fitting:
        raise CorpusError(
            f"{where}: could be {' or '.join(map(str, fitting))}; expected fields of one kind only, {found}"
        )
    *most, last = map(str, kinds)
    raise CorpusError(f"{where}: expected {'; '.join(most)}; or {last}, {found}")


def _text(record: Fields, where: str) -> Document:
    text = _string(record, "text", where)
    return Document(where=where, text=text, label=_label(record.get("label"), where))


def _messages(record: Fields, where: str) -> Document:
    messages = _checked(record["messages"], where)
    return Document(where=where, messages=messages, tools=tools_of(record.get("tools"), where))


def _checked(messages: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(messages, list):
        raise CorpusError(f'{where}: "messages" is {type(messages).__name__}, expected a list')
    return tuple(_message(m, i, where) for i, m in enumerate(messages))


def _message(m: Any, number: int, where: str) -> Message:
    """A turn; one that only calls tools may have no content, which templates want to be empty."""
    if not isinstance(m, dict) or not isinstance(m.get("role"), str):
        raise CorpusError(f'{where}: message {number} has no "role"')
    if m.get("content") is None and m.get("tool_calls"):
        return m | {"content": ""}
    if not isinstance(m.get("content"), str):
        raise CorpusError(f'{where}: message {number} has no "content" string')
    return m


def tools_of(value: Any, where: str) -> tuple[Tool, ...]:
    """What an assistant may call: a list, or the JSON of one, as data sets keep it; none if there is no value.

    Raises:
        CorpusError: it is something else.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as e:
            raise CorpusError(f'{where}: "tools" is text and no JSON ({e})') from e
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(t, dict) for t in value):
        raise CorpusError(f'{where}: "tools" is no list of objects, each a tool')
    return tuple(value)


def _words(record: Fields, where: str) -> Document:
    words, labels = record["words"], record.get("labels")
    if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
        raise CorpusError(f'{where}: "words" is no list of strings')
    if labels is None:
        return Document(where=where, words=tuple(words))
    if not isinstance(labels, list) or len(labels) != len(words):
        found = f"{len(labels)} entries" if isinstance(labels, list) else type(labels).__name__
        raise CorpusError(
            f'{where}: "labels" is {found}, expected a list of {len(words)}, one for each word'
        )
    return Document(
        where=where,
        words=tuple(words),
        word_labels=tuple(_label(v, f"{where}: word {i}") for i, v in enumerate(labels)),
    )


def _completion(record: Fields, where: str) -> Document:
    for name in ("prompt", "completion"):
        if isinstance(record[name], list):
            raise CorpusError(
                f'{where}: "{name}" is a list, expected a string; give a conversation as one list of "messages"'
            )
    return Document(
        where=where,
        prompt=_string(record, "prompt", where),
        completion=_string(record, "completion", where),
    )


def _pair(record: Fields, where: str) -> Document:
    source, target = (_string(record, name, where) for name in ("source", "target"))
    return Document(where=where, prompt=source, completion=target)


SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "model", "bot"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}
"""Whom `from` names, as chat templates call them."""


def _sharegpt(record: Fields, where: str) -> Document:
    turns = record["conversations"]
    if not isinstance(turns, list):
        raise CorpusError(f'{where}: "conversations" is {type(turns).__name__}, expected a list')
    messages = [*_system(record, where), *(_turn(t, i, where) for i, t in enumerate(turns))]
    return Document(where=where, messages=tuple(messages))


def _turn(turn: Any, number: int, where: str) -> Message:
    speaker = turn.get("from") if isinstance(turn, dict) else None
    if not isinstance(speaker, str) or not isinstance(turn.get("value"), str):
        raise CorpusError(f'{where}: turn {number} has no strings "from" and "value"')
    if speaker not in SPEAKERS:
        known = ", ".join(SPEAKERS)
        raise CorpusError(f"{where}: turn {number} is from {speaker!r}, expected one of {known}")
    return {"role": SPEAKERS[speaker], "content": turn["value"]}


def _alpaca(record: Fields, where: str) -> Document:
    asked = _string(record, "instruction", where)
    if record.get("input") is not None and (more := _string(record, "input", where)):
        asked = f"{asked}\n\n{more}"
    answer = _string(record, "output", where)
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return Document(where=where, messages=(*_system(record, where), *turns))


def _system(record: Fields, where: str) -> list[Message]:
    """What is said before the first turn, if anything is."""
    if record.get("system") is None:
        return []
    system = _string(record, "system", where)
    return [{"role": "system", "content": system}] if system else []


def _string(record: Fields, name: str, where: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise CorpusError(f'{where}: "{name}" is {type(value).__name__}, expected a string')
    return value


def _label(value: Any, where: str) -> str | int | None:
    """A label, as a file holds it; None if there is none."""
    if value is None or (isinstance(value, (str, int)) and not isinstance(value, bool)):
        return value
    raise CorpusError(f'{where}: "label" is {value!r}, expected the name or number of a class')


KINDS = (
    Kind(("text",), ("label",), _text, first=True, called="texts"),
    Kind(("messages",), ("tools",), _messages, first=True, called="conversations"),
    Kind(("words",), ("labels",), _words, first=True, called="texts in words"),
    Kind(("prompt", "completion"), (), _completion, called="prompts with completions"),
    Kind(("source", "target"), (), _pair, called="sources with targets"),
    Kind(("conversations",), ("system",), _sharegpt, called="conversations as of ShareGPT"),
    Kind(("instruction", "output"), ("input", "system"), _alpaca, called="turns as of Alpaca"),
)


def conversation(names: Collection[str]) -> Kind:
    """The kind of a column of conversations whose turns have these fields."""
    (shared,) = (k for k in KINDS if k.needs == ("conversations",))
    (own,) = (k for k in KINDS if k.needs == ("messages",))
    return shared if {"from", "value"} <= set(names) else own
