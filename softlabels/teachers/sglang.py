"""`sglang:PATH`: a causal LM in a local folder, run by SGLang on this machine, on one device or several (`?tp=`).

Its logits processor selects (`capture/sglang_hook.py`): all that `hf:` gives. Written against the source of SGLang
0.5.23, tested on stand-ins for its objects, and **not run**: SGLang asks for CUDA.

The prefix cache is off: what is cached is not computed again, and so is not given. The head computes in float32, from
weights that SGLang casts for each chunk of `--head-mib`. A token is sampled, and SGLang wants some to spare, so a
document leaves room for `ROOM` tokens. If a process of SGLang's dies, SGLang ends this one with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from softlabels.capture import Job
from softlabels.capture.request import KEY, Wanted
from softlabels.capture.sglang_hook import capturing, told, unchanged
from softlabels.errors import MissingExtraError, TeacherError
from softlabels.teachers import Teacher, TeacherOptions
from softlabels.teachers.local_engine import Arguments, LocalEngine, SelectingTeacher
from softlabels.teachers.segments import Segment

if TYPE_CHECKING:
    from torch import Tensor

ROOM = 7
"""Tokens by which a document must be shorter than the engine's context: its scheduler takes fewer than context - 6."""


@dataclass(frozen=True, kw_only=True)
class Sglang(LocalEngine):
    """A model that is here, and the SGLang that is to run it."""

    kind: ClassVar[str] = "sglang"
    called: ClassVar[str] = "SGLang"

    @property
    def context(self) -> int | None:
        """Tokens of a document, at most."""
        room = None if self.reads is None else self.reads - ROOM
        known = [n for n in (room, self.arguments.max_len) if n is not None]
        return min(known, default=None)

    def start(self) -> Any:
        """The engine.

        Raises:
            TeacherError: what SGLang says.
        """
        a, settings = self.arguments, dict[str, Any]()
        if a.gpu_memory is not None:
            settings["mem_fraction_static"] = a.gpu_memory
        if a.step_tokens is not None:
            settings |= {"chunked_prefill_size": a.step_tokens, "max_prefill_tokens": a.step_tokens}
        if a.max_len is not None:
            wide = a.max_len + ROOM
            settings["context_length"] = wide if self.reads is None else min(wide, self.reads)
        with self.running():
            return self.module.Engine(
                model_path=str(self.model.folder),
                skip_tokenizer_init=True,
                dtype=self.record.dtype,
                device=self.record.device,
                tp_size=a.tp,
                enable_fp32_lm_head=True,
                enable_custom_logit_processor=True,
                disable_radix_cache=True,
                disable_overlap_schedule=True,  # what is kept is waited for anyway
                disable_cuda_graph=True,  # a graph would leave out what Python does
                **settings,
            )


class SglangTeacher(SelectingTeacher):
    """SGLang's offline engine, whose logits processor selects."""

    _found: Sglang

    def _answers(
        self, segments: Sequence[Segment], asked: Sequence[dict[str, Any]], job: Job
    ) -> list[Tensor]:
        engine = self._engine_of(job)
        ids = [s.input_ids.tolist() for s in segments]
        parameters = [
            {"max_new_tokens": 1, "temperature": 0, "custom_params": told(a, number=i, size=len(p))}
            for i, (a, p) in enumerate(zip(asked, ids, strict=True))
        ]
        said = engine.generate(
            input_ids=ids, sampling_params=parameters, custom_logit_processor=unchanged()
        )
        return [self._of(answer["meta_info"], p) for answer, p in zip(said, ids, strict=True)]

    def _of(self, info: dict[str, Any], ids: Sequence[int]) -> Tensor:
        spec = self.record.spec
        if info["prompt_tokens"] != len(ids):
            raise TeacherError(f"{spec}: answered for other ids than it was asked for")
        words = [w for w in info.get(KEY) or () if w is not None]
        if len(words) != 1:
            raise TeacherError(
                f"{spec}: selected nothing; its plugin did not run. SGLang must be one that loads plugins "
                "(sglang.srt.plugins; 0.5.23 does), softlabels be installed beside it, and SGLANG_PLUGINS be unset or "
                "name softlabels"
            )
        return torch.from_numpy(words[0])

    def _start(self, wanted: Wanted) -> Any:
        with capturing(wanted):
            return self._found.start()

    def _stop(self) -> None:
        self._engine.shutdown()


def module_of(arguments: Arguments) -> tuple[Any, str]:
    """The module, and the type of device that it will run on.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import sglang
    except ImportError as e:
        raise MissingExtraError("sglang", "sglang", "--teacher sglang:PATH") from e
    return sglang, "cuda" if torch.cuda.is_available() else "cpu"


def load_sglang(argument: str, options: TeacherOptions) -> Teacher:
    """Look at the folder; the engine starts when it is first needed.

    Raises:
        TeacherError: no such folder, no weights, or no tokenizer.
        ConfigError: a malformed argument, or a device that this machine has not.
        MissingExtraError: SGLang is not installed.
    """
    return SglangTeacher(Sglang.at(argument, options, module_of))
