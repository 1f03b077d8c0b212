"""`vllm:PATH`: vLLM gives what a store keeps, all that `hf:` gives: its pooler is the estimator.

Documents go to the engine a whole shard at a time, so that it never drains in between, and no token is sampled, so a
document may fill the context. What comes back is a few numbers a position, not logits (`softlabels.capture`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from softlabels.capture import Job
from softlabels.capture.request import Wanted
from softlabels.capture.vllm_pooler import TASK, capturing
from softlabels.teachers.local_engine import SelectingTeacher
from softlabels.teachers.segments import Segment
from softlabels.teachers.vllm_engine import Vllm

if TYPE_CHECKING:
    from torch import Tensor


class VllmPools(SelectingTeacher):
    """vLLM's offline engine, of which the pooler selects."""

    _found: Vllm

    def _answers(
        self, segments: Sequence[Segment], asked: Sequence[dict[str, Any]], job: Job
    ) -> list[Tensor]:
        """Of each segment the words of what was kept (`wire.py`)."""
        engine = self._engine_of(job)
        parameters = [self._found.module.PoolingParams(task=TASK, extra_kwargs=a) for a in asked]
        answers = engine.encode(prompts_of(segments), parameters, pooling_task=TASK, use_tqdm=False)
        for segment, answer in zip(segments, answers, strict=True):
            self._found.check_answer(answer, segment)
        return [answer.outputs.data for answer in answers]

    def _start(self, wanted: Wanted) -> Any:
        with capturing(wanted):
            return self._found.start(runner="pooling")


def prompts_of(segments: Sequence[Segment]) -> list[dict[str, list[int]]]:
    """As vLLM takes them."""
    return [{"prompt_token_ids": s.input_ids.tolist()} for s in segments]
