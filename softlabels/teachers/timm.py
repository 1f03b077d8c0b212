"""`timm:NAME?weights=FILE`: a classifier that timm knows by name, with weights from a file."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from softlabels.domains.image_classification.teacher import Made, VisionTeacher, load_named
from softlabels.teachers import ImageInput, TeacherOptions


def load_timm(argument: str, options: TeacherOptions) -> VisionTeacher:
    """Make the model, with as many classes as its weights have; arguments and errors as of `load_named`."""
    return load_named("timm", argument, options, _make)


def _make(timm: Any, name: str, tensors: dict[str, Tensor]) -> Made:
    head = timm.create_model(name, pretrained=False).pretrained_cfg["classifier"]
    count = len(tensors[f"{head}.weight"])
    model = timm.create_model(name, pretrained=False, num_classes=count)
    model.load_state_dict(tensors)
    config = model.pretrained_cfg
    mean, std = ([255 * x for x in config[key]] for key in ("mean", "std"))
    images = ImageInput(size=int(config["input_size"][-1]), mean=mean, std=std)
    return Made(model, count, None, images)
