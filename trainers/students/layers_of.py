"""`layers-of:PATH?keep=0,2,4`: some layers of a model, with its embeddings, final norm and head.

The model at PATH is read once; what `softtrain student` writes (and what a run's checkpoints hold) no longer needs it.
DistilBERT's rule (Sanh et al. 2019, §3) is to keep every other layer.

A layer may be what it is by its place: with rotation or without, of a sliding window or whole, with experts or without.
Where the configuration has a list of an entry for each layer, the kept entries go along. Where a layer would become
another by its new place it is refused, for its weights were trained as what it was.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from softlabels.core.local_model import loading
from softlabels.errors import ConfigError
from trainers.data.tasks import CAUSAL, Task
from trainers.domains import DOMAINS
from trainers.students import Student
from trainers.students.hf import load_model, student_of

NUMBERED = re.compile(r"^(.*?\.(?:layers?|h|blocks)\.)(\d+)((?:\..*)?)$")
"""A name below a layer: what is before its number, the number, what is after."""
OTHER_LISTS = re.compile(r"architectures|.*_ids?")
"""Lists of a configuration that have no entry for each layer, however long they are."""
PLAIN = (bool, int, float, str, type(None))


def from_layers(argument: str, *, seed: int, task: Task = CAUSAL) -> Student:
    """Those layers, in that order, and everything around them."""
    path, keep = _split_keep(argument)
    spec = f"layers-of:{argument}"
    where = f"--student {spec}"
    if not DOMAINS.load(task.domain).stacked:
        raise ConfigError(
            f"{where}: keeps some layers of one stack, and a model of the domain {task.domain} is not one; "
            "use new:SIZE, hf-config:FILE or hf:PATH"
        )
    source, lies = load_model(path, spec, seed=seed, task=task)
    total = getattr(source.config, "num_hidden_layers", None)
    if not isinstance(total, int):
        raise ConfigError(
            f"{where}: a {type(source).__name__} is of several models (its configuration has no num_hidden_layers of "
            "its own), so nobody knows which layers are meant; use hf:PATH, or the folder of its text model alone"
        )
    if len(set(keep)) != len(keep) or max(keep) >= total:
        raise ConfigError(
            f"{where}: keep={','.join(map(str, keep))} must name different layers of 0..{total - 1}"
        )
    model = _with_layers(source, keep, total, where)
    _check_same(source, model, keep, where)
    return student_of(model, task, spec, source=lies)


def _with_layers(source: Any, keep: list[int], total: int, where: str) -> Any:
    """The smaller model, weights copied.

    Raises:
        ConfigError: transformers cannot make it, or a layer has other weights by its new place.
    """
    settings = {k: v for k, v in source.config.to_dict().items() if k != "quantization_config"}
    settings["num_hidden_layers"] = len(keep)
    for name, value in settings.items():
        if isinstance(value, list) and len(value) == total and not OTHER_LISTS.fullmatch(name):
            settings[name] = [value[i] for i in keep]
    with loading(where, ConfigError):
        model = type(source)(type(source.config)(**settings))
    try:
        model.load_state_dict(_kept_layers(source.state_dict(), keep))
    except RuntimeError as e:
        first = str(e).splitlines()[1:2]
        raise _displaced(
            where, f"the weights do not fit ({' '.join(first).strip()})", len(keep)
        ) from e
    model.tie_weights()
    return model


def _kept_layers(state: dict[str, Tensor], keep: list[int]) -> dict[str, Tensor]:
    """Renumber the kept layers; drop the others."""
    place = {layer: i for i, layer in enumerate(keep)}
    out = {}
    for name, tensor in state.items():
        match = NUMBERED.match(name)
        if match is None:
            out[name] = tensor
        elif int(match[2]) in place:
            out[f"{match[1]}{place[int(match[2])]}{match[3]}"] = tensor
    return out


def _check_same(source: nn.Module, model: nn.Module, keep: list[int], where: str) -> None:
    """Refuse a layer that is another than it was.

    Raises:
        ConfigError: names what differs.
    """
    before = dict(source.named_modules())
    for name, now in model.named_modules():
        match = NUMBERED.match(name)
        if match is None:
            continue
        new, old = int(match[2]), keep[int(match[2])]
        was = before.get(f"{match[1]}{old}{match[3]}")
        part = match[3].lstrip(".") or "layer"
        if was is None or type(was) is not type(now):
            raise _displaced(where, f"layer {old} has no such {part} as layer {new} has", len(keep))
        facts, others = _facts(was), _facts(now)
        for fact in sorted(facts.keys() | others.keys()):
            a, b = facts.get(fact), others.get(fact)
            if not _equal(a, b) and (type(a), a, type(b), b) != (int, old, int, new):  # its number
                raise _displaced(
                    where,
                    f"layer {old} was made with {fact}={_shown(a)} in its {part}, layer {new} would have {_shown(b)}",
                    len(keep),
                )


def _displaced(where: str, what: str, kept: int) -> ConfigError:
    return ConfigError(
        f"{where}: a layer of this model is what it is by its place, and {what}; keep layers whose new place makes "
        f"them what they were (keep={','.join(map(str, range(kept)))} often does), or hf:PATH"
    )


def _facts(module: nn.Module) -> dict[str, Any]:
    """What a module was made with, and its buffers."""
    made = {k: v for k, v in vars(module).items() if _is_plain(v) and k != "training"}
    return {**made, **dict(module.named_buffers(recurse=False))}


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return isinstance(value, PLAIN)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(torch.equal(a, b))
    return type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b)


def _shown(value: Any) -> str:
    return f"{list(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _split_keep(argument: str) -> tuple[str, list[int]]:
    """The path of a model, and the layers to keep."""
    path, _, query = argument.partition("?")
    values = dict(parse_qsl(query, keep_blank_values=True))
    if values.keys() != {"keep"}:
        raise ConfigError(f"--student layers-of:{argument}: expected layers-of:PATH?keep=0,2,4")
    words = values["keep"].split(",")
    if not all(w.strip().isdigit() for w in words):
        raise ConfigError(
            f"--student layers-of:{argument}: keep={values['keep']!r} is not a list of layer numbers"
        )
    return path, [int(w) for w in words]
