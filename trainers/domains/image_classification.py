"""Classifiers of images as students, and as exports: `pixel_values [B, 3, S, S]` -> `logits [B, C]`.

The input's name is that of transformers, whatever library the student is of. S is the size that it was trained at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from softlabels.core.rows import UNLABELLED
from softlabels.domains.image_classification import ImageRow
from trainers.data.tasks import Task
from trainers.exports.domains import Example, Exported, Laid, Origin, Wrapped, of_transformers
from trainers.students import small_cnn
from trainers.students.encoders import EncoderStudent, class_head
from trainers.students.images import saved_spec

if TYPE_CHECKING:
    from softlabels.store.reader import Store

PREPROCESSOR = "preprocessor_config.json"
BILINEAR = 2
"""Pillow's number of it, which transformers writes."""


class _Classifier(Wrapped):
    def forward(self, pixel_values: Tensor) -> Tensor:
        return _logits(self.model, pixel_values)


def _logits(model: Any, pixels: Tensor) -> Tensor:
    """Of a model of transformers, or of one that gives nothing else."""
    out = model(pixels)
    logits: Tensor = out if isinstance(out, Tensor) else out.logits
    return logits.float()


class ImageClassification(Exported):
    """A view of an image is an example."""

    name = "image-classification"
    inputs = ("pixel_values",)
    axes: Mapping[str, Mapping[int, str]] = {"pixel_values": {0: "batch"}}
    usage = (
        "`pixel_values` is `[batch, 3, size, size]` float32 of any batch: red, green and blue from 0 to 255, "
        "minus `mean`, divided by `std`. `logits[b]` are those of image b, one for each of `classes`, or in a model of "
        "transformers `id2label`, in `config.json`."
    )
    unit = "images"
    module = _Classifier
    students = "cnn:WIDTHxDEPTH (cnn:32x3 has about 0.3M parameters), timm:NAME, torchvision:NAME or hf-config:FILE"

    def student(
        self, model: Any, task: Task, *, where: str, source: Path | None = None
    ) -> EncoderStudent:
        """The whole model runs at once."""
        head = class_head(model, len(task.classes), where=where)
        return EncoderStudent(model, head, source=source)

    def origin(self, folder: Path) -> Origin:
        """As the student was named: of our own, of timm or torchvision, or else of transformers."""
        spec = saved_spec(folder)
        if spec is None:
            return of_transformers(self.name)
        library, _, argument = spec.partition(":")
        if library == "cnn":
            return Origin(
                libraries=(),
                needs="torch safetensors",
                code='import sys\nsys.path.insert(0, "PATH")\nimport small_cnn, torch\n'
                f'model = small_cnn.load("PATH")\n{ANSWER}',
                sources=(Path(small_cnn.__file__),),
            )
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        make = {
            "timm": "timm.create_model({!r}, num_classes={})",
            "torchvision": "torchvision.models.get_model({!r}, weights=None, num_classes={})",
        }[library].format(argument, len(config["classes"]))
        return Origin(
            libraries=(library,),
            needs=f"torch safetensors {library}",
            code=f"import torch, {library}\nfrom safetensors.torch import load_file\n"
            f"model = {make}\n"
            f'model.load_state_dict(load_file("PATH/model.safetensors"))\nmodel.eval()\n{ANSWER}',
        )

    def describe(self, store: Store, folder: Path) -> dict[str, Any]:
        """Size and scale, and which part of an image is seen, also as transformers spells them."""
        views = store.images
        assert views is not None, "opened with its images"
        size, mean, std = views.size, list(views.mean), list(views.std)
        centre = views.recipe.centre
        facts = {
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": round(size / centre)},
            "resample": BILINEAR,
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [x / 255 for x in mean],
            "image_std": [x / 255 for x in std],
        }
        text = json.dumps(facts, indent=2) + "\n"
        (folder / PREPROCESSOR).write_text(text, encoding="utf-8")
        return {"pixels": {"size": size, "centre": centre, "mean": mean, "std": std}}

    def of_row(self, row: ImageRow) -> list[Example]:
        """Its view, made again and compared with what the teacher saw."""
        known = row.labels[row.labels != UNLABELLED].astype(np.int64)
        inputs = {"pixel_values": row.inputs["pixels"]}
        return [Example(inputs=inputs, labels=known, labelled=np.arange(len(known)))]

    def lay(self, examples: Sequence[Example], *, left: bool = False) -> Laid:
        """All are of one size: nothing to pad."""
        pixels = np.stack([e.inputs["pixel_values"] for e in examples])
        return Laid(inputs={"pixel_values": pixels}, places=np.arange(len(examples)))

    def reference(self, model: Any, example: Example) -> Tensor:
        """`[1, C]`."""
        return _logits(model, torch.from_numpy(example.inputs["pixel_values"])[None])

    def preparation(self, folder: Path, details: Mapping[str, Any]) -> str:
        """With Pillow."""
        size, centre, mean, std = (details["pixels"][n] for n in ("size", "centre", "mean", "std"))
        return (
            "import numpy as np\n"
            "from PIL import Image\n"
            'image = Image.open("IMAGE").convert("RGB")\n'
            f"side = int({centre} * min(image.size) + 0.5)  # the middle square\n"
            "left, top = (image.width - side) // 2, (image.height - side) // 2\n"
            "image = image.crop((left, top, left + side, top + side))\n"
            f"image = image.resize(({size}, {size}), Image.Resampling.BILINEAR)\n"
            f"mean, std = np.float32({mean}), np.float32({std})\n"
            "pixels = (np.asarray(image, np.float32) - mean) / std\n"
            'inputs = {"pixel_values": np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])}\n'
        )


ANSWER = 'logits = model(torch.from_numpy(inputs["pixel_values"])).detach().numpy()\n'
DOMAIN = ImageClassification()
