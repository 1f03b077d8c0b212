"""`vllm:PATH`: a causal LM in a local folder, run by vLLM on this machine's GPU.

vLLM gives log-probabilities of the prompt, at T=1 whatever the sampling temperature, of the k most probable ids and of
the next token: the limits of `teachers/listing.py`. They are taken before penalties and other processing
(`raw_logprobs`). vLLM makes log-probabilities `[tokens, V] float32` of a whole scheduling step at once, memory that its
own profile does not count: lower `gpu_memory_utilization` (`?gpu_memory=0.8`) if it runs out.

The engine starts when k is known. Prefix caching is off: of a cached prefix vLLM gives no log-probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from softlabels.core.local_model import LocalModel
from softlabels.core.registry import name_of, without_folder
from softlabels.errors import ConfigError, MissingExtraError, TeacherError
from softlabels.format.identity import TeacherRecord
from softlabels.teachers import TeacherOptions, causal_only
from softlabels.teachers.hf import context_of, digest_weights
from softlabels.teachers.listing import Listed, ListingTeacher, listed_of
from softlabels.teachers.segments import Segment
from softlabels.teachers.tokenizer import check_covers, load_tokenizer


class VllmTeacher(ListingTeacher):
    """vLLM's offline engine on a model's folder; it starts with `check_k`.

    Raises:
        TeacherError: no such folder, no weights, or no tokenizer.
        ConfigError: a malformed argument.
        MissingExtraError: vLLM is not installed.
    """

    def __init__(self, argument: str, options: TeacherOptions) -> None:
        super().__init__()
        path, written = name_of(argument)
        extra = dict(written)
        try:
            memory = float(extra.get("gpu_memory", "0.9"))
        except ValueError:
            memory = 0.0
        if set(extra) - {"gpu_memory"} or not 0 < memory <= 1:
            raise ConfigError(
                f"--teacher vllm:{argument}: expected vllm:PATH or vllm:PATH?gpu_memory=SHARE"
            )
        spec = without_folder(f"vllm:{path}")
        causal_only(options, spec)
        folder = Path(path)
        if not folder.is_dir():
            raise TeacherError(f"vllm:{path}: no such folder; give the path of a model folder")
        try:
            import vllm
        except ImportError as e:
            raise MissingExtraError("vllm", "vllm", "--teacher vllm:PATH") from e
        if options.device not in ("auto", "cuda"):
            raise ConfigError(f"--device {options.device}: vLLM runs on cuda here")
        self._vllm: Any = vllm
        self._engine: Any = None
        self._settings = {
            "model": str(folder),
            "tokenizer": str(folder),
            "dtype": options.dtype,
            "logprobs_mode": "raw_logprobs",
            "enable_prefix_caching": False,
            "gpu_memory_utilization": memory,
        }
        import transformers

        config = transformers.AutoConfig.from_pretrained(folder)
        self.context = context_of(config)
        model = LocalModel(folder=folder, gguf=None, name=folder.resolve().name)
        self.record = TeacherRecord(
            spec=spec,
            name=model.name,
            revision=None,
            weights_sha256=digest_weights(model, f"vllm:{path}"),
            dtype=_dtype(options.dtype, config),
            device="cuda",
            engine=f"vllm {vllm.__version__}",
            vocab_size=int(config.get_text_config().vocab_size),
            parameters=0,
        )
        self.tokenizer = load_tokenizer(folder, spec=spec)
        check_covers(self.tokenizer.vocab_size, self.record)

    def check_k(self, k: int) -> None:
        """Start the engine, ready to list k ids."""
        self._engine = self._vllm.LLM(**self._settings, max_logprobs=k)

    def ask(self, segments: Sequence[Segment], k: int) -> Iterator[Listed]:
        """All at once; vLLM makes its own batches of them."""
        assert self._engine is not None, "check_k comes first"
        if not segments:
            return
        prompts = [{"prompt_token_ids": s.input_ids.tolist()} for s in segments]
        asked = self._vllm.SamplingParams(prompt_logprobs=k, max_tokens=1, detokenize=False)
        answers = self._engine.generate(prompts, asked, use_tqdm=False)
        for segment, answer in zip(segments, answers, strict=True):
            yield self._of(answer, segment, k)

    def _of(self, answer: Any, segment: Segment, k: int) -> Listed:
        spec = self.record.spec
        if list(answer.prompt_token_ids) != segment.input_ids.tolist():
            raise TeacherError(f"{spec}: answered for other ids than it was asked for")
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


def _dtype(wanted: str, config: Any) -> str:
    """What vLLM's `auto` takes: float32 weights run in bfloat16, others as they are."""
    if wanted != "auto":
        return wanted
    own = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return "bfloat16" if own == "float32" else own
