"""vLLM on this machine: its module for a device, and the engine of a seam."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, ClassVar

from softlabels.errors import MissingExtraError, TeacherError
from softlabels.teachers.local_engine import Arguments, LocalEngine
from softlabels.teachers.segments import Segment


@dataclass(frozen=True, kw_only=True)
class Vllm(LocalEngine):
    """A model that is here, and the vLLM that is to run it."""

    kind: ClassVar[str] = "vllm"
    called: ClassVar[str] = "vLLM"
    seams: ClassVar[tuple[str, ...]] = ("pool", "worker", "states", "list")

    def start(self, **more: Any) -> Any:
        """The engine, with settings of a seam.

        Raises:
            TeacherError: what vLLM says.
        """
        a, settings = self.arguments, dict(more)
        if a.gpu_memory is not None:
            settings["gpu_memory_utilization"] = a.gpu_memory
        if a.max_len is not None:
            settings["max_model_len"] = a.max_len
        if a.step_tokens is not None:
            settings |= {"max_num_batched_tokens": a.step_tokens, "enable_chunked_prefill": True}
        if self.record.device == "cpu":
            settings["enforce_eager"] = True  # compiling takes longer than it saves
        with self.running():
            return self.module.LLM(
                model=str(self.model.folder),
                tokenizer=str(self.model.folder),
                dtype=self.record.dtype,
                hf_overrides={"head_dtype": "float32"},
                tensor_parallel_size=a.tp,
                enable_prefix_caching=False,
                disable_log_stats=True,
                **settings,
            )

    def check_answer(self, answer: Any, segment: Segment) -> None:
        """Refuse an answer to something else than was asked.

        Raises:
            TeacherError: other ids.
        """
        if list(answer.prompt_token_ids) != segment.input_ids.tolist():
            raise TeacherError(f"{self.record.spec}: answered for other ids than it was asked for")


def module_of(arguments: Arguments) -> tuple[Any, str]:
    """The module, and the type of device that it was built for.

    Raises:
        MissingExtraError: it is not installed.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Of vLLM for CPUs: it would take cores for itself alone, and 4 GiB for a cache that prompts hardly need.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if arguments.gpu_memory is None:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    try:
        import vllm
        from vllm.platforms import current_platform
    except ImportError as e:
        raise MissingExtraError("vllm", "vllm", "--teacher vllm:PATH") from e
    return vllm, str(current_platform.device_type)
