"""`vllm:PATH`: vLLM gives what a store keeps, all that `hf:` gives: its pooler is the estimator.

Documents go to the engine a whole shard at a time, so that it never drains in between, and no token is sampled, so a
document may fill the context. What comes back is a few numbers a position, not logits (`softlabels.capture`).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from softlabels.capture import BadLogitError, Job, Kept
from softlabels.capture.vllm_pooler import TASK, capturing
from softlabels.capture.vllm_request import Wanted, request
from softlabels.capture.wire import unpacked
from softlabels.errors import TeacherError
from softlabels.teachers import Teacher
from softlabels.teachers.hf import second_path
from softlabels.teachers.segments import Segment, segments_of
from softlabels.teachers.vllm_engine import Vllm

if TYPE_CHECKING:
    from torch import Tensor


class VllmPools(Teacher):
    """vLLM's offline engine, of which the pooler selects."""

    batches = True

    def __init__(self, found: Vllm) -> None:
        self._found = found
        self._engine: Any = None
        self._wanted: Wanted | None = None
        self.tokenizer, self.record = found.tokenizer, found.record
        self.second_path = second_path(found.model, found.record.dtype)
        self.context = found.context

    def logits(self, rows: Sequence[Any]) -> Iterator[Tensor]:
        """Refused: they never leave the engine.

        Raises:
            TeacherError: always.
        """
        raise TeacherError(
            f"{self.record.spec}: selects beside the model, and gives no logits; this needs a teacher that does, such "
            "as hf:PATH of the same folder"
        )

    def selected(self, rows: Sequence[Any], job: Job, uniforms: Tensor | None) -> Iterator[Kept]:
        """What is kept of each document, in order."""
        segments = segments_of(rows)
        if not segments:
            return
        starts = np.cumsum([0, *(len(s.positions) for s in segments)])
        drawn = None if uniforms is None else uniforms.numpy()
        asked = [
            request(
                s.positions,
                s.labels,
                None if drawn is None else drawn[start : start + len(s.positions)],
            )
            for s, start in zip(segments, starts[:-1], strict=True)
        ]
        with self._found.running():
            answers = self._answers(segments, asked, job)
        for segment, start, words in zip(segments, starts[:-1], answers, strict=True):
            try:
                kept = unpacked(words, grid=len(job.estimator.temperatures), summarised=True)
            except BadLogitError as e:
                raise BadLogitError(int(start) + e.index, e.shown) from None
            if len(kept.ids) != len(segment.positions):
                raise TeacherError(
                    f"{self.record.spec}: gave {len(kept.ids)} positions of a document, was asked for "
                    f"{len(segment.positions)}"
                )
            yield kept

    def _answers(
        self, segments: Sequence[Segment], asked: Sequence[dict[str, Any]], job: Job
    ) -> list[Tensor]:
        """Of each segment the words of what was kept (`wire.py`)."""
        engine = self._engine_of(job)
        parameters = [self._found.vllm.PoolingParams(task=TASK, extra_kwargs=a) for a in asked]
        answers = engine.encode(prompts_of(segments), parameters, pooling_task=TASK, use_tqdm=False)
        for segment, answer in zip(segments, answers, strict=True):
            self._found.check_answer(answer, segment)
        return [answer.outputs.data for answer in answers]

    def _engine_of(self, job: Job) -> Any:
        """The engine that keeps this; another one is stopped first."""
        wanted = self._wanted_of(job)
        if self._engine is None or wanted != self._wanted:
            self._engine = None
            gc.collect()
            with capturing(wanted):
                self._engine = self._found.start(runner="pooling")
            self._wanted = wanted
        return self._engine

    def _wanted_of(self, job: Job) -> Wanted:
        return Wanted.of(
            job._replace(
                summarise=True
            ),  # cheap beside the rest, and one engine serves whoever asks
            architecture=self._found.architecture,
            head_bytes=self._found.head_bytes,
            vocab_size=self.record.vocab_size,
        )


def prompts_of(segments: Sequence[Segment]) -> list[dict[str, list[int]]]:
    """As vLLM takes them."""
    return [{"prompt_token_ids": s.input_ids.tolist()} for s in segments]
