"""The head of a model that somebody else made and wrapped: where it is, what it computes, what becomes of its output.

It is looked for below DDP, torch.compile and PEFT. A plain linear layer is its matrix; whatever else stands there (an
adapter, a quantised layer) is called (`trainers/loss/called_head.py`). What the model does with the head's output is
measured, once for a model (`softlabels/core/head_output.py`).

A linear layer that torch deals out by its rows (`ColwiseParallel`) is its own rows and the processes that have the
others; its hidden states and its output are then `DTensor`s, the same in each process.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from softlabels.core.head_output import PROBE, cap_of_output, is_dealt
from softlabels.core.linear_head import Cap
from softlabels.core.ranks import Ranks
from softlabels.errors import ConfigError
from trainers.loss.called_head import CalledHead
from trainers.loss.head import Head

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
    plain = _plain(module, dealt=is_dealt(given))
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
    weight = type(module.weight.data) is Tensor or (dealt and is_dealt(module.weight))
    return module if weight and not _changed(module) else None


def _ranks(weight: object) -> Ranks | None:
    """The processes that a head is dealt out over, each with some of its rows; None: it is whole.

    Raises:
        ConfigError: it is dealt out in another way.
    """
    if not is_dealt(weight):
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
    return tensor.to_local() if is_dealt(tensor) else tensor


def states_here(head: nn.Module, hidden: Tensor) -> Tensor:
    """The states that a head is given, which are the same in all processes of a head that is dealt out.

    Raises:
        ConfigError: each process has others, or the head is not dealt out by its rows.
    """
    if not is_dealt(hidden):
        return hidden
    _ranks(getattr(head, "weight", None))
    ways = hidden.placements
    if not all(way.is_replicate() for way in ways):
        raise ConfigError(
            f"the model's head is given states that are dealt out as {tuple(ways)}; let every process have all of them "
            "(input_layouts=Replicate())"
        )
    return hidden.to_local(grad_placements=ways)


def _changed(module: nn.Module) -> bool:
    """Whether somebody gave this very layer another forward (accelerate's hooks); ours is looked through."""
    own = vars(module).get("forward")
    return own is not None and not hasattr(own, "softlabels_before")


def cap_of(model: Any, inputs: Mapping[str, Tensor]) -> Cap:
    """What a model does with its head's output; found out once, by a forward.

    It is of two tokens, again and again, for unsloth goes round the head where there is one.

    Args:
        model: as it is called, with all that wraps it.
        inputs: of one or more rows.

    Raises:
        ConfigError: it is neither a scale nor a cap, or not of its configuration.
    """
    bare = bare_model(model)
    head = bare.get_output_embeddings()
    if head not in _CAPS:
        few = {n: t[:1, _two(t)] if t.dim() > 1 else t[:1] for n, t in inputs.items()}
        try:
            _CAPS[head] = cap_of_output(
                bare, head, head_width(head), lambda: model(**few, use_cache=False)
            )
        except ConfigError as e:
            raise ConfigError(
                f"{e}; the loss would be another model's; distil it through a head of its own"
            ) from e
    return _CAPS[head]


def _two(tensor: Tensor) -> Tensor:
    """Places of the first two tokens, as often as a probe has numbers."""
    return torch.arange(len(PROBE), device=tensor.device) % min(2, tensor.shape[1])
