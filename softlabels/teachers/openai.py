"""`openai:URL`: a server's completions endpoint that returns log-probabilities of the prompt, such as vLLM's.

    openai:http://HOST:8000/v1?tokenizer=PATH[&model=NAME][&vocab=V][&weights_sha256=HEX]

Each document's piece is one request, its ids the prompt. Two ways of asking are tried before the build begins, and the
first that is answered is kept: `prompt_logprobs`, listed by id (vLLM's own), and `echo` with `logprobs` and
`return_tokens_as_token_ids`, listed under names like `token_id:17`. Lists by token *text* are refused: text does not
name an id.
Requests that fail for want of the server or by its overload are repeated with growing pauses.

A server does not show its weights. The record's digest is over the model's name, and over `weights_sha256` if you vouch
for one. `SOFTLABELS_API_KEY`, if set, is sent as bearer token.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from softlabels.core.registry import name_of
from softlabels.errors import ConfigError, TeacherError
from softlabels.format.identity import TeacherRecord
from softlabels.teachers import TeacherOptions, causal_only
from softlabels.teachers.listing import Listed, ListingTeacher, listed_of
from softlabels.teachers.segments import Segment
from softlabels.teachers.server import Refused, Server
from softlabels.teachers.tokenizer import load_tokenizer

AT_ONCE = 8
"""Requests under way."""
KNOWN = {"tokenizer", "model", "vocab", "weights_sha256"}
FORM = "openai:http://HOST:PORT/v1?tokenizer=PATH[&model=NAME][&vocab=V][&weights_sha256=HEX]"
WAYS: tuple[Callable[[int], dict[str, Any]], ...] = (
    lambda k: {"prompt_logprobs": k},
    lambda k: {"echo": True, "logprobs": k, "return_tokens_as_token_ids": True},
)
"""To ask for k log-probabilities at each token of the prompt."""


SERVER = "server"
"""What the record says where a fact is the server's: of the dtype, and of the device."""


class OpenAITeacher(ListingTeacher):
    """A model behind a completions endpoint.

    Raises:
        ConfigError: a malformed argument, or a device or dtype, which are the server's affair.
        TeacherError: no such server, not one model, or no tokenizer.
    """

    def __init__(self, argument: str, options: TeacherOptions) -> None:
        super().__init__()
        url, written = name_of(argument)
        extra = dict(written)
        vocab, vouched = extra.get("vocab"), extra.get("weights_sha256", "")
        if not re.match("https?://", url) or set(extra) - KNOWN:
            raise ConfigError(f"--teacher openai:{argument}: expected {FORM}")
        if "tokenizer" not in extra:
            raise ConfigError(
                f"--teacher openai:{argument}: a server has no tokenizer to save; give ?tokenizer=PATH"
            )
        if not extra.get("vocab", "1").isdigit() or not re.fullmatch("([0-9a-f]{64})?", vouched):
            raise ConfigError(f"--teacher openai:{argument}: expected {FORM}")
        for flag, value in (("--device", options.device), ("--dtype", options.dtype)):
            if value not in ("auto", SERVER):
                raise ConfigError(f"{flag} {value}: is the server's affair; leave it out")
        causal_only(options, f"openai:{argument}")
        self._server = Server(url.rstrip("/"), options.notice)
        self._model = model = extra.get("model") or self._server.only_model()
        self.tokenizer = load_tokenizer(Path(extra["tokenizer"]), spec=f"openai:{model}")
        if not vouched:
            options.notice(
                f"warning: openai:{model}: a server does not show its weights, so the store records the model's name "
                "only; vouch for them with &weights_sha256=HEX if you can"
            )
        name = f"softlabels openai 1\n{model}\n{vouched}\n"
        self.record = TeacherRecord(
            spec=f"openai:{model}",
            name=model,
            revision=None,
            weights_sha256=hashlib.sha256(name.encode()).hexdigest(),
            dtype=SERVER,
            device=SERVER,
            engine="completions endpoint",
            vocab_size=self.tokenizer.vocab_size if vocab is None else int(vocab),
            parameters=0,
        )
        if self.record.vocab_size < self.tokenizer.vocab_size:
            raise ConfigError(
                f"--teacher …?vocab={vocab}: the tokenizer has {self.tokenizer.vocab_size} ids, so the head has no "
                "fewer"
            )
        self._way = WAYS[0]

    def check_k(self, k: int) -> None:
        """Ask for k ids once; `ConfigError` if the server refuses, and why."""
        probe = Segment(np.array([0, 1], np.int64), np.zeros(1, np.int64))
        found: list[TeacherError] = []
        for way in WAYS:
            self._way = way
            try:
                self._of(probe, k)
                return
            except (Refused, Unlisted) as e:
                found.append(e)
        said = "; ".join(dict.fromkeys(str(e) for e in found))
        raise ConfigError(f"--k {k}: {said}")

    def ask(self, segments: Sequence[Segment], k: int) -> Iterator[Listed]:
        """`AT_ONCE` requests under way."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from pool.map(lambda segment: self._of(segment, k), segments)

    def _of(self, segment: Segment, k: int) -> Listed:
        answer = self._server.post(
            "completions",
            {
                "model": self._model,
                "prompt": segment.input_ids.tolist(),
                "max_tokens": 1,
                "temperature": 1.0,
                "add_special_tokens": False,
                **self._way(k),
            },
        )
        spec = self.record.spec
        entries = _entries(answer, len(segment.input_ids), spec)
        return listed_of(entries, segment, k, vocab_size=self.record.vocab_size, spec=spec)


def _entries(answer: Any, tokens: int, spec: str) -> list[Mapping[int, float] | None]:
    """Log-probabilities by id, of each token of the prompt; `Unlisted` if there are none, or not by id."""
    try:
        choice = answer["choices"][0]
        if (prompt := choice.get("prompt_logprobs")) is not None:
            return [
                None if at is None else {int(i): float(e["logprob"]) for i, e in at.items()}
                for at in prompt
            ]
        logprobs = choice["logprobs"]
        lists, names = logprobs["top_logprobs"][:tokens], logprobs["tokens"]
        return [
            None
            if at is None
            else {
                _id(t): float(p) for t, p in {**at, names[i]: logprobs["token_logprobs"][i]}.items()
            }
            for i, at in enumerate(lists)
        ]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as e:
        raise Unlisted(
            f"{spec}: the answer holds no log-probabilities of the prompt by token id ({type(e).__name__}: {e}); "
            "expected choices[0].prompt_logprobs, or logprobs.top_logprobs with keys like 'token_id:17'"
        ) from e


def _id(name: str) -> int:
    prefix, _, number = name.rpartition("token_id:")
    if prefix or not number.isdigit():
        raise ValueError(f"token {name!r} is named by its text")
    return int(number)


class Unlisted(TeacherError):
    """The server answered, without what was asked for."""
