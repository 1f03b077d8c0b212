"""What all teachers of images share: pixels of views in, logits over classes out; and those of transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softlabels.core.devices import choose
from softlabels.core.records import canonical
from softlabels.core.registry import without_folder
from softlabels.domains.image_classification import DOMAIN, ImageRow
from softlabels.errors import TeacherError
from softlabels.format.identity import TeacherRecord, TokenizerRecord
from softlabels.teachers import ImageInput, Teacher, TeacherOptions, TeacherTokenizer
from softlabels.teachers.hf_source import HFSource

PREPROCESSOR = "preprocessor_config.json"
IMAGES = 32
"""Views in one forward pass, at most."""


class ClassList(TeacherTokenizer):
    """What gives the ids of a classifier's targets their meaning, in the place of a tokenizer.

    It saves no file, for the manifest has them.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.vocab_size = len(classes)
        self.record = TokenizerRecord(
            sha256=hashlib.sha256(canonical(list(classes))).hexdigest(),
            vocab_size=len(classes),
            special_ids={},
        )


class VisionTeacher(Teacher):
    """A classifier of images.

    Args:
        module: what to run.
        forward: `[B, 3, S, S]` to its logits `[B, C]`.
        classes: what they are called.
        images: how its images are made.
        spec: as the user named it.
        weights_sha256: of its weights.
        engine: what runs it.
        options: how.
    """

    def __init__(
        self,
        module: Any,
        *,
        forward: Callable[[Tensor], Tensor],
        classes: Sequence[str],
        images: ImageInput,
        spec: str,
        weights_sha256: str,
        engine: str,
        options: TeacherOptions,
    ) -> None:
        choice = choose(options.device, options.dtype)
        options.notice(f"teacher: {choice.reason}")
        self._module = module.to(choice.device, choice.dtype).eval()
        self._forward, self.device, self._dtype = forward, choice.device, choice.dtype
        self.classes, self.images = tuple(classes), images
        self.tokenizer = ClassList(classes)
        if len(classes) < 2:
            raise TeacherError(
                f"{spec}: its head has one output, which gives no distribution over classes; soft targets are for "
                "classifiers"
            )
        self.record = TeacherRecord(
            spec=spec,
            name=without_folder(spec).partition(":")[2],
            revision=None,
            weights_sha256=weights_sha256,
            dtype=choice.dtype_name,
            device=choice.device.type,
            engine=engine,
            vocab_size=len(classes),
            parameters=sum(p.numel() for p in self._module.parameters()),
        )

    @torch.no_grad()
    def logits(self, rows: Sequence[ImageRow]) -> Iterator[Tensor]:
        """Chunks `[n, C] float32`: a position for each row."""
        for start in range(0, len(rows), IMAGES):
            fed = ImageRow.pad(rows[start : start + IMAGES]).inputs["pixel_values"]
            pixels = torch.from_numpy(fed).to(self.device, self._dtype)
            try:
                logits = self._forward(pixels)
            except (RuntimeError, ValueError, AssertionError) as e:  # whatever a model has to say
                raise TeacherError(
                    f"{self.record.spec}: fails on images {list(pixels.shape)} ({type(e).__name__}: {e}); is "
                    f"--image-size one that it takes? Its own is {self.need_images().size}"
                ) from e
            if logits.shape != (len(pixels), self.record.vocab_size):
                raise TeacherError(
                    f"{self.record.spec}: gave logits {list(logits.shape)} for {len(pixels)} images, expected one for "
                    f"each of {self.record.vocab_size} classes"
                )
            yield logits.float()


def from_transformers(source: HFSource) -> VisionTeacher:
    """`hf:PATH`: a classifier as transformers loads it, ViT and others.

    Raises:
        TeacherError: it cannot be loaded, its head is not in the folder, or the folder does not say how its images are
            made.
    """
    model = source.model(DOMAIN.transformers)
    return VisionTeacher(
        model,
        forward=lambda pixels: model(pixel_values=pixels).logits,
        classes=[str(model.config.id2label[i]) for i in range(model.config.num_labels)],
        images=_preprocessing(source.found.folder, source.where),
        spec=source.spec,
        weights_sha256=source.weights_sha256,
        engine=source.engine,
        options=source.options,
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
