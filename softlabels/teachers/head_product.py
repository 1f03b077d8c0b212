"""A head's product with states, summed in float32: on a CUDA device from 16-bit numbers, where both are of these.

The product of two bfloat16 numbers, or of two float16 ones, is a float32 number without rounding (8 + 8 and 11 + 11
bits of 24), whatever multiplies them. So of 16-bit states and weights a product that multiplies 16-bit numbers and sums
in float32 is as exact as one that first makes float32 numbers of them; it needs no float32 copy of the weights, and
tensor cores take it. What must not happen is that sums are rounded to 16 bits in between: torch is told so. Not run on
a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

HALVES = (torch.bfloat16, torch.float16)


class HeadProduct(NamedTuple):
    """`states [n, D]` times a head's weight, plus its bias."""

    weight: Tensor
    """`[V, D]`, in its own dtype if `halves`, else `float32`."""
    bias: Tensor | None
    """`[V] float32`."""
    halves: bool
    """Whether 16-bit states are multiplied as they are."""

    @staticmethod
    def of(weight: Tensor, bias: Tensor | None) -> HeadProduct:
        """Of a head as the model has it."""
        halves = in_halves(weight.device.type, weight.dtype) and has_out_dtype()
        return HeadProduct(
            weight if halves else weight.float(), None if bias is None else bias.float(), halves
        )

    def __call__(self, states: Tensor) -> Tensor:
        """`[n, V] float32`."""
        if not self.halves or states.dtype != self.weight.dtype:
            return nn.functional.linear(states.float(), self.weight.float(), self.bias)
        with _sums_in_float32():
            z = torch.mm(states, self.weight.T, out_dtype=torch.float32)
        return z if self.bias is None else z.add_(self.bias)


def in_halves(device: str, dtype: torch.dtype) -> bool:
    """Whether weights of this dtype on this type of device stay as they are."""
    return device == "cuda" and dtype in HALVES


@cache
def has_out_dtype() -> bool:
    """Whether this torch (2.8 or later) multiplies 16-bit numbers into float32 ones."""
    try:
        one = torch.ones((1, 1), dtype=torch.bfloat16, device="meta")
        torch.mm(one, one, out_dtype=torch.float32)
    except (TypeError, RuntimeError):
        return False
    return True


@contextmanager
def _sums_in_float32() -> Iterator[None]:
    """Neither dtype's sums are rounded where a product is split."""
    of = torch.backends.cuda.matmul
    names = (
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_reduced_precision_reduction",
    )
    before = {name: getattr(of, name) for name in names}
    try:
        for name in names:
            setattr(of, name, False)
        yield
    finally:
        for name, value in before.items():
            setattr(of, name, value)
