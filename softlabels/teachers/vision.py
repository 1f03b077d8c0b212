"""`timm:NAME` and `torchvision:NAME`: classifiers of images that a library knows by name, with weights from a file.

timm:NAME?weights=FILE[&classes=FILE]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from softlabels.core.records import sha256_of
from softlabels.core.registry import name_of, without_folder
from softlabels.domains.image_classification import NAME
from softlabels.domains.image_classification.teacher import VisionTeacher
from softlabels.errors import ConfigError, MissingExtraError, TeacherError
from softlabels.teachers import ImageInput, TeacherOptions


class Made(NamedTuple):
    """A model that a library made by name."""

    module: Any
    classes: int
    """C: how many its weights have."""
    names: Sequence[str] | None
    """What these are called, if the library knows."""
    images: ImageInput


def _load(
    library: str,
    make: Callable[[Any, str, dict[str, Tensor]], Made],
    argument: str,
    options: TeacherOptions,
) -> VisionTeacher:
    """Make the model that `library` knows by name, with as many classes as its weights have."""
    spec = f"{library}:{argument}"
    if options.domain != NAME:
        raise ConfigError(
            f"--teacher {spec}: is a classifier of images; give --domain {NAME}, too, not {options.domain}"
        )
    name, written = name_of(argument)
    files = dict(written)
    if not name or "weights" not in files or set(files) - {"weights", "classes"}:
        raise ConfigError(
            f"--teacher {spec}: expected {library}:NAME?weights=FILE or {library}:NAME?weights=FILE&classes=FILE; "
            "nothing is downloaded"
        )
    weights = Path(files["weights"])
    try:
        module = import_module(library)
    except ImportError as e:
        raise MissingExtraError(library, "timm", f"--teacher {library}:NAME") from e
    tensors, digest = _load_weights(weights, spec)
    try:
        made = make(module, name, tensors)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise TeacherError(
            f"{spec}: {library} cannot make {name} with these weights ({type(e).__name__}: {e})"
        ) from e
    return VisionTeacher(
        made.module,
        forward=made.module,
        classes=_class_names(files.get("classes"), made.classes, made.names, spec),
        images=made.images,
        spec=f"{library}:{name}?weights={without_folder(f'x:{weights}')[2:]}",
        weights_sha256=digest,
        engine=f"{library} {module.__version__}, torch {torch.__version__}",
        options=options,
    )


def _timm(timm: Any, name: str, tensors: dict[str, Tensor]) -> Made:
    head = timm.create_model(name, pretrained=False).pretrained_cfg["classifier"]
    count = len(tensors[f"{head}.weight"])
    model = timm.create_model(name, pretrained=False, num_classes=count)
    model.load_state_dict(tensors)
    config = model.pretrained_cfg
    mean, std = ([255 * x for x in config[key]] for key in ("mean", "std"))
    images = ImageInput(size=int(config["input_size"][-1]), mean=mean, std=std)
    return Made(model, count, None, images)


def _torchvision(torchvision: Any, name: str, tensors: dict[str, Tensor]) -> Made:
    published = torchvision.models.get_model_weights(name).DEFAULT
    model = torchvision.models.get_model(name, weights=None)
    head = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    count = len(tensors[f"{head}.weight"])
    model = torchvision.models.get_model(name, weights=None, num_classes=count)
    model.load_state_dict(tensors)
    shown = published.transforms()
    mean, std = ([255 * x for x in values] for values in (shown.mean, shown.std))
    images = ImageInput(size=int(shown.crop_size[0]), mean=mean, std=std)
    return Made(model, count, published.meta.get("categories"), images)


load_timm = partial(_load, "timm", _timm)
load_torchvision = partial(_load, "torchvision", _torchvision)


def _load_weights(path: Path, spec: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of a `.safetensors` file or of one that `torch.save` made, and the file's sha256."""
    from safetensors.torch import load_file

    try:
        digest = sha256_of(path)
        if path.suffix == ".safetensors":
            return load_file(path), digest
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch's unpickler raises what it finds
        raise TeacherError(f"{spec}: {path} cannot be read as weights: {e}") from e
    for key in ("state_dict", "model"):
        found = found.get(key, found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise TeacherError(
            f"{spec}: {path} holds no weights by name; save the model's state_dict() there"
        )
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}, digest


def _class_names(
    path: str | None, count: int, known: Sequence[str] | None, spec: str
) -> Sequence[str]:
    """What the classes are called: the lines of a file, else as the model's library knows, else their numbers."""
    if not path:
        return known if known and len(known) == count else [str(i) for i in range(count)]
    try:
        names = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise TeacherError(f"{spec}: the classes of {path} cannot be read ({e})") from e
    if len(names) != count or len(set(names)) != count or not all(names):
        raise TeacherError(
            f"{spec}: {path} has {len(names)} lines, {len(set(names))} of them different; expected a name for each of "
            f"{count} classes"
        )
    return names
