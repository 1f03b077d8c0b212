"""vLLM's pooler as an estimator: a causal LM whose engine gives what a store keeps, and no logits.

vLLM loads `register` in each of its processes (entry point `vllm.general_plugins`). It does nothing unless the
environment says what is wanted (`capturing`): then the model's own class is subclassed under the name of
its architecture, so that a pooling engine runs it with its head, and its pooler selects from each scheduled chunk while
the chunk's hidden states are there. Only interfaces that vLLM documents for models and plugins are used; they are the
same in its two model runners, and the pooler's memory is in the engine's own profile.

A request says in its `extra_kwargs` which of its tokens have a target, the labels, and the uniform numbers. What was
kept of a chunk waits in vLLM's own state of the request until the prompt is done. A request that was preempted begins
again, and so does what is kept of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from softlabels.capture import BadLogitError, Job, keep
from softlabels.capture.wire import packed, refusal, stacked

if TYPE_CHECKING:
    from torch import Tensor

VARIABLE = "SOFTLABELS_VLLM_CAPTURE"
TASK = "token_classify"
"""What vLLM calls a pooler that says something of each token."""
KEY = "softlabels"
_ORIGINALS: dict[str, Any] = {}
"""vLLM's own entry for each architecture that is subclassed here."""


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

    @staticmethod
    def from_environment() -> Wanted | None:
        """None: nothing is wanted."""
        text = os.environ.get(VARIABLE)
        return None if not text else Wanted(**json.loads(text))

    def job(self) -> Job:
        """With the estimator."""
        module, _, name = self.estimator.partition(":")
        values = {n: tuple(v) if isinstance(v, list) else v for n, v in self.fields.items()}
        return Job(getattr(import_module(module), name)(**values), self.summarise)


@contextmanager
def capturing(wanted: Wanted) -> Iterator[None]:
    """Engines that are started meanwhile keep what is wanted; later ones are vLLM's own again."""
    os.environ[VARIABLE] = json.dumps(asdict(wanted))
    register()  # vLLM loads plugins once in a process, perhaps before this
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        from vllm import ModelRegistry

        globals().pop(wanted.architecture, None)
        if (known := _ORIGINALS.pop(wanted.architecture, None)) is not None:
            ModelRegistry.models[wanted.architecture] = known


def register() -> None:
    """Put the subclass in the place of the architecture's own class, if the environment asks for one."""
    wanted = Wanted.from_environment()
    if wanted is None:
        return
    from vllm import ModelRegistry

    known = ModelRegistry.models.get(wanted.architecture)
    if known is None or wanted.architecture in _ORIGINALS:
        return
    _ORIGINALS[wanted.architecture] = known
    ModelRegistry.register_model(wanted.architecture, f"{__name__}:{wanted.architecture}")


def request(positions: Any, labels: Any, uniforms: Any) -> dict[str, Any]:
    """`extra_kwargs` of a prompt: `positions [N]` ascending, `labels [N]`, `uniforms [N, U]` or None."""
    drawn = None if uniforms is None else np.ascontiguousarray(uniforms, "<f8").tobytes()
    return {
        KEY: {
            "positions": np.ascontiguousarray(positions, "<i8").tobytes(),
            "labels": np.ascontiguousarray(labels, "<i8").tobytes(),
            "uniforms": drawn,
        }
    }


def __getattr__(name: str) -> Any:
    """The subclass of an architecture, which vLLM asks for by its name."""
    if name not in _ORIGINALS:
        raise AttributeError(name)
    made = _subclass(_ORIGINALS[name].load_model_cls(), name)
    globals()[name] = made
    return made


def _subclass(base: Any, name: str) -> Any:
    from vllm.model_executor.layers.pooler import Pooler

    class Selecting(Pooler):  # type: ignore[misc]
        """Selects from each scheduled chunk."""

        def __init__(self, model: Any, wanted: Wanted) -> None:
            super().__init__()
            self._selects = _Selects(model.compute_logits, wanted, wanted.job())

        def get_supported_tasks(self) -> set[str]:
            return {TASK}

        def forward(self, hidden_states: Tensor, pooling_metadata: Any) -> list[Tensor | None]:
            return self._selects.parts(hidden_states, pooling_metadata)

    class Teacher(base):  # type: ignore[misc]
        """The model, with its head and a pooler."""

        is_pooling_model = True

        def __init__(self, *, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
            wanted = Wanted.from_environment()
            assert wanted is not None, "the environment that asked for it is still there"
            self.pooler = Selecting(self, wanted)

    Teacher.__name__ = Teacher.__qualname__ = name
    return Teacher


@dataclass(frozen=True)
class _Selects:
    """What the pooler does, without vLLM's classes."""

    compute_logits: Callable[[Tensor], Tensor | None]
    """The model's; where its head is sharded, all ranks take part and the first one gets the logits."""
    wanted: Wanted
    job: Job

    def parts(self, hidden: Tensor, metadata: Any) -> list[Tensor | None]:
        """Of each request's chunk in `hidden [T, D]`: all that was kept of it, if its prompt is now done."""
        cursor = metadata.get_pooling_cursor()
        taken = cursor.num_scheduled_tokens_cpu.tolist()
        ends = cursor.seq_lens_cpu.tolist()
        out: list[Tensor | None] = []
        for chunk, end, done, params, state in zip(
            torch.split(hidden, taken),
            ends,
            cursor.get_finished_mask(),
            metadata.pooling_params,
            metadata.pooling_states,
            strict=True,
        ):
            begin = end - len(chunk)
            asked = (params.extra_kwargs or {}).get(KEY)
            held = state.hidden_states_cache
            if begin == 0:  # the prompt's beginning, for the second time if it was preempted
                held.clear()
            held += self._part(chunk, begin, _Asked.of(asked, len(chunk), self.job))
            out.append(stacked(held) if done else None)
            if done:
                held.clear()
        return out

    def _part(self, chunk: Tensor, begin: int, asked: _Asked) -> list[Tensor]:
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
class _Asked:
    """What a request asks of its tokens."""

    positions: Tensor
    """`[N] int64`, ascending."""
    labels: Tensor
    """`[N] int64`."""
    uniforms: Tensor | None
    """`[N, U] float64`."""

    @staticmethod
    def of(asked: Mapping[str, Any] | None, n: int, job: Job) -> _Asked:
        """As `request` wrote it; None, in vLLM's profile of its memory: a target at each of n tokens."""
        u = job.estimator.uniforms
        if asked is None:
            drawn = torch.full((n, u), 0.5, dtype=torch.float64) if u else None
            return _Asked(torch.arange(n), torch.zeros(n, dtype=torch.int64), drawn)
        uniforms = None if asked["uniforms"] is None else _array(asked["uniforms"], "<f8")
        return _Asked(
            _array(asked["positions"], "<i8"),
            _array(asked["labels"], "<i8"),
            None if uniforms is None else uniforms.view(-1, u),
        )


def _array(data: bytes, dtype: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype).copy())
