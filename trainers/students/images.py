"""Students that look at images.

    hf-config:FILE, hf:PATH      of transformers (`students.py`)
    cnn:WIDTHxDEPTH              a small network of our own (`small_cnn.py`)
    timm:NAME, torchvision:NAME  of these libraries, weights drawn from the seed; nothing is downloaded

What is not of transformers is saved as `config.json`, which names how it was made, and `model.safetensors`; `hf:PATH`
loads it, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from softlabels.domains.image_classification import NAME
from softlabels.errors import ConfigError, MissingExtraError
from trainers.data.batch import Batch
from trainers.data.tasks import CAUSAL, Task
from trainers.students import STUDENTS, Student
from trainers.students.encoders import EncoderStudent, class_head
from trainers.students.small_cnn import GROUPS, SmallCnn

KEY = "softlabels_student"
"""Of a config.json: the spec that makes the model."""


class ImageStudent(EncoderStudent):
    """Any module from pixels to logits that ends in a linear head."""

    def __init__(self, model: nn.Module, head: nn.Linear, *, spec: str, task: Task) -> None:
        super().__init__(model, head)
        self._spec, self._task = spec, task

    def forward_model(self, batch: Batch) -> Any:
        """`[B, 3, S, S]`."""
        return self.model(batch.inputs["pixel_values"])

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write `config.json` and `model.safetensors`."""
        config = {KEY: self._spec, "classes": list(self._task.classes)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        state = self.model.state_dict() if weights is None else weights
        save_file(
            {n: t.detach().cpu().contiguous() for n, t in state.items()},
            folder / "model.safetensors",
        )


def _make(spec: str, seed: int, task: Task, make: Callable[[], Any]) -> ImageStudent:
    """A student of images, its weights from the seed.

    Raises:
        ConfigError: the store is of another domain, or the library cannot make the model.
    """
    if task.domain != NAME:
        raise ConfigError(
            f"--student {spec}: looks at images, which do not serve a store of the domain {task.domain}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: nn.Module = make()
        except (RuntimeError, ValueError, TypeError) as e:
            raise ConfigError(f"--student {spec}: cannot be made ({e})") from e
    head = class_head(model, len(task.classes), where=f"--student {spec}")
    return ImageStudent(model, head, spec=spec, task=task)


def from_cnn(argument: str, *, seed: int, task: Task = CAUSAL) -> ImageStudent:
    """`cnn:WIDTHxDEPTH`: a small convolutional network, its weights from the seed.

    Raises:
        ConfigError: a malformed argument, or a width that the groups do not divide.
    """
    found = re.fullmatch(r"(\d{1,4})x(\d{1,2})", argument)
    width, depth = (int(found[1]), int(found[2])) if found else (0, 0)
    spec = f"cnn:{argument}"
    if width < GROUPS or width % GROUPS or not 1 <= depth <= 8:
        raise ConfigError(
            f"--student {spec}: expected cnn:WIDTHxDEPTH, WIDTH a multiple of {GROUPS}, DEPTH 1 to 8, e.g. cnn:16x3"
        )
    return _make(spec, seed, task, lambda: SmallCnn(width, depth, len(task.classes)))


def from_timm(argument: str, *, seed: int, task: Task = CAUSAL) -> ImageStudent:
    """`timm:NAME`."""

    def make() -> Any:
        timm = _library("timm")
        return timm.create_model(argument, pretrained=False, num_classes=len(task.classes))

    return _make(f"timm:{argument}", seed, task, make)


def from_torchvision(argument: str, *, seed: int, task: Task = CAUSAL) -> ImageStudent:
    """`torchvision:NAME`."""

    def make() -> Any:
        models = _library("torchvision").models
        return models.get_model(argument, weights=None, num_classes=len(task.classes))

    return _make(f"torchvision:{argument}", seed, task, make)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as e:
        raise MissingExtraError(name, "timm", f"--student {name}:NAME") from e


OF_FOLDERS = ("hf", "hf-config", "layers-of", "new")
"""Kinds that save a model as transformers does: no saved student names them, nor a folder to be made from."""


def saved_spec(folder: Path) -> str | None:
    """The spec that makes a student that was saved in a folder; None: it is a model of transformers."""
    try:
        spec = json.loads((folder / "config.json").read_text(encoding="utf-8")).get(KEY)
    except (OSError, ValueError, AttributeError):
        return None
    return spec if isinstance(spec, str) else None


def load_saved(folder: Path, spec: str, task: Task) -> Student:
    """A student that was saved with the spec that makes it.

    Raises:
        ConfigError: its classes are others, or its files are damaged.
    """
    name, _, argument = spec.partition(":")
    if name in OF_FOLDERS or name not in STUDENTS:
        raise ConfigError(
            f"--student hf:{folder}: config.json names {spec!r}, which nothing here makes; install the package that "
            "does, or upgrade softlabels"
        )
    student = STUDENTS.load(name)(argument, seed=0, task=task)
    try:
        classes = json.loads((folder / "config.json").read_text(encoding="utf-8"))["classes"]
        state = load_file(folder / "model.safetensors")
        if classes != list(task.classes):
            raise ConfigError(
                f"--student hf:{folder}: its classes are not the store's ({len(classes)} and {len(task.classes)}, or "
                "of other names); use a student of these"
            )
        student.model.load_state_dict(state)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as e:
        if isinstance(e, ConfigError):
            raise
        raise ConfigError(f"--student hf:{folder}: cannot be loaded ({e})") from e
    student.source = folder
    return student
