"""Where images come from: any of them by its number, from 0, always in the same order.

    images:FOLDER         class folders with image files, or image files alone; in order of their paths
    image-parquet:GLOB    columns `image` (bytes, or a struct with `bytes`) and, if there are labels, `label`
    arrays:FILE.npz       `images` uint8 [N, H, W] or [N, H, W, C] and, if there are labels, `labels` [N]
    idx:PREFIX            PREFIX-images-idx3-ubyte and PREFIX-labels-idx1-ubyte, gzipped or not, as MNIST comes

Grey images become three equal channels. An image is what its file decodes to; no orientation mark is followed.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Protocol

from softlabels.core.registry import Registry, split_spec
from softlabels.domains.image_classification.pixels import Pixels
from softlabels.errors import ConfigError


class ImageSource(Protocol):
    """Images in a fixed order."""

    def __len__(self) -> int:
        """How many."""

    def image(self, number: int) -> Pixels:
        """`[H, W, 3] uint8`.

        Raises:
            CorpusError: it cannot be decoded.
        """

    def label(self, number: int) -> str | int | None:
        """Its class, by name or number; None where it is not known."""

    def where(self, number: int) -> str:
        """Where it lies, for messages."""


IMAGES: Registry[Callable[[str], ImageSource]] = Registry(
    "softlabels.images",
    {
        "images": "softlabels.domains.image_classification.files:ImageFolder",
        "image-parquet": "softlabels.domains.image_classification.parquet:ImageParquet",
        "arrays": "softlabels.domains.image_classification.arrays:ImageArrays",
        "idx": "softlabels.domains.image_classification.arrays:IdxImages",
    },
)


class Chain:
    """Several sources, one after another."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self._sources = sources
        self._ends: list[int] = []
        for source in sources:
            self._ends.append((self._ends[-1] if self._ends else 0) + len(source))

    def __len__(self) -> int:
        return self._ends[-1]

    def _find(self, number: int) -> tuple[ImageSource, int]:
        which = bisect.bisect_right(self._ends, number)
        return self._sources[which], number - (self._ends[which - 1] if which else 0)

    def image(self, number: int) -> Pixels:
        """As of the source that has it."""
        source, place = self._find(number)
        return source.image(place)

    def label(self, number: int) -> str | int | None:
        """As of the source that has it."""
        source, place = self._find(number)
        return source.label(place)

    def where(self, number: int) -> str:
        """As of the source that has it."""
        source, place = self._find(number)
        return source.where(place)


def open_images(specs: str | Sequence[str], *, flag: str) -> ImageSource:
    """Open each `name:argument`; several are taken in order.

    Raises:
        ConfigError: an unknown kind.
        CorpusError: nothing is there, or it is malformed.
    """
    found: list[ImageSource] = []
    for spec in [specs] if isinstance(specs, str) else specs:
        name, argument = split_spec(spec, flag=flag, example="images:path/to/folder")
        if name not in IMAGES.names():
            raise ConfigError(
                f"{flag} {spec}: images come from one of {', '.join(f'{n}:…' for n in IMAGES.names())}"
            )
        found.append(IMAGES.load(name)(argument))
    return found[0] if len(found) == 1 else Chain(found)
