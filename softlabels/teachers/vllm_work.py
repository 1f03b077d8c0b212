"""`vllm:PATH?seam=worker`: an engine that generates, whose workers select (`capture/vllm_worker.py`).

All that the pooler of `vllm:PATH` gives, of engines whose models take no pooler of ours. It holds on to private methods
of vLLM; it also samples a token, for which a row must leave room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from softlabels.capture import Job
from softlabels.capture.request import KEY, NUMBER
from softlabels.capture.vllm_worker import Selecting
from softlabels.errors import TeacherError
from softlabels.teachers.segments import Segment
from softlabels.teachers.vllm_engine import Vllm
from softlabels.teachers.vllm_pool import VllmPools, prompts_of

if TYPE_CHECKING:
    from torch import Tensor


class VllmWorkers(VllmPools):
    """vLLM's offline engine, whose workers select."""

    def __init__(self, found: Vllm) -> None:
        super().__init__(found)
        self.context = None if found.context is None else found.context - 1

    def _answers(
        self, segments: Sequence[Segment], asked: Sequence[dict[str, Any]], job: Job
    ) -> list[Tensor]:
        engine = self._engine_of(job)
        parameters = [
            self._found.module.SamplingParams(
                max_tokens=1, detokenize=False, extra_args={KEY: a[KEY] | {NUMBER: i}}
            )
            for i, a in enumerate(asked)
        ]
        answers = engine.generate(prompts_of(segments), parameters, use_tqdm=False)
        for segment, answer in zip(segments, answers, strict=True):
            self._found.check_answer(answer, segment)
        first, *_ = engine.collective_rpc("softlabels_take")
        taken = {
            number: torch.from_numpy(np.frombuffer(words, np.int32).copy()).view(*shape)
            for number, shape, words in first
        }
        if sorted(taken) != list(range(len(segments))):
            raise TeacherError(
                f"{self.record.spec}: kept something of {len(taken)} documents, was asked for {len(segments)}"
            )
        return [taken[i] for i in range(len(segments))]

    def _engine_of(self, job: Job) -> Any:
        wanted = self._wanted_of(job)
        if self._engine is None:
            extension = f"{Selecting.__module__}.{Selecting.__qualname__}"
            self._engine = self._found.start(worker_extension_cls=extension)
        if wanted != self._wanted:
            self._engine.collective_rpc("softlabels_begin", args=(wanted.text(),))
            self._wanted = wanted
        return self._engine
