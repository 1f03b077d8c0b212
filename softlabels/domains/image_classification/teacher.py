"""What all teachers of images share: pixels of views in, logits over classes out; and those of transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softlabels.core.devices import choose
from softlabels.core.records import canonical, sha256_of
from softlabels.core.registry import name_of, without_folder
from softlabels.domains.image_classification import DOMAIN, NAME, ImageRow
from softlabels.errors import ConfigError, MissingExtraError, TeacherError
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


class Made(NamedTuple):
    """A model that a library made by name."""

    module: Any
    classes: int
    """C: how many its weights have."""
    names: Sequence[str] | None
    """What these are called, if the library knows."""
    images: ImageInput


def load_named(
    library: str,
    argument: str,
    options: TeacherOptions,
    make: Callable[[Any, str, dict[str, Tensor]], Made],
) -> VisionTeacher:
    """A classifier that a library knows by name, with weights from a file: `NAME?weights=FILE&classes=FILE`.

    Args:
        library: what is imported, and the back-end's name.
        argument: what follows that in `--teacher`.
        options: how to run it.
        make: the library, a name and weights, to a model that has loaded them.

    Raises:
        ConfigError: a malformed argument, another domain.
        TeacherError: the library knows no such model, or the weights are another's.
        MissingExtraError: the library is not installed.
    """
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
