"""A tokenizer or chat template that came with a store, held in a process of its own with limited memory and time.

A `tokenizer.json` is a small program: 28 KB of it may take gigabytes when it is loaded, double a text with each of
forty steps when ids become text, or end the process that loads it. A chat template is one, too, with loops. Here it
ends a child, and whoever asked is told. A tokenizer costs a fifth of a second once, and some 50 µs for each text; a
template some seconds once, for the library that renders it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from softlabels.errors import TokenizerError
from softlabels.store.tokenizer_child import LENGTH

FILE_LIMIT = 256 * 2**20
"""Bytes of a tokenizer.json; a larger one is not loaded. The largest known have 35 MB."""
MEMORY, MEMORY_EACH = 2**30, 48
"""Bytes of address space that a child may have, and so many more for each byte of the file."""
SECONDS = 60
"""Of processor time, in all."""
PATIENCE = 10.0
"""Seconds for an answer."""
START = 120.0
"""Seconds for the first one, before which libraries are imported."""
ANSWER_LIMIT = 16 * 2**20
CHILD = Path(__file__).with_name("tokenizer_child.py")
PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG", "VIRTUAL_ENV")
"""Environment variables that the child needs; those that begin with PYTHON, LC_ or LD_, too. No credentials."""


class _Limited:
    """A child that makes text.

    Args:
        kind: what the child runs, `tokenizer` or `template`.
        data: it, which may be anything; `TokenizerError` if it cannot be loaded within the limits.
        what: what it is expected to be.
    """

    def __init__(self, kind: str, data: bytes, *, where: object, what: str) -> None:
        self._where = where
        if len(data) > FILE_LIMIT:
            raise TokenizerError(
                f"{where}: {len(data)} bytes; a {kind} of more than {FILE_LIMIT} is not loaded"
            )
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
        )
        self._end = weakref.finalize(self, _end, self._child)
        memory = MEMORY + MEMORY_EACH * len(data)
        self._send(json.dumps({"kind": kind, "memory": memory, "seconds": SECONDS}).encode())
        self._send(data)
        answer = self._answer("loading it", START if kind == "template" else PATIENCE)
        if "error" in answer:
            self.close()
            raise TokenizerError(f"{where}: is no {what} that is known here ({answer['error']})")

    def _text(self, request: Any, doing: str) -> str:
        self._send(json.dumps(request).encode())
        answer = self._answer(doing, PATIENCE)
        if "error" in answer:
            raise TokenizerError(f"{self._where}: {answer['error']}")
        return str(answer["text"])

    def close(self) -> None:
        """End the process."""
        self._end()

    def _send(self, message: bytes) -> None:
        assert self._child.stdin is not None
        with suppress(OSError, ValueError):  # it has ended; what it says next is nothing
            self._child.stdin.write(len(message).to_bytes(LENGTH, "little") + message)
            self._child.stdin.flush()

    def _answer(self, doing: str, patience: float) -> dict[str, Any]:
        deadline = time.monotonic() + patience
        head = self._take(LENGTH, deadline)
        length = int.from_bytes(head, "little")
        data = self._take(length, deadline) if 0 < length <= ANSWER_LIMIT else b""
        if len(head) < LENGTH or len(data) < length:
            self.close()
            raise TokenizerError(
                f"{self._where}: {doing} took more than {MEMORY // 2**30} GiB or {patience:g} s, or ended the process "
                "that did it: it is damaged, or made to do harm"
            )
        answer = json.loads(data)
        assert isinstance(answer, dict), "our own child speaks"
        return answer

    def _take(self, size: int, deadline: float) -> bytes:
        """So many bytes of what the child says; fewer if it ends, or takes too long."""
        assert self._child.stdout is not None
        file, data = self._child.stdout.fileno(), b""
        while len(data) < size:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([file], [], [], left)[0]
            more = os.read(file, size - len(data)) if ready else b""
            if not more:
                break
            data += more
        return data


class TokenizerProcess(_Limited):
    """Ids to text, by a `tokenizer.json`, which may be anything."""

    def __init__(self, data: bytes, *, where: object) -> None:
        super().__init__("tokenizer", data, where=where, what="tokenizer")

    def decode(self, ids: Sequence[int]) -> str:
        """The text that some ids make together; `TokenizerError` if that takes too much, which ends the child."""
        return self._text([int(i) for i in ids], "making text of ids")


class ChatTemplate(_Limited):
    """Conversations to text, up to where the assistant begins to speak.

    Args:
        source: Jinja, which may be anything.
        variables: what it may name besides `messages`: the special tokens.
    """

    def __init__(self, source: str, variables: Mapping[str, str], *, where: object) -> None:
        data = json.dumps([source, dict(variables)]).encode()
        super().__init__("template", data, where=where, what="chat template")

    def render(
        self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """The text of a conversation; `TokenizerError` if the template refuses it, or takes too much."""
        return self._text([messages, list(tools)], "rendering a conversation")


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON or name.startswith(("PYTHON", "LC_", "LD_"))
    }
    return kept | {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        with suppress(OSError):  # what was not sent
            pipe.close()
    child.wait()
