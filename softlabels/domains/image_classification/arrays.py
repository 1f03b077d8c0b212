"""`arrays:FILE.npz` and `idx:PREFIX`: images that lie decoded in one array."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.core.npz import read_npz
from softlabels.domains.image_classification.pixels import Pixels
from softlabels.errors import CorpusError


class _Decoded:
    """N images of one size in memory."""

    def __init__(
        self, images: npt.NDArray[Any], labels: npt.NDArray[Any] | None, where: str
    ) -> None:
        fits = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
        if images.dtype != np.uint8 or not fits or 0 in images.shape:
            raise CorpusError(
                f"{where}: its images are {images.dtype} {list(images.shape)}, expected uint8 [N, H, W] or "
                "[N, H, W, C] with C 1 or 3"
            )
        if labels is not None and (
            labels.shape != images.shape[:1] or labels.dtype.kind not in "iuU"
        ):
            raise CorpusError(
                f"{where}: its labels are {labels.dtype} {list(labels.shape)}, expected whole numbers or names "
                f"[{len(images)}]"
            )
        self._images = images if images.ndim == 4 else images[..., None]
        self._labels, self._where = labels, where

    def __len__(self) -> int:
        return len(self._images)

    def image(self, number: int) -> Pixels:
        """A copy with three channels."""
        image = self._images[number]
        return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))

    def label(self, number: int) -> str | int | None:
        """A name or a number; of numbers, those below 0 say that it is not known."""
        if self._labels is None:
            return None
        label = self._labels[number].item()
        return None if isinstance(label, int) and label < 0 else label

    def where(self, number: int) -> str:
        """File and number."""
        return f"{self._where}: image {number}"


class ImageArrays(_Decoded):
    """NumPy's `.npz` with `images` and perhaps `labels`."""

    def __init__(self, argument: str) -> None:
        try:
            found = read_npz(argument, ("images", "labels"))
        except (OSError, ValueError) as e:
            raise CorpusError(f"arrays:{argument}: not an .npz file that can be read ({e})") from e
        if "images" not in found:
            raise CorpusError(f"arrays:{argument}: has no array 'images'")
        super().__init__(found["images"], found.get("labels"), argument)


class IdxImages(_Decoded):
    """The files of MNIST and its likes."""

    def __init__(self, argument: str) -> None:
        images = _idx(argument, "images-idx3-ubyte", dimensions=3)
        labels = _idx(argument, "labels-idx1-ubyte", dimensions=1)
        if images is None:
            raise CorpusError(
                f"idx:{argument}: no file {argument}-images-idx3-ubyte(.gz); give what comes before -images, such as "
                "idx:FOLDER/train"
            )
        super().__init__(images, labels, argument)


def _idx(prefix: str, name: str, *, dimensions: int) -> npt.NDArray[np.uint8] | None:
    """The array of one file; None if there is none."""
    path = next((p for s in ("", ".gz") if (p := Path(f"{prefix}-{name}{s}")).is_file()), None)
    if path is None:
        return None
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as e:
        raise CorpusError(f"{path}: cannot be read ({e})") from e
    begin = 4 + 4 * dimensions
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, begin, 4)]
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) != begin + int(np.prod(shape)):
        raise CorpusError(
            f"{path}: not an idx file of {dimensions} dimensions of bytes, or torn; copy it again"
        )
    return np.frombuffer(data, np.uint8, offset=begin).reshape(shape)
