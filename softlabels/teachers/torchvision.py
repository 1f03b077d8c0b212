"""`torchvision:NAME?weights=FILE`: a classifier that torchvision knows by name, with weights from a file."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from softlabels.core.registry import without_folder
from softlabels.errors import MissingExtraError, TeacherError
from softlabels.teachers import TeacherOptions
from softlabels.teachers.vision import (
    Model,
    VisionTeacher,
    check_domain,
    class_names,
    load_weights,
    named_weights,
)

__all__ = ["load_torchvision"]


def load_torchvision(argument: str, options: TeacherOptions) -> VisionTeacher:
    """Make the model, with as many classes as its weights have, and load them.

    Raises:
        ConfigError: a malformed argument, another domain.
        TeacherError: torchvision knows no such model, or the weights are another's.
        MissingExtraError: torchvision is not installed.
    """
    spec = f"torchvision:{argument}"
    check_domain(spec, options)
    name, weights, classes = named_weights(argument, "torchvision")
    try:
        import torchvision
    except ImportError as e:
        raise MissingExtraError("torchvision", "timm", "--teacher torchvision:NAME") from e
    tensors, digest = load_weights(weights, spec)
    try:
        published = torchvision.models.get_model_weights(name).DEFAULT
        model: Any = torchvision.models.get_model(name, weights=None)
        head = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
        count = len(tensors[f"{head}.weight"])
        model = torchvision.models.get_model(name, weights=None, num_classes=count)
        model.load_state_dict(tensors)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise TeacherError(
            f"{spec}: torchvision cannot make {name} with these weights ({type(e).__name__}: {e})"
        ) from e
    shown = published.transforms()
    return VisionTeacher(
        Model(
            module=model,
            forward=model,
            classes=class_names(classes, count, published.meta.get("categories"), spec),
            image_size=int(shown.crop_size[0]),
            mean=[255 * x for x in shown.mean],
            std=[255 * x for x in shown.std],
        ),
        spec=f"torchvision:{name}?weights={without_folder(f'x:{weights}')[2:]}",
        weights_sha256=digest,
        engine=f"torchvision {torchvision.__version__}, torch {torch.__version__}",
        options=options,
    )
