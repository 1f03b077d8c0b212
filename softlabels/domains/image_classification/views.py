"""Views of images: the pixels a teacher saw, made again wherever they are needed.

What is stored of a view is its image's number and its own, and of some views a byte of the digest of their pixels, so
that whoever makes them again knows at once whether they are the same (`check`).
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from softlabels.domains.image_classification.draws import Geometry, Mix, draw
from softlabels.domains.image_classification.pixels import Pixels, blend, normalised, paste, seen
from softlabels.domains.image_classification.recipe import Recipe
from softlabels.domains.image_classification.sources import ImageSource
from softlabels.errors import CorpusError

CHECK_EVERY = 16
"""One view in so many is checked: what changes all of them is found at once, and a check of each is a byte."""


@dataclass(frozen=True, eq=False)
class ImageViews:
    """All views of all images of a source."""

    source: ImageSource
    recipe: Recipe
    _: KW_ONLY
    seed: int
    """Of what is random about them, below 2^63."""
    size: int
    """S, pixels of a side."""
    mean: Sequence[float]
    std: Sequence[float]
    """Of each channel, on the scale of 0 to 255: a model is fed `(x - mean) / std`."""
    made_with: Mapping[str, str] | None = None
    """Libraries and versions that a store was made with, for messages; None: these are."""

    def mix(self, image: int, view: int) -> Mix | None:
        """What other image is in a view."""
        return self._draw(image, view)[1]

    def _draw(self, image: int, view: int) -> tuple[Geometry, Mix | None]:
        return draw(
            self.recipe,
            seed=self.seed,
            image=image,
            view=view,
            images=len(self.source),
            size=self.size,
        )

    def pixels(self, image: int, view: int) -> Pixels:
        """`[S, S, 3] uint8`; `CorpusError` if an image cannot be decoded."""
        geometry, mix = self._draw(image, view)
        own = seen(self.source.image(image), geometry, self.recipe, self.size)
        if mix is None:
            return own
        partner = self.source.image(mix.partner)
        other = seen(partner, mix.geometry, self.recipe, self.size)
        return blend(own, other, mix.share) if mix.cut is None else paste(own, other, mix.cut)

    def checked(self, image: int, view: int, check: int | None) -> Pixels:
        """The pixels of a view; `CorpusError` if it has a check, and they are others."""
        pixels = self.pixels(image, view)
        if check is not None and (found := check_of(digest_of(pixels))) != check:
            raise CorpusError(
                f"{self.source.where(image)} (image {image}, view {view}): its pixels are not those that the "
                f"teacher saw (check {found}, the store says {check}); {self.way_out()}"
            )
        return pixels

    def way_out(self) -> str:
        """What to do when pixels differ."""
        then, now = self.made_with or software(), software()
        changed = [
            f"{n} {then[n]}, here {now.get(n, 'none')}" for n in then if then[n] != now.get(n)
        ]
        made = f"; the store was made with {', '.join(changed)}" if changed else ""
        return f"give the very images that the store was made from, in the same order{made}"

    def feed(self, pixels: Sequence[Pixels]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """`[B, 3, S, S] float32`: what a model is fed of some views' pixels."""
        return normalised(np.stack(pixels), self.mean, self.std)


def digest_of(pixels: Pixels) -> bytes:
    """32 bytes that name some pixels `[S, S, 3]` (docs/format.md)."""
    h = hashlib.sha256(b"softlabels view 1\n")
    h.update(len(pixels).to_bytes(8, "little"))
    h.update(np.ascontiguousarray(pixels).tobytes())
    return h.digest()


def is_checked(image: int, view: int, every: int) -> bool:
    """Whether a view is one of those that are checked, one in `every`: of each image others."""
    return (image + view) % every == 0


def check_of(digest: bytes) -> int:
    """Its first byte: whatever changes all pixels is found at once, one changed view by 255 of 256."""
    return digest[0]


def software() -> dict[str, str]:
    """What pixels could depend on: libraries and their versions."""
    found = {"python": platform.python_version(), "numpy": np.__version__}
    try:
        found["pillow"] = version("pillow")
    except PackageNotFoundError:  # arrays need none
        found["pillow"] = "none"
    return found
