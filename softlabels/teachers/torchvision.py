"""`torchvision:NAME?weights=FILE`: a classifier that torchvision knows by name, with weights from a file."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from softlabels.domains.image_classification.teacher import Made, VisionTeacher, load_named
from softlabels.teachers import ImageInput, TeacherOptions


def load_torchvision(argument: str, options: TeacherOptions) -> VisionTeacher:
    """Make the model, with as many classes as its weights have; arguments and errors as of `load_named`."""
    return load_named("torchvision", argument, options, _make)


def _make(torchvision: Any, name: str, tensors: dict[str, Tensor]) -> Made:
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
