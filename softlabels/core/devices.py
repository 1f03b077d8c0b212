"""Where to compute and in what precision, with the reason: for teachers and students alike."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from softlabels.errors import ConfigError, first_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PAYS = 1.3
"""bfloat16 on a CPU is chosen from this measured speed-up on."""


class Choice(NamedTuple):
    """A device and a dtype, and why."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def dtype_name(self) -> str:
        """`float32`, `bfloat16` or `float16`."""
        return str(self.dtype).removeprefix("torch.")


def choose(device: str, dtype: str) -> Choice:
    """Resolve `auto`; `ConfigError` for what is no device or dtype, or not to be had on this machine."""
    where, why_where = _device(device)
    what, why_what = _dtype(dtype, where)
    name = str(what).removeprefix("torch.")
    return Choice(where, what, f"device: {where} ({why_where}); dtype: {name} ({why_what})")


def _device(wanted: str) -> tuple[torch.device, str]:
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"found {torch.cuda.get_device_name()}"
        return torch.device("cpu"), "no GPU found"
    try:
        device = torch.device(wanted)
    except RuntimeError as e:
        raise ConfigError(
            f"--device {wanted!r}: not a device; expected auto, cpu, cuda or cuda:N"
        ) from e
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {wanted}: this machine has no CUDA device; use --device cpu")
    try:
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:  # as each back-end has it
        raise ConfigError(
            f"--device {wanted}: nothing can be computed there ({first_line(e)}); use --device cpu or auto"
        ) from e
    return device, "asked for"


def _dtype(wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    if wanted != "auto":
        if wanted not in DTYPES:
            raise ConfigError(f"--dtype {wanted!r}: expected auto, {', '.join(DTYPES)}")
        return DTYPES[wanted], "asked for"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return torch.bfloat16, "the GPU computes in it natively"
        return torch.float32, "the GPU has no native bfloat16"
    ratio = bfloat16_speed_up()
    if ratio >= PAYS:
        return (
            torch.bfloat16,
            f"its matrix products run {ratio:.1f} times as fast as float32 here, measured",
        )
    return torch.float32, f"bfloat16 would run {ratio:.1f} times as fast here, measured"


def bfloat16_speed_up(size: int = 768, repeats: int = 5) -> float:
    """Time of a float32 matrix product over that of a bfloat16 one on this CPU (best of several).

    The processor's time, not the clock's, and in turns: on a busy machine the clock once said 3.1 where it is 0.6,
    and a run took bfloat16 to its loss.
    """
    dtypes = (torch.float32, torch.bfloat16)
    best = dict.fromkeys(dtypes, float("inf"))
    matrices = {dtype: torch.ones(size, size, dtype=dtype) for dtype in dtypes}
    for _ in range(repeats):
        for dtype, a in matrices.items():
            start = time.process_time()
            torch.mm(a, a)
            best[dtype] = min(best[dtype], time.process_time() - start)
    return best[torch.float32] / max(best[torch.bfloat16], 1e-9)
