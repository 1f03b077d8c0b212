"""`vllm:PATH?seam=list`: the log-probabilities that vLLM lists of a prompt, for engines that take no pooler of ours.

vLLM lists them at T=1, whatever the sampling temperature, of the k most probable ids and of the next token: the limits
of `teachers/listing.py`. They are taken before penalties and other processing (`raw_logprobs`). vLLM makes
log-probabilities `[tokens, V] float32` of a whole scheduling step at once, memory that its own profile does not count:
lower `?gpu_memory=` if it runs out. It also samples a token, for which a row must leave room.

The engine starts when k is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from softlabels.errors import TeacherError
from softlabels.teachers.hf import second_path
from softlabels.teachers.listing import Listed, ListingTeacher, listed_of
from softlabels.teachers.segments import Segment
from softlabels.teachers.vllm_engine import Vllm


class VllmLists(ListingTeacher):
    """vLLM's offline engine, asked for log-probabilities of the prompt."""

    def __init__(self, found: Vllm) -> None:
        super().__init__()
        self._found = found
        self._engine: Any = None
        self.tokenizer, self.record = found.tokenizer, found.record
        self.second_path = second_path(found.model, found.record.dtype)
        self.context = None if found.context is None else found.context - 1

    def check_k(self, k: int) -> None:
        """Start the engine, ready to list k ids."""
        self._engine = self._found.start(max_logprobs=k, logprobs_mode="raw_logprobs")

    def ask(self, segments: Sequence[Segment], k: int) -> Iterator[Listed]:
        """All at once; vLLM makes its own batches of them."""
        if not segments:
            return
        if self._engine is None:  # a shard alone (`make_shard`) asks nothing before
            self.check_k(k)
        parameters = self._found.module.SamplingParams(
            prompt_logprobs=k, max_tokens=1, detokenize=False
        )
        prompts = [{"prompt_token_ids": s.input_ids.tolist()} for s in segments]
        with self._found.running():
            answers = self._engine.generate(prompts, parameters, use_tqdm=False)
        for segment, answer in zip(segments, answers, strict=True):
            self._found.check_answer(answer, segment)
            yield self._of(answer, segment, k)

    def _of(self, answer: Any, segment: Segment, k: int) -> Listed:
        spec = self.record.spec
        if answer.prompt_logprobs is None:
            raise TeacherError(
                f"{spec}: gave no log-probabilities of the prompt; is it vLLM 0.11 or newer?"
            )
        entries = entries_of(answer.prompt_logprobs)
        return listed_of(entries, segment, k, vocab_size=self.record.vocab_size, spec=spec)


def entries_of(prompt_logprobs: Any) -> list[Mapping[int, float] | None]:
    """Log-probabilities by id at each token, of either of vLLM's two shapes.

    A list with one dictionary for each token (None for the first), id to an object with `.logprob`; or one flat object
    whose `token_ids` and `logprobs` are cut by `start_indices` and `end_indices`, in which the next token is
    listed first and may be listed again.
    """
    if not hasattr(prompt_logprobs, "start_indices"):
        return [
            None if at is None else {int(i): float(e.logprob) for i, e in at.items()}
            for at in prompt_logprobs
        ]
    flat = prompt_logprobs
    ids, values = np.asarray(flat.token_ids), np.asarray(flat.logprobs, np.float64)
    return [
        dict(zip(ids[a:b].tolist(), values[a:b].tolist(), strict=True)) if b > a else None
        for a, b in zip(flat.start_indices, flat.end_indices, strict=True)
    ]
