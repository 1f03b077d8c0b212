"""`timm:NAME?weights=FILE`: a classifier that timm knows by name, with weights from a file."""

from __future__ import annotations

from typing import Any

import torch

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

__all__ = ["load_timm"]


def load_timm(argument: str, options: TeacherOptions) -> VisionTeacher:
    """Make the model, with as many classes as its weights have, and load them.

    Raises:
        ConfigError: a malformed argument, another domain.
        TeacherError: timm knows no such model, or the weights are another's.
        MissingExtraError: timm is not installed.
    """
    spec = f"timm:{argument}"
    check_domain(spec, options)
    name, weights, classes = named_weights(argument, "timm")
    try:
        import timm
    except ImportError as e:
        raise MissingExtraError("timm", "timm", "--teacher timm:NAME") from e
    tensors, digest = load_weights(weights, spec)
    try:
        head = timm.create_model(name, pretrained=False).pretrained_cfg["classifier"]
        count = len(tensors[f"{head}.weight"])
        model: Any = timm.create_model(name, pretrained=False, num_classes=count)
        model.load_state_dict(tensors)
    except (RuntimeError, KeyError, TypeError, AttributeError) as e:
        raise TeacherError(
            f"{spec}: timm cannot make {name} with these weights ({type(e).__name__}: {e})"
        ) from e
    config = model.pretrained_cfg
    return VisionTeacher(
        Model(
            module=model,
            forward=model,
            classes=class_names(classes, count, None, spec),
            image_size=int(config["input_size"][-1]),
            mean=[255 * x for x in config["mean"]],
            std=[255 * x for x in config["std"]],
        ),
        spec=f"timm:{name}?weights={without_folder(f'x:{weights}')[2:]}",
        weights_sha256=digest,
        engine=f"timm {timm.__version__}, torch {torch.__version__}",
        options=options,
    )
