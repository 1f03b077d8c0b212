"""vLLM's pooler as an estimator: a causal LM whose engine gives what a store keeps, and no logits.

vLLM loads `register` in each of its processes (entry point `vllm.general_plugins`). It does nothing unless the
environment says what is wanted (`capturing`): then the model's own class is subclassed under the name of
its architecture, so that a pooling engine runs it with its head, and its pooler selects from each scheduled chunk while
the chunk's hidden states are there. Only interfaces that vLLM documents for models and plugins are used; they are the
same in its two model runners, and the pooler's memory is in the engine's own profile.

A request says in its `extra_kwargs` what is asked of its tokens (`request.py`). What was kept of a chunk waits in
vLLM's own state of the request until the prompt is done. A request that was preempted begins again, and so does what is
kept of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from softlabels.capture.request import KEY, Asked, Selects, Wanted
from softlabels.capture.wire import stacked

if TYPE_CHECKING:
    from torch import Tensor

VARIABLE = "SOFTLABELS_VLLM_CAPTURE"
TASK = "token_classify"
"""What vLLM calls a pooler that says something of each token."""
_ORIGINALS: dict[str, Any] = {}
"""vLLM's own entry for each architecture that is subclassed here."""


@contextmanager
def capturing(wanted: Wanted) -> Iterator[None]:
    """Engines that are started meanwhile keep what is wanted; later ones are vLLM's own again."""
    os.environ[VARIABLE] = wanted.text()
    register()  # vLLM loads plugins once in a process, perhaps before this
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        from vllm import ModelRegistry

        globals().pop(wanted.architecture, None)
        if (known := _ORIGINALS.pop(wanted.architecture, None)) is not None:
            ModelRegistry.models[wanted.architecture] = known


def _wanted() -> Wanted | None:
    """As the environment says it; None: nothing is."""
    text = os.environ.get(VARIABLE)
    return Wanted.parse(text) if text else None


def register() -> None:
    """Put the subclass in the place of the architecture's own class, if the environment asks for one."""
    wanted = _wanted()
    if wanted is None:
        return
    from vllm import ModelRegistry

    known = ModelRegistry.models.get(wanted.architecture)
    if known is None or wanted.architecture in _ORIGINALS:
        return
    _ORIGINALS[wanted.architecture] = known
    ModelRegistry.register_model(wanted.architecture, f"{__name__}:{wanted.architecture}")


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
            self._selects = PoolerSelects(model.compute_logits, wanted, wanted.job())

        def get_supported_tasks(self) -> set[str]:
            return {TASK}

        def forward(self, hidden_states: Tensor, pooling_metadata: Any) -> list[Tensor | None]:
            return self._selects.parts(hidden_states, pooling_metadata)

    class Teacher(base):  # type: ignore[misc]
        """The model, with its head and a pooler."""

        is_pooling_model = True

        def __init__(self, *, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
            wanted = _wanted()
            assert wanted is not None, "the environment that asked for it is still there"
            self.pooler = Selecting(self, wanted)

    Teacher.__name__ = Teacher.__qualname__ = name
    return Teacher


@dataclass(frozen=True)
class PoolerSelects(Selects):
    """What the pooler does, without vLLM's classes."""

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
            held += self.part(chunk, begin, Asked.of(asked, len(chunk), self.job))
            out.append(stacked(held) if done else None)
            if done:
                held.clear()
        return out
