"""`vllm:PATH?seam=states`: last hidden states from a stock vLLM engine; the model's own head runs here.

The engine is a pooling one whose task `token_embed` gives states after the final norm, as they are (no normalisation:
`use_activation=False`). Nothing of ours runs in its processes. Unlike the pooler of `vllm:PATH` it gives logits, so
that `measure`, `kld` and `states` take it; the states of some documents are here at once, 4 bytes times D a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softlabels.core.rows import Row
from softlabels.errors import TeacherError
from softlabels.teachers import TeacherOptions
from softlabels.teachers.bodiless import BodilessTeacher
from softlabels.teachers.segments import Segment, segments_of
from softlabels.teachers.vllm_engine import Vllm

TASK = "token_embed"
AT_ONCE = 65_536
"""Tokens of documents whose states are held at a time."""


class VllmStates(BodilessTeacher):
    """vLLM's offline engine, asked for states."""

    batches = True

    def __init__(self, found: Vllm, options: TeacherOptions) -> None:
        super().__init__(
            str(found.model.folder),
            replace(options, device=found.record.device, dtype=found.record.dtype),
        )
        self._found = found
        self._engine: Any = None
        self.record, self.context = found.record, found.context

    def given(self, rows: Sequence[Row]) -> Iterator[Tensor]:
        """Of one document at a time."""
        group: list[Segment] = []
        for segment in segments_of(rows):
            if group and sum(len(s.input_ids) for s in group) + len(segment.input_ids) > AT_ONCE:
                yield from self._ask(group)
                group = []
            group.append(segment)
        if group:
            yield from self._ask(group)

    def _ask(self, segments: Sequence[Segment]) -> Iterator[Tensor]:
        for segment, states in zip(segments, self._encode(segments), strict=True):
            if len(states) != len(segment.input_ids):
                # vLLM repeats the first tokens of a prompt that it put off in the middle; alone none is put off.
                (states,) = self._encode([segment])
            if len(states) != len(segment.input_ids):
                raise TeacherError(
                    f"{self.record.spec}: gave states of {len(states)} tokens, was asked for {len(segment.input_ids)}"
                )
            yield states[torch.from_numpy(segment.positions)]

    def _encode(self, segments: Sequence[Segment]) -> list[Tensor]:
        """`[T, D]` of each."""
        if self._engine is None:
            from vllm.config import PoolerConfig

            settings = PoolerConfig(task=TASK)
            self._engine = self._found.start(
                runner="pooling", convert="embed", pooler_config=settings
            )
        parameters = self._found.module.PoolingParams(task=TASK, use_activation=False)
        prompts = [{"prompt_token_ids": s.input_ids.tolist()} for s in segments]
        with self._found.running():
            answers = self._engine.encode(prompts, parameters, pooling_task=TASK, use_tqdm=False)
        for segment, answer in zip(segments, answers, strict=True):
            self._found.check_answer(answer, segment)
        return [answer.outputs.data for answer in answers]
