"""vLLM's workers select, in any engine that generates: an extension of their class, around prompt log-probabilities.

    LLM(model=…, worker_extension_cls="softlabels.capture.vllm_worker.Selecting")
    engine.collective_rpc("softlabels_begin", args=(wanted.text(),))    # once
    engine.generate(prompts, SamplingParams(max_tokens=1, extra_args=request(…)))
    engine.collective_rpc("softlabels_take")

A model runner computes prompt log-probabilities in one method, which it calls after each step with the hidden states of
all scheduled tokens. That method is private and another one in each of vLLM's two runners, so each has a few lines here
and a version of vLLM may break them, unlike the pooler (`vllm_pooler.py`). What was kept of a prompt waits in the
worker until it is taken. A request that was preempted in its prompt begins again, and so does what is kept of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch

from softlabels.capture.request import KEY, Prompts, Selects, Wanted

if TYPE_CHECKING:
    from torch import Tensor


class Selecting:
    """What a vLLM worker is told (`worker_extension_cls`)."""

    model_runner: Any
    """The worker's own."""

    def softlabels_begin(self, wanted: str) -> None:
        """Keep this of each prompt that asks for it, from now on."""
        parsed = Wanted.parse(wanted)
        runner = self.model_runner
        held = Prompts(Selects(runner.model.compute_logits, parsed, parsed.job()))
        known = getattr(runner, KEY, None)
        setattr(runner, KEY, held)
        if known is None:
            _wrap(runner)

    def softlabels_take(self) -> list[tuple[int, list[int], bytes]]:
        """Of each prompt that is done its number, and the shape and the 32-bit words of what was kept (`wire.py`)."""
        held: Prompts = getattr(self.model_runner, KEY)
        done, held.done = held.done, {}
        return [
            (number, list(words.shape), words.cpu().contiguous().numpy().tobytes())
            for number, words in done.items()
        ]


def _wrap(runner: Any) -> None:
    if hasattr(runner, "_get_prompt_logprobs_dict"):
        _wrap_first(runner)
    elif getattr(runner, "prompt_logprobs_worker", None) is not None:
        _wrap_second(runner)
    elif hasattr(runner, "prompt_logprobs_worker"):
        pass  # its part of the model's layers has no head
    else:
        raise RuntimeError(
            f"{type(runner).__name__} computes prompt log-probabilities in no method that is known; leave out "
            "?seam=worker"
        )


def _wrap_first(runner: Any) -> None:
    """`vllm.v1.worker.gpu_model_runner`, which CPUs have, too."""
    own = runner._get_prompt_logprobs_dict

    @wraps(own)
    @torch.inference_mode()
    def wrapped(hidden_states: Tensor, num_scheduled_tokens: Mapping[str, int]) -> Any:
        for request_id, n in num_scheduled_tokens.items():
            state = runner.requests[request_id]
            if state.prompt_token_ids is None or state.sampling_params is None:
                continue
            index = runner.input_batch.req_id_to_index[request_id]
            start = int(runner.query_start_loc.np[index])
            getattr(runner, KEY).add(
                hidden_states[start : start + n],
                int(state.num_computed_tokens),
                len(state.prompt_token_ids),
                state.sampling_params.extra_args,
            )
        return own(hidden_states, num_scheduled_tokens)

    runner._get_prompt_logprobs_dict = wrapped


def _wrap_second(runner: Any) -> None:
    """`vllm.v1.worker.gpu.model_runner`, which GPUs have by default; written against its source, and not run."""
    worker = runner.prompt_logprobs_worker
    own_add, own_remove = worker.add_request, worker.remove_request
    own_compute = worker.compute_prompt_logprobs
    extras: dict[str, Any] = {}

    @wraps(own_add)
    def add_request(req_id: str, req_idx: int, sampling_params: Any) -> None:
        extras[req_id] = sampling_params.extra_args
        own_add(req_id, req_idx, sampling_params)

    @wraps(own_remove)
    def remove_request(req_id: str) -> None:
        extras.pop(req_id, None)
        own_remove(req_id)

    @wraps(own_compute)
    def compute(
        logits_fn: Any,
        hidden_states: Tensor,
        input_batch: Any,
        all_token_ids: Any,
        num_computed_tokens: Any,
        prompt_lens: Any,
    ) -> Any:
        sizes = prompt_lens[input_batch.idx_mapping_np]
        for i, request_id in enumerate(input_batch.req_ids):
            start, stop = (int(input_batch.query_start_loc_np[j]) for j in (i, i + 1))
            getattr(runner, KEY).add(
                hidden_states[start:stop],
                int(input_batch.num_computed_prefill_tokens_np[i]),
                int(sizes[i]),
                extras.get(request_id),
            )
        return own_compute(
            logits_fn,
            hidden_states,
            input_batch,
            all_token_ids,
            num_computed_tokens,
            prompt_lens,
        )

    worker.add_request, worker.remove_request = add_request, remove_request
    worker.compute_prompt_logprobs = compute
