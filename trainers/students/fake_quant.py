"""Students that compute with weights of a few bits while they learn: quantisation-aware distillation.

1. A group of weights of an output has one scale, its largest magnitude over the largest level (7 of int4, 127 of int8),
   rounded to bfloat16; each weight is rounded to the nearest level. Symmetric, no zero point.
2. The forward pass computes with `level * scale`; the gradient goes to the weights as they were, as if nothing had been
   rounded (straight-through, Bengio et al. 2013).
3. What is saved are the rounded weights. A level has 8 bits at most and a scale 8, so their product is exact in
   float32, and rounding again changes nothing: a saved student computes what the one in memory did, to the bit.

Price: one more copy of each quantised weight during a step, and an elementwise pass over it in each micro-batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from softlabels.errors import ConfigError

KEY = "softlabels_fake_quant"
"""Of a student's config.json: the grid its weights lie on."""
EXTRAS = ("embeddings", "head")
"""What is quantised only where it is named."""
FORMS = "int4, int8, int4-g64 (a scale for each 64 weights of an output), and after a comma embeddings, head"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Levels and groups."""

    bits: int
    """4 or 8."""
    group: int | None = None
    """Weights of an output that share a scale; None: all."""
    extras: tuple[str, ...] = ()
    """Of `EXTRAS`, those that are quantised, too."""

    @classmethod
    def parse(cls, text: str, *, where: str) -> Grid:
        """`int4-g64`, `int8`, `int4-g64,embeddings,head`.

        Raises:
            ConfigError: something else.
        """
        form, *extras = text.split(",")
        match = re.fullmatch(r"int([48])(?:-g([1-9]\d{0,5}))?", form)
        if match is None or set(extras) - set(EXTRAS) or len(set(extras)) != len(extras):
            raise ConfigError(f"{where}: fake-quant={text!r} is no grid; expected {FORMS}")
        group = None if match[2] is None else int(match[2])
        return cls(bits=int(match[1]), group=group, extras=tuple(sorted(extras)))

    def __str__(self) -> str:
        group = "" if self.group is None else f"-g{self.group}"
        return ",".join([f"int{self.bits}{group}", *self.extras])

    @property
    def top(self) -> int:
        """The largest level; the smallest is its negative."""
        return int(2 ** (self.bits - 1)) - 1

    def quantise(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Levels `[..., D]` and scales `[..., D / group, 1]` (bfloat16's numbers), both in the weight's dtype."""
        groups = weight.reshape(*weight.shape[:-1], -1, self.group or weight.shape[-1])
        scales = groups.abs().amax(dim=-1, keepdim=True) / self.top
        scales = scales.to(torch.bfloat16).to(weight.dtype).clamp(min=TINY)
        # the largest is within 1/256 of `top`, so no level lies outside
        return (groups / scales).round_().flatten(-2), scales

    def rounded(self, weight: Tensor) -> Tensor:
        """The nearest weights on the grid `[..., D]`."""
        levels, scales = self.quantise(weight)
        return levels.reshape(*scales.shape[:-1], -1).mul_(scales).flatten(-2)

    def seen(self, weight: Tensor) -> Tensor:
        """`rounded`, with a gradient that goes straight through to the weight."""
        seen: Tensor = _StraightThrough.apply(weight, self)  # type: ignore[no-untyped-call]
        return seen


TINY = 2.0**-126
"""Least scale: bfloat16's smallest normal number."""


class _StraightThrough(torch.autograd.Function):
    """The grid forward, nothing backward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, grid: Grid) -> Tensor:
        return grid.rounded(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class FakeQuantLinear(nn.Linear):
    """Computes with the rounded weight; its parameter, and that one's name, stay those of `nn.Linear`."""

    grid: Grid

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` to `[..., E]`."""
        return nn.functional.linear(x, self.grid.seen(self.weight), self.bias)


class FakeQuantEmbedding(nn.Embedding):
    """Looks up rounded rows; a group lies within a row, so only those that are looked up are rounded."""

    grid: Grid

    def forward(self, ids: Tensor) -> Tensor:
        """`[...]` to `[..., D]`."""
        return self.grid.seen(super().forward(ids))


KINDS: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.Linear: FakeQuantLinear,
    nn.Embedding: FakeQuantEmbedding,
}


def apply_grid(model: Any, grid: Grid, *, head: Tensor, where: str) -> None:
    """Have a model of transformers compute on a grid, and say so in its configuration.

    Linear layers are quantised; the head and the embeddings of ids only where the grid names them.

    Args:
        head: weight of its head.

    Raises:
        ConfigError: no such layers, groups that do not divide them, or a tied head of which only half is named.
    """
    table = model.get_input_embeddings()
    tied = isinstance(table, nn.Embedding) and table.weight is head
    if tied and len(grid.extras) == 1:
        raise ConfigError(
            f"{where}: its head is tied to its embeddings, so both are quantised or neither; name "
            f"fake-quant=…,{','.join(EXTRAS)}, or neither"
        )
    chosen = {
        name: module
        for name, module in model.named_modules()
        if type(module) in KINDS and _is_chosen(module, grid, head, table)
    }
    if not any(type(m) is nn.Linear and m.weight is not head for m in chosen.values()):
        raise ConfigError(
            f"{where}: {type(model).__name__} has no linear layers of torch to quantise"
        )
    widths = {int(m.weight.shape[1]): name for name, m in chosen.items()}
    for width, name in sorted(widths.items()):
        if grid.group is not None and width % grid.group:
            fitting = [
                g for g in (256, 192, 128, 96, 64, 32, 16, 8) if not any(w % g for w in widths)
            ]
            ways = f"g{fitting[0]} divides all" if fitting else f"leave -g{grid.group} out"
            raise ConfigError(
                f"{where}: groups of {grid.group} do not divide the {width} inputs of {name}; {ways}"
            )
    for module in chosen.values():
        module.__class__ = KINDS[type(module)]
        module.grid = grid
    setattr(model.config, KEY, str(grid))


def _is_chosen(module: nn.Module, grid: Grid, head: Tensor, table: object) -> bool:
    if module is table:
        return "embeddings" in grid.extras
    if isinstance(module, nn.Linear):
        return module.weight is not head or "head" in grid.extras
    return False


def on_grid(model: nn.Module) -> Iterator[tuple[str, FakeQuantLinear | FakeQuantEmbedding]]:
    """The quantised layers by name."""
    for name, module in model.named_modules():
        if isinstance(module, FakeQuantLinear | FakeQuantEmbedding):
            yield name, module


def seen_weight(layer: Any) -> Tensor:
    """The weight that a layer computes with."""
    weight: Tensor = layer.weight
    return layer.grid.seen(weight) if isinstance(layer, FakeQuantLinear) else weight


@torch.no_grad()
def rounded_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state with quantised weights as they are computed with; tied ones stay one tensor."""
    grids = {f"{name}.weight": layer.grid for name, layer in on_grid(model)}
    rounded: dict[int, Tensor] = {}
    out = dict(state)
    for name in grids.keys() & out.keys():
        whole = out[name]
        if whole.data_ptr() not in rounded:
            rounded[whole.data_ptr()] = grids[name].rounded(whole)
        out[name] = rounded[whole.data_ptr()]
    return out


def settle(model: nn.Module) -> dict[str, Grid]:
    """Make a model an ordinary one, which computes the same without rounding anew; returns the grids it had."""
    grids = {}
    for name, layer in list(on_grid(model)):
        grids[name] = layer.grid
        layer.weight.data = layer.grid.rounded(layer.weight.data)
        plain: Any = nn.Linear if isinstance(layer, FakeQuantLinear) else nn.Embedding
        layer.__class__ = plain
    return grids
