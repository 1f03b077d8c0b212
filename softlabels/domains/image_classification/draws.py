"""All that is random about a view: 64-bit words of Philox, a function of (seed, image, view) alone (docs/format.md).

Each word has its place, whether or not the recipe asks for it: a recipe with one word more draws the others alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, isqrt, sqrt

import numpy as np
import numpy.typing as npt

from softlabels.domains.image_classification.recipe import Recipe

WORDS = 32
OWN, PARTNER = 0, 16
"""Where the words of a view's own geometry and colour begin, and those of its partner's."""
STREAM = 1
"""Third word of the counter: apart from every other use of the seed."""
WHOLE = 256
"""Shares of a mixture are in 256ths, 1 to 255."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What of an image is seen, and how."""

    area: float
    aspect: float
    x: float
    y: float
    """Uniform in [0, 1): of `rrc`."""
    down: int
    right: int
    """Pixels that `crop` moves by."""
    flip: bool
    factors: tuple[int, int, int]
    """Brightness, contrast, saturation in 256ths."""

    def box(self, recipe: Recipe, height: int, width: int) -> Box:
        """The rectangle of an image of `height` by `width` that is seen."""
        if recipe.rrc is None:
            side = max(1, floor(recipe.centre * min(height, width) + 0.5))
            return Box(top=(height - side) // 2, left=(width - side) // 2, height=side, width=side)
        area = (recipe.rrc + (1.0 - recipe.rrc) * self.area) * (height * width)
        aspect = 0.75 + (4.0 / 3.0 - 0.75) * self.aspect
        h = min(height, max(1, floor(sqrt(area / aspect) + 0.5)))
        w = min(width, max(1, floor(sqrt(area * aspect) + 0.5)))
        top, left = floor(self.y * (height - h + 1)), floor(self.x * (width - w + 1))
        return Box(top=top, left=left, height=h, width=w)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Another image in the view."""

    partner: int
    share: int
    """The view's own, in 256ths: 1 to 255."""
    geometry: Geometry
    """Of the partner."""
    cut: Box | None
    """`cutmix`: where the partner is; None: everywhere, blended."""


def draw(
    recipe: Recipe, *, seed: int, image: int, view: int, images: int, size: int
) -> tuple[Geometry, Mix | None]:
    """The parameters of a view: how its image is seen, and what other is in it.

    Args:
        recipe: what may happen to it.
        seed: of the build.
        image: its number, from 0.
        view: which of its views, from 0.
        images: how many there are to be partners.
        size: pixels of a side.
    """
    key = np.array([seed, image], np.uint64)
    counter = np.array([0, 0, STREAM, view], np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(WORDS)
    u = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    mix = None
    if u[10] < recipe.mixup + recipe.cutmix:
        share = 1 + floor(float(u[11]) * (WHOLE - 1))
        cut = None
        if u[10] >= recipe.mixup:
            side = isqrt((WHOLE - share) * size * size // WHOLE)
            span = size - side + 1
            top, left = floor(float(u[14]) * span), floor(float(u[13]) * span)
            cut = Box(top=top, left=left, height=side, width=side)
        mix = Mix(
            partner=floor(float(u[12]) * images),
            share=share,
            geometry=_geometry(recipe, u[PARTNER:]),
            cut=cut,
        )
    return _geometry(recipe, u[OWN:]), mix


def _geometry(recipe: Recipe, u: npt.NDArray[np.float64]) -> Geometry:
    area, aspect, x, y, down, right, flip, *colours = u[:10].tolist()
    span, reach = 2 * recipe.crop + 1, floor(recipe.colour * WHOLE + 0.5)
    brightness, contrast, saturation = (WHOLE - reach + floor(c * (2 * reach + 1)) for c in colours)
    return Geometry(
        area=area,
        aspect=aspect,
        x=x,
        y=y,
        down=floor(down * span) - recipe.crop,
        right=floor(right * span) - recipe.crop,
        flip=recipe.flip and flip < 0.5,
        factors=(brightness, contrast, saturation),
    )
