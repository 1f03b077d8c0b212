"""The head of a model that somebody else made and wrapped: where it is, what it computes, what becomes of its output.

It is looked for below DDP, torch.compile and PEFT. A plain linear layer is its matrix; whatever else stands there (an
adapter, a quantised layer) is called (`trainers/loss/called_head.py`). What the model does with the head's output (a
scale, as of Cohere and Granite, a soft cap, as of Gemma) is not read off a list of families but measured, once for a
model: its head is made to give numbers that are known, on two tokens, and what comes out must be a number of its
configuration, for a scale that is learnt would get no gradient.

A linear layer that torch deals out by its rows (`ColwiseParallel`) is its own rows and the processes that have the
others; its hidden states and its output are then `DTensor`s, the same in each process.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from softlabels.core.ranks import Ranks
from softlabels.errors import ConfigError
from trainers.loss.called_head import CalledHead
from trainers.loss.head import Cap, Head

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

SMALL, LARGE = 2.0**-10, 2.0**24
PROBE = (SMALL, LARGE, 1.0, 8.0, 64.0, -1.0, -8.0, -64.0)
"""What a head is made to give: one number for the scale, one for the cap, and others that both must explain."""
_CAPS: weakref.WeakKeyDictionary[nn.Module, Cap] = weakref.WeakKeyDictionary()


def bare_model(model: Any) -> Any:
    """The model of transformers below what wraps it.

    Raises:
        ConfigError: it has no head over a vocabulary.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)  # torch.compile
        if inner is None and isinstance(getattr(model, "module", None), nn.Module):  # DDP
            inner = model.module
        if inner is None and callable(getattr(model, "get_base_model", None)):  # PEFT
            if getattr(model.active_peft_config, "is_prompt_learning", False):
                raise ConfigError(
                    f"{type(model).__name__}: {model.active_peft_config.peft_type.value} puts states before a row's "
                    "tokens, where documents that share a row would not be kept apart; use an adapter of weights (LoRA)"
                )
            inner = model.get_base_model()
        if inner is None or inner is model:
            break
        model = inner
    if not callable(getattr(model, "get_output_embeddings", None)) or (
        model.get_output_embeddings() is None
    ):
        raise ConfigError(
            f"{type(model).__name__}: has no head over a vocabulary (get_output_embeddings); give a causal language "
            "model"
        )
    return model


def head_width(head: nn.Module) -> int:
    """V of a head, also where its weight is packed."""
    for module in head.modules():
        if isinstance(width := getattr(module, "out_features", None), int):
            return width
    weight: Any = head.weight
    return int(weight.shape[0])


def head_of(
    module: nn.Module, call: Callable[[Tensor], Tensor], cap: Cap, given: Tensor
) -> Head | CalledHead:
    """A head for the loss, as it is now, from within a forward (so that its weights are there, and autocast is on).

    Args:
        module: the head's layer.
        call: its forward.
        cap: what becomes of its output.
        given: the states that it was given.

    Raises:
        ConfigError: it is dealt out in a way that it cannot be learnt through.
    """
    on = torch.is_autocast_enabled(given.device.type)
    autocast = torch.get_autocast_dtype(given.device.type) if on else None
    _check_in_one(module)
    plain = _plain(module, dealt=_is_dealt(given))
    if plain is not None:
        return Head(
            weight=local(plain.weight),
            bias=None if plain.bias is None else local(plain.bias),
            scale=cap.scale,
            softcap=cap.softcap,
            compute_dtype=autocast,
            ranks=_ranks(plain.weight),
        )
    trained = tuple(p for p in module.parameters() if p.requires_grad)
    return CalledHead(
        call=call, trained=trained, vocab_size=head_width(module), cap=cap, autocast=autocast
    )


def _check_in_one(head: nn.Module) -> None:
    """Refuse a head whose layers FSDP gathers one by one, which only their own forwards would do."""
    for name, part in head.named_modules():
        if name and callable(getattr(part, "unshard", None)):
            raise ConfigError(
                f"the model's head is sharded in parts ({name}): its weights are not whole where the loss is computed; "
                "give fully_shard the head as one layer, or the model alone"
            )


def _plain(module: nn.Module, *, dealt: bool) -> nn.Linear | None:
    """The linear layer that a head is, also behind PEFT's `modules_to_save`; None: it is more than a matrix.

    Args:
        dealt: whether its states are the same in several processes, as those of a head that is dealt out are.
    """
    wrapper: Any = module
    copies = getattr(wrapper, "modules_to_save", None)
    if isinstance(copies, nn.ModuleDict):
        on = [] if wrapper.disable_adapters else wrapper.active_adapters
        active = [name for name in on if name in copies]
        if len(active) != 1:
            return None
        module = copies[active[0]]
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        return None
    weight = type(module.weight.data) is Tensor or (dealt and _is_dealt(module.weight))
    return module if weight and not _changed(module) else None


def _is_dealt(tensor: object) -> TypeGuard[DTensor]:
    """Told without the import, which a single process can do without."""
    return hasattr(tensor, "device_mesh")


def _ranks(weight: object) -> Ranks | None:
    """The processes that a head is dealt out over, each with some of its rows; None: it is whole.

    Raises:
        ConfigError: it is dealt out in another way.
    """
    if not _is_dealt(weight):
        return None
    mesh, ways = weight.device_mesh, weight.placements
    if mesh.ndim != 1 or not ways[0].is_shard(0):
        raise ConfigError(
            f"the model's head is dealt out as {tuple(ways)} over {mesh.ndim} dimensions of processes; deal it out by "
            "its rows over one (ColwiseParallel)"
        )
    return Ranks(weight.shape[0], mesh.get_group())


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process."""
    return tensor.to_local() if _is_dealt(tensor) else tensor


def states_here(hidden: Tensor) -> Tensor:
    """The states that a head is given, which are the same in all processes of a head that is dealt out.

    Raises:
        ConfigError: each process has others.
    """
    if not _is_dealt(hidden):
        return hidden
    ways = hidden.placements
    if not all(way.is_replicate() for way in ways):
        raise ConfigError(
            f"the model's head is given states that are dealt out as {tuple(ways)}; let every process have all of them "
            "(input_layouts=Replicate())"
        )
    return hidden.to_local(grad_placements=ways)


def as_output(out: Tensor, hidden: Tensor) -> Tensor:
    """What a head gives in the place of its logits, the same in all processes, as its own output would be."""
    if not _is_dealt(hidden):
        return out
    return type(hidden).from_local(out, hidden.device_mesh, hidden.placements, run_check=False)


def _changed(module: nn.Module) -> bool:
    """Whether somebody gave this very layer another forward (accelerate's hooks); ours is looked through."""
    own = vars(module).get("forward")
    return own is not None and not hasattr(own, "softlabels_before")


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


def cap_of(model: Any, inputs: Mapping[str, Tensor]) -> Cap:
    """What a model does with its head's output; found out once, by a forward.

    It is of two tokens, for unsloth goes round the head where there is one.

    Args:
        model: as it is called, with all that wraps it.
        inputs: of one or more rows.

    Raises:
        ConfigError: it is neither a scale nor a cap, or not of its configuration.
    """
    bare = bare_model(model)
    head = bare.get_output_embeddings()
    if head not in _CAPS:
        tiny = {n: t[:1, :2] if t.dim() > 1 else t[:1] for n, t in inputs.items()}
        _CAPS[head] = _measured(model, bare, head, tiny)
    return _CAPS[head]


def _measured(model: Any, bare: Any, head: nn.Module, inputs: Mapping[str, Tensor]) -> Cap:
    v, where = head_width(head), type(bare).__name__
    known = torch.tensor(PROBE)

    def give(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        out = known.to(hidden.device).repeat(-(-v // len(known)))[:v]
        return as_output(out.expand(*hidden.shape[:-1], v), hidden)

    devices = {t.device for t in inputs.values() if t.device.type == "cuda"}
    with instead(head, give), torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
        logits = getattr(model(**inputs, use_cache=False), "logits", None)
    if logits is not None and _is_dealt(logits):
        logits = logits.full_tensor()
    first = 0
    if logits is not None and logits.shape[-1] != v:
        ranks = _ranks(getattr(head, "weight", None))
        if ranks is not None and logits.shape[-1] == len(ranks.ids):
            v, first = len(ranks.ids), ranks.first  # each process has the logits of its own ids
    if logits is None or logits.shape[-1] != v:
        raise ConfigError(
            f"{where}: its forward does not return the {v} logits that its head gives at each position; give a causal "
            "language model whose output has `logits`"
        )
    found = logits.reshape(-1, v)[0, : len(known)].float().cpu().roll(first)
    near = 1e-5 if logits.dtype == torch.float32 else 1e-2
    numbers = _numbers(bare.config)
    scale = _nearest(float(found[0]) / SMALL, numbers, near)
    softcap = None
    if len(found) > 1 and abs(float(found[1]) - scale * LARGE) > 0.1 * abs(scale) * LARGE:
        softcap = _nearest(float(found[1]), numbers, near)
    cap = Cap(scale, softcap)
    if not torch.allclose(cap(known[: len(found)]), found, rtol=near, atol=near * SMALL):
        raise ConfigError(
            f"{where}: what it does with its head's output is neither a scale nor a soft cap of its configuration (of "
            f"{', '.join(f'{z:g}' for z in PROBE)} it makes {', '.join(f'{z:.6g}' for z in found.tolist())}); the loss "
            "would be another model's; distil it through a head of its own"
        )
    return cap


def _numbers(config: Any) -> set[float]:
    """1, and every number above 0 of a configuration and of that of its text model, and one over it."""
    found = {1.0}
    for one in (config, config.get_text_config()):
        for value in one.to_dict().values():
            if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                found |= {float(value), 1.0 / float(value)}
    return found


def _nearest(value: float, numbers: set[float], near: float) -> float:
    """The number that is meant, or NaN, which explains nothing."""
    best = min(numbers, key=lambda n: abs(n - value))
    return best if abs(best - value) <= near * abs(best) else float("nan")
