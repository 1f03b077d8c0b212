"""vLLM on this machine: what a `vllm:` teacher may be given, the module for its device, and the engine of a seam."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from softlabels.core.local_model import LocalModel
from softlabels.errors import ConfigError, MissingExtraError, TeacherError, first_line
from softlabels.format.identity import TeacherRecord
from softlabels.teachers.segments import Segment
from softlabels.teachers.tokenizer import HFTokenizer

SEAMS = ("pool", "worker", "states", "list")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What may stand after the `?`."""

    tp: int = 1
    """Devices that share each layer."""
    gpu_memory: float | None = None
    """Share of a device's memory that vLLM takes."""
    max_len: int | None = None
    """Tokens of a document, at most, if that is less than the model reads."""
    step_tokens: int | None = None
    """Tokens that vLLM schedules at a time; longer documents are computed in pieces."""
    seam: str = "pool"

    @staticmethod
    def parse(written: Sequence[tuple[str, str]], *, spec: str) -> Arguments:
        """Of names and values, as of `tp=8&gpu_memory=0.85`.

        Raises:
            ConfigError: an unknown name, or a value that is none.
        """
        kinds = {"tp": int, "gpu_memory": float, "max_len": int, "step_tokens": int, "seam": str}
        assert set(kinds) == {f.name for f in fields(Arguments)}
        try:
            given = {n: kinds[n](v) for n, v in written}
            found = Arguments(**given)
            counts = [n for n in (found.tp, found.max_len, found.step_tokens) if n is not None]
            share = 1.0 if found.gpu_memory is None else found.gpu_memory
            if min(counts) < 1 or not 0 < share <= 1 or found.seam not in SEAMS:
                raise ValueError
        except (KeyError, ValueError) as e:
            raise ConfigError(
                f"--teacher {spec}: expected vllm:PATH, or after a ? some of tp=DEVICES, gpu_memory=SHARE, "
                f"max_len=TOKENS, step_tokens=TOKENS and seam={'|'.join(SEAMS)}, joined by &"
            ) from e
        return found


@dataclass(frozen=True, kw_only=True)
class Vllm:
    """A model that is here, and the vLLM that is to run it."""

    vllm: Any
    """The module."""
    model: LocalModel
    arguments: Arguments
    record: TeacherRecord
    tokenizer: HFTokenizer
    architecture: str
    context: int | None
    """Tokens that it reads at a time."""
    head_bytes: int

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
            return self.vllm.LLM(
                model=str(self.model.folder),
                tokenizer=str(self.model.folder),
                dtype=self.record.dtype,
                hf_overrides={"head_dtype": "float32"},
                tensor_parallel_size=a.tp,
                enable_prefix_caching=False,
                disable_log_stats=True,
                **settings,
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        """What vLLM raises, as a sentence.

        Raises:
            TeacherError: it failed.
        """
        try:
            yield
        except Exception as e:  # whatever an engine of many libraries may raise
            raise TeacherError(
                f"{self.record.spec}: vLLM failed: {first_line(e)}; its own messages are above. If it ran out of "
                "memory, give ?gpu_memory=SHARE, a smaller ?max_len=TOKENS, or more devices with ?tp=DEVICES"
            ) from e

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
