"""SGLang's logits processor as an estimator: an engine whose prefill gives what a store keeps.

SGLang loads `register` in each of its processes (entry point `sglang.srt.plugins`). It does nothing unless the
environment says what is wanted (`capturing`): then SGLang puts `around` around its own
`LogitsProcessor.forward`, which every causal LM calls after its final norm with the hidden states of all scheduled
tokens. Written against the source of SGLang 0.5.23, and **not run**: it asks for CUDA.

    in    `custom_params` of a request's sampling parameters: text (`told`), since they pass through msgpack. SGLang
          keeps them in a batch only if the request names a custom logit processor, so each names one that changes
          nothing (`unchanged`)
    out   `LogitsProcessorOutput.customized_info`, which has one entry a request. The scheduler hands it to the
          request's `meta_info` when its last chunk is done, and drops it before

So what was kept of a chunk waits here, in the scheduler's process, until the prompt is done. A request that was put
back begins again, and so does what is kept of it. Where layers are shared, each rank gets all logits and selects, and
the first one's entry is sent. What is called of SGLang beyond its plugins is `LogitsProcessor._get_logits`, which its
own processor of input log-probabilities is given, too: the product with the head, its scale, cap and padding.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from softlabels.capture.request import KEY, NUMBER, Prompts, Selects, Wanted

if TYPE_CHECKING:
    from torch import Tensor

VARIABLE = "SOFTLABELS_SGLANG_CAPTURE"
TARGET = "sglang.srt.layers.logits_processor.LogitsProcessor.forward"
SIZE = "size"
"""Of a request: tokens of its prompt."""


@contextmanager
def capturing(wanted: Wanted) -> Iterator[None]:
    """Processes that are started meanwhile keep what is wanted."""
    os.environ[VARIABLE] = wanted.text()
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def register() -> None:
    """Ask for the hook, if the environment does."""
    if not os.environ.get(VARIABLE):
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(TARGET, around, HookType.AROUND)


def told(asked: Mapping[str, Any], *, number: int, size: int) -> dict[str, str]:
    """`custom_params` of a prompt of `size` tokens that is asked for what `request.request` wrote."""
    arrays = {n: None if v is None else b64encode(v).decode() for n, v in asked[KEY].items()}
    return {KEY: json.dumps(arrays | {NUMBER: number, SIZE: size})}


def unchanged() -> str:
    """A custom logit processor that changes nothing, as SGLang takes it."""
    return str(__getattr__("Unchanged").to_str())


@cache
def __getattr__(name: str) -> Any:
    """`Unchanged`, whose base is SGLang's: other processes find it here by its name."""
    if name != "Unchanged":
        raise AttributeError(name)
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

    def same(self: Any, logits: Any, custom_param_list: Any = None) -> Any:
        return logits

    return type(name, (CustomLogitProcessor,), {"__module__": __name__, "__call__": same})


def around(
    own: Callable[..., Any],
    processor: Any,
    input_ids: Any,
    hidden_states: Tensor,
    lm_head: Any,
    logits_metadata: Any,
    *rest: Any,
    **named: Any,
) -> Any:
    """`LogitsProcessor.forward`, with what is kept of the prompts that are now done."""
    out = own(processor, input_ids, hidden_states, lm_head, logits_metadata, *rest, **named)
    batch = logits_metadata
    asked = getattr(getattr(batch, "sampling_info", None), "custom_params", None)
    if not asked or not batch.forward_mode.is_extend():
        return out
    from sglang.srt.layers.logits_processor import LogitsMetadata

    metadata = LogitsMetadata.from_forward_batch(batch)
    prompts = _prompts()
    wanted, job = prompts.selects.wanted, prompts.selects.job
    prompts.selects = Selects(
        lambda hidden: processor._get_logits(hidden, lm_head, metadata), wanted, job
    )
    start, done = 0, []
    spans = zip(batch.extend_prefix_lens_cpu, batch.extend_seq_lens_cpu, asked, strict=True)
    for begin, n, params in spans:
        chunk = hidden_states[start : start + n]
        start += n
        done.append(_of_chunk(prompts, chunk, int(begin), params))
    out.customized_info = {**(out.customized_info or {}), KEY: done}
    return out


def _of_chunk(prompts: Prompts, chunk: Tensor, begin: int, params: Mapping[str, Any] | None) -> Any:
    """The words of a prompt that this chunk ends, `[N, W]` (or `refusal`'s) int32; None: it is not done."""
    text = (params or {}).get(KEY)
    if text is None:
        return None
    found = json.loads(text)
    number, size = int(found.pop(NUMBER)), int(found.pop(SIZE))
    arrays = {n: None if v is None else b64decode(v) for n, v in found.items()}
    prompts.add(chunk, begin, size, {KEY: arrays | {NUMBER: number}})
    words = prompts.done.pop(number, None)
    return None if words is None else words.cpu().numpy()


@cache
def _prompts() -> Prompts:
    """Of this process."""
    wanted = Wanted.parse(os.environ[VARIABLE])
    return Prompts(Selects(_no_head, wanted, wanted.job()))


def _no_head(hidden: Tensor) -> Tensor:
    raise AssertionError("the head is known from the first batch on")
