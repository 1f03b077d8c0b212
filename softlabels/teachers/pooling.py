"""`pooling:URL`: last hidden states from a stock `vllm serve --runner pooling`; the model's own head runs here.

    pooling:http://HOST:8000?head=MODEL[&model=NAME]
    vllm serve MODEL --runner pooling --convert embed --pooler-config '{"task": "token_embed"}'

Each document's piece is one request, its ids the input, answered by states after the final norm as they are
(`use_activation: false`), in float32. They are 5.3 bytes times D a token on the wire. The server does not show its
weights: the record has those of MODEL, and the comparison before the first shard shows whether they are the same.
`SOFTLABELS_API_KEY`, if set, is sent as bearer token.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from softlabels.core.registry import name_of
from softlabels.core.rows import Row
from softlabels.errors import ConfigError, TeacherError
from softlabels.teachers import TeacherOptions, causal_only
from softlabels.teachers.bodiless import BodilessTeacher
from softlabels.teachers.openai import AT_ONCE, SERVER
from softlabels.teachers.segments import Segment, segments_of
from softlabels.teachers.server import Server

FORM = "pooling:http://HOST:PORT?head=MODEL[&model=NAME]"
ASKED = {
    "task": "token_embed",
    "use_activation": False,
    "add_special_tokens": False,
    "encoding_format": "base64",
    "embed_dtype": "float32",
    "endianness": "little",
}
"""Of each document, beside its ids."""


class PoolingTeacher(BodilessTeacher):
    """A body behind a pooling endpoint, and a head.

    Raises:
        ConfigError: a malformed argument, or a dtype, which is the server's affair.
        TeacherError: no such server, not one model, or no such head.
    """

    def __init__(self, argument: str, options: TeacherOptions) -> None:
        url, written = name_of(argument)
        extra = dict(written)
        if (
            not re.match("https?://", url)
            or set(extra) - {"head", "model"}
            or not extra.get("head")
        ):
            raise ConfigError(f"--teacher pooling:{argument}: expected {FORM}")
        if options.dtype not in ("auto", SERVER):
            raise ConfigError(f"--dtype {options.dtype}: is the server's affair; leave it out")
        causal_only(options, f"pooling:{argument}")
        self._server = Server(url.rstrip("/"), options.notice)
        self._model = extra.get("model") or self._server.only_model("v1/models")
        super().__init__(extra["head"], replace(options, dtype="float32"))
        self.record = msgspec.structs.replace(
            self.record,
            spec=f"pooling:{self._model}",
            dtype=SERVER,
            device=SERVER,
            engine="pooling endpoint",
            parameters=0,
        )

    def given(self, rows: Sequence[Row]) -> Iterator[Tensor]:
        """Of one document at a time; `AT_ONCE` requests under way."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from pool.map(self._of, segments_of(rows))

    def _of(self, segment: Segment) -> Tensor:
        body = {"model": self._model, "input": segment.input_ids.tolist(), **ASKED}
        answer = self._server.post("pooling", body)
        states = _states(answer, len(segment.input_ids), self.record.spec)
        return states[torch.from_numpy(segment.positions)]


def _states(answer: Any, tokens: int, spec: str) -> Tensor:
    """`[T, D] float32` of an answer; `TeacherError` if it has none, or of another number of tokens."""
    try:
        (one,) = answer["data"]
        flat = np.frombuffer(base64.b64decode(one["data"], validate=True), "<f4")
        used = int(answer["usage"]["prompt_tokens"])
    except (KeyError, TypeError, ValueError, binascii.Error) as e:
        raise TeacherError(
            f"{spec}: the answer holds no states ({type(e).__name__}: {e}); expected data[0].data in base64, and "
            "usage.prompt_tokens, as of vLLM's pooling endpoint with the task token_embed"
        ) from e
    if used != tokens or not len(flat) or len(flat) % tokens:
        raise TeacherError(
            f"{spec}: answered for {used} tokens with {len(flat)} numbers, was asked for {tokens} tokens; is its task "
            "token_embed?"
        )
    return torch.from_numpy(flat.copy()).view(tokens, -1)
