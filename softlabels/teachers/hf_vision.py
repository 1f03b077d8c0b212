"""`hf:PATH` of images: a classifier as transformers loads it, ViT and others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from softlabels.core.local_model import LocalModel
from softlabels.core.registry import without_folder
from softlabels.errors import TeacherError
from softlabels.teachers import ImageInput, TeacherOptions
from softlabels.teachers.hf_source import load_whole
from softlabels.teachers.vision import Model, VisionTeacher

__all__ = ["load_hf_vision"]

PREPROCESSOR = "preprocessor_config.json"


def load_hf_vision(
    path: str, found: LocalModel, options: TeacherOptions, transformers: Any, weights_sha256: str
) -> VisionTeacher:
    """Load the model of a folder.

    Args:
        path: as the user named it.
        found: where it is.
        options: how to run it.
        transformers: the module.
        weights_sha256: of the folder's weights.

    Raises:
        TeacherError: it cannot be loaded, its head is not in the folder, or the folder does not say how its images are
            made.
    """
    spec = f"hf:{path}"
    model = load_whole(transformers.AutoModelForImageClassification, found, spec)
    return VisionTeacher(
        Model(
            module=model,
            forward=lambda pixels: model(pixel_values=pixels).logits,
            classes=[str(model.config.id2label[i]) for i in range(model.config.num_labels)],
            images=_preprocessing(found.folder, spec),
        ),
        spec=without_folder(spec),
        weights_sha256=weights_sha256,
        engine=f"transformers {transformers.__version__}, torch {torch.__version__}",
        options=options,
    )


def _preprocessing(folder: Path, spec: str) -> ImageInput:
    """What the folder declares."""
    path = folder / PREPROCESSOR
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        size = found.get("crop_size") or found["size"]
        if isinstance(size, dict):
            size = size.get("shortest_edge") or size["height"]
        scale = 1.0 / found.get("rescale_factor", 1 / 255)
        mean, std = ([scale * float(x) for x in found[n]] for n in ("image_mean", "image_std"))
        if not (len(mean) == len(std) == 3 and min(std) > 0):
            raise ValueError(f"image_mean {mean}, image_std {std}")
        return ImageInput(size=int(size), mean=mean, std=std)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise TeacherError(
            f"{spec}: {PREPROCESSOR} does not say how its images are made ({type(e).__name__}: {e}); it needs size, "
            "image_mean and image_std of three channels"
        ) from e
