"""What is asked of an engine, and what its workers do for it, whichever seam they are reached by.

A request says which of its tokens have a target, the labels, and the uniform numbers. Engines schedule a prompt in
chunks; what was kept of a chunk waits until the prompt is done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from softlabels.capture import BadLogitError, Job, keep
from softlabels.capture.wire import packed, refusal, stacked

if TYPE_CHECKING:
    from torch import Tensor

KEY = "softlabels"
NUMBER = "number"
"""Of a request: it is taken by this."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an engine keeps."""

    architecture: str
    estimator: str
    """`module:class` of it."""
    fields: Mapping[str, Any]
    """Its parameters: `k`, `temperatures`, …"""
    summarise: bool
    head_bytes: int
    """Of logits that exist at a time."""
    vocab_size: int

    @staticmethod
    def of(job: Job, *, architecture: str, head_bytes: int, vocab_size: int) -> Wanted:
        """In words that go through an environment."""
        kind = type(job.estimator)
        return Wanted(
            architecture=architecture,
            estimator=f"{kind.__module__}:{kind.__qualname__}",
            fields=asdict(job.estimator),  # type: ignore[call-overload]  # a dataclass
            summarise=job.summarise,
            head_bytes=head_bytes,
            vocab_size=vocab_size,
        )

    def text(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: str) -> Wanted:
        """What `text` gave."""
        return Wanted(**json.loads(text))

    def job(self) -> Job:
        """With the estimator."""
        module, _, name = self.estimator.partition(":")
        values = {n: tuple(v) if isinstance(v, list) else v for n, v in self.fields.items()}
        return Job(getattr(import_module(module), name)(**values), self.summarise)


def request(positions: Any, labels: Any, uniforms: Any) -> dict[str, Any]:
    """Of a prompt, for its parameters: `positions [N]` ascending, `labels [N]`, `uniforms [N, U]` or None."""
    drawn = None if uniforms is None else np.ascontiguousarray(uniforms, "<f8").tobytes()
    return {
        KEY: {
            "positions": np.ascontiguousarray(positions, "<i8").tobytes(),
            "labels": np.ascontiguousarray(labels, "<i8").tobytes(),
            "uniforms": drawn,
        }
    }


@dataclass(frozen=True)
class Selects:
    """From a chunk's hidden states to what is kept of it."""

    compute_logits: Callable[[Tensor], Tensor | None]
    """The model's; where its head is sharded, all ranks take part and the first one gets the logits."""
    wanted: Wanted
    job: Job

    def part(self, chunk: Tensor, begin: int, asked: Asked) -> list[Tensor]:
        """What is kept of tokens from `begin` on."""
        before = int((asked.positions < begin).sum())
        here = slice(before, int((asked.positions < begin + len(chunk)).sum()))
        at = (asked.positions[here] - begin).to(chunk.device)
        parts: list[Tensor] = []
        try:
            for kept in keep(
                chunk.index_select(0, at),
                asked.labels[here],
                None if asked.uniforms is None else asked.uniforms[here],
                self.job,
                self._logits,
                head_bytes=self.wanted.head_bytes,
                vocab_size=self.wanted.vocab_size,
            ):
                parts.append(packed(kept))
        except BadLogitError as e:
            return [refusal(e, before)]
        return parts

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.compute_logits(hidden)
        if logits is None:  # not the first rank: nobody looks at what it keeps
            return torch.zeros(len(hidden), self.wanted.vocab_size, device=hidden.device)
        return logits.float()


@dataclass(frozen=True)
class Asked:
    """What a request asks of its tokens."""

    positions: Tensor
    """`[N] int64`, ascending."""
    labels: Tensor
    """`[N] int64`."""
    uniforms: Tensor | None
    """`[N, U] float64`."""

    @staticmethod
    def of(asked: Mapping[str, Any] | None, n: int, job: Job) -> Asked:
        """As `request` wrote it; None, in vLLM's profile of its memory: a target at each of n tokens."""
        u = job.estimator.uniforms
        if asked is None:
            drawn = torch.full((n, u), 0.5, dtype=torch.float64) if u else None
            return Asked(torch.arange(n), torch.zeros(n, dtype=torch.int64), drawn)
        uniforms = None if asked["uniforms"] is None else _array(asked["uniforms"], "<f8")
        return Asked(
            _array(asked["positions"], "<i8"),
            _array(asked["labels"], "<i8"),
            None if uniforms is None else uniforms.view(-1, u),
        )


@dataclass
class Prompts:
    """What was kept of them."""

    selects: Selects
    parts: dict[int, list[Tensor]] = field(default_factory=dict)
    """Of those that are not done."""
    done: dict[int, Tensor] = field(default_factory=dict)

    def add(self, chunk: Tensor, begin: int, size: int, extra: Mapping[str, Any] | None) -> None:
        """Select from the tokens from `begin` on, `chunk [n, D]`, of a prompt of `size`, if its request asks for it."""
        asked = (extra or {}).get(KEY)
        chunk = chunk[: max(0, size - begin)]
        if asked is None or not len(chunk):
            return
        number = int(asked[NUMBER])
        if begin == 0:  # for the second time if it was preempted
            self.parts[number] = []
        job = self.selects.job
        self.parts[number] += self.selects.part(chunk, begin, Asked.of(asked, len(chunk), job))
        if begin + len(chunk) == size:
            self.done[number] = stacked(self.parts.pop(number))


def _array(data: bytes, dtype: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype).copy())
