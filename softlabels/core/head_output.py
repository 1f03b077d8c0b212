"""What a model does with its head's output before it is a logit: nothing, a scale (Cohere, Granite), a cap (Gemma).

It is not read off a list of families, nor off names in a configuration, but measured: the head is made to give numbers
that are known, and what comes out must be a number of the configuration (a scale that is learnt would get no gradient),
the same for every id. What lies before the head shows in what the head is given (`head_input.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from softlabels.core.linear_head import Cap
from softlabels.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

SMALL, LARGE = 2.0**-10, 2.0**24
PROBE = (SMALL, LARGE, 1.0, 8.0, 64.0, -1.0, -8.0, -64.0)
"""What a head is made to give, at each place another: one number for the scale, one for the cap, and others that both
must explain."""


def few_ids(names: Sequence[str], vocab_size: int, device: torch.device) -> dict[str, Tensor]:
    """`[1, len(PROBE)]` of each name that a model is fed: low ids, and masks that hide nothing."""
    ids = (torch.arange(len(PROBE), device=device)[None] + 1) % vocab_size
    return {name: torch.ones_like(ids) if "mask" in name else ids for name in names}


def cap_of_output(model: Any, head: nn.Module, width: int, forward: Callable[[], Any]) -> Cap:
    """What a model does with its head's output.

    Args:
        model: of transformers.
        head: its layer over the vocabulary.
        width: V.
        forward: runs the model, with whatever wraps it, on `len(PROBE)` tokens or more.

    Raises:
        ConfigError: it is neither a scale nor a cap, or not of its configuration.
    """
    known = torch.tensor(PROBE)

    def give(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        places = hidden.shape[:-1]
        many = known.to(hidden.device).repeat(-(-places.numel() // len(known)))
        out = many[: places.numel()].view(*places, 1).expand(*places, width)
        return as_output(out, hidden)

    devices = [model.device] if model.device.type == "cuda" else []
    with (
        instead(head, give),
        _without_bias(model),
        torch.no_grad(),
        torch.random.fork_rng(devices=devices),
    ):
        logits = getattr(forward(), "logits", None)
    if is_dealt(logits):
        logits = logits.full_tensor()
    if logits is None or logits.shape[:-1].numel() < len(known):
        raise ConfigError(
            f"{type(model).__name__}: its forward does not return the logits that its head gives at each position"
        )
    found = logits.flatten(0, -2)[: len(known)].float().cpu()
    near = 1e-5 if logits.dtype == torch.float32 else 1e-2
    numbers = _numbers(model.config.to_dict())
    low, high = (float(found[i, 0]) for i in (0, 1))
    scale, softcap = _nearest(low / SMALL, numbers, near), None
    if abs(high - scale * LARGE) > 0.1 * abs(scale) * LARGE:
        softcap = _nearest(high, numbers, near)
    cap = Cap(scale, softcap)
    if not torch.allclose(cap(known)[:, None], found, rtol=near, atol=near * SMALL):
        shown = found[torch.arange(len(known)), (found - cap(known)[:, None]).abs().argmax(dim=1)]
        raise ConfigError(
            f"{type(model).__name__}: what it does with its head's output is neither a scale nor a soft cap of its "
            f"configuration (of {_listed(PROBE)} it makes {_listed(shown.tolist())})"
        )
    return cap


def seen_by_head(head: nn.Module, forward: Callable[[], Any]) -> tuple[Tensor, Tensor]:
    """Run a model as it is.

    Returns:
        What its head was given, `[N, D]`; its logits, `[N, V] float32`.

    Raises:
        ConfigError: it does not call the head, or calls it more than once.
    """
    given: list[Tensor] = []

    def see(_: nn.Module, args: tuple[Tensor]) -> None:
        given.append(args[0])

    with head.register_forward_pre_hook(see):
        logits = forward().logits
    if len(given) != 1:
        raise ConfigError(
            f"the model's forward calls its head, {head}, {len(given)} times, expected once; use a model that does"
        )
    return given[0].flatten(0, -2), logits.flatten(0, -2).float()


def check_logits(model: Any, found: Tensor, expected: Tensor) -> None:
    """Compare logits `[N, V]` that were made of a head's input with the model's own.

    Raises:
        ConfigError: they differ by more than rounding.
    """
    apart = (found - expected).masked_fill(found == expected, 0.0)  # equal infinities, too
    worst = apart.abs().max().item()
    reach = expected.masked_fill(expected.isinf(), 0.0).abs().max().item()
    step = 1e-4 if model.dtype == torch.float32 else 2.0**-6
    if not worst <= step * max(1.0, reach):
        raise ConfigError(
            f"the head of {type(model).__name__} is not understood: logits computed in chunks differ from the model's "
            f"own by {worst:g}"
        )


@contextmanager
def instead(
    head: nn.Module, forward: Callable[..., Tensor]
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Let a head do something else for a while; yields what it did before."""
    own, before = vars(head).get("forward"), head.forward

    def during(*args: Any, **kwargs: Any) -> Tensor:
        return forward(*args, **kwargs)

    if own is None:
        during.softlabels_before = before  # type: ignore[attr-defined]
    head.forward = during
    try:
        yield before
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own


def is_dealt(tensor: object) -> TypeGuard[DTensor]:
    """Told without the import, which a single process can do without."""
    return hasattr(tensor, "device_mesh")


def as_output(out: Tensor, hidden: Tensor) -> Tensor:
    """What a head gives in the place of its logits, the same in all processes, as its own output would be."""
    if not is_dealt(hidden):
        return out
    return type(hidden).from_local(out, hidden.device_mesh, hidden.placements, run_check=False)


@contextmanager
def _without_bias(model: Any) -> Iterator[None]:
    """As if the buffer beside a head (`bias_of`) were zero."""
    bias = getattr(model, "final_logits_bias", None)
    if bias is None:
        yield
        return
    before = bias.detach().clone()
    try:
        bias.detach().zero_()
        yield
    finally:
        bias.detach().copy_(before)


def _numbers(settings: Mapping[str, Any]) -> set[float]:
    """1, and every number above 0 of a configuration and of those within it, and one over it."""
    found = {1.0}
    for value in settings.values():
        if isinstance(value, Mapping):
            found |= _numbers(value)
        elif isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            found |= {float(value), 1.0 / float(value)}
    return found


def _nearest(value: float, numbers: set[float], near: float) -> float:
    """The number that is meant, or NaN, which explains nothing."""
    best = min(numbers, key=lambda n: abs(n - value))
    return best if abs(best - value) <= near * abs(best) else float("nan")


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{z:.6g}" for z in numbers)
