"""The arithmetic of views: whole numbers throughout, so that every machine and every version agrees to the bit.

Resizing is a product of matrices of whole numbers held as float32: a sum stays below 2^24, so it is exact in whatever
order a library adds it up.

Shapes: H by W pixels, 3 channels, S the side of a view; all pixels are uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from softlabels.domains.image_classification.draws import WHOLE, Box, Geometry
from softlabels.domains.image_classification.recipe import Recipe

Pixels = npt.NDArray[np.uint8]
BITS = 14
"""Weights of a resize are in 2^-14: 255 * 2^14 < 2^24."""


def seen(image: Pixels, geometry: Geometry, recipe: Recipe, size: int) -> Pixels:
    """What a view shows of an image `[H, W, 3]`, before any mixing: `[S, S, 3]`."""
    box = geometry.box(recipe, *image.shape[:2])
    part = image[box.top : box.top + box.height, box.left : box.left + box.width]
    out = moved(resized(part, size), geometry.down, geometry.right)
    if geometry.flip:
        out = out[:, ::-1]
    return np.ascontiguousarray(coloured(out, geometry.factors))


@lru_cache(maxsize=512)
def _weights(source: int, size: int) -> npt.NDArray[np.float32]:
    """`[size, source]`: of each pixel's triangle of neighbours, as wide as the pixels shrink; rows sum to 2^14."""
    scale = source / size
    reach = max(scale, 1.0)
    centres = (np.arange(size, dtype=np.float64) + 0.5) * scale
    distance = np.abs(np.arange(source, dtype=np.float64)[None] + 0.5 - centres[:, None]) / reach
    near = np.maximum(1.0 - distance, 0.0)
    total = np.add.accumulate(near, axis=1)[:, -1:]  # in order, unlike sum
    whole = np.floor(near / total * 2.0**BITS)
    rest = 2.0**BITS - np.add.accumulate(whole, axis=1)[:, -1]  # whole numbers: exact
    whole[np.arange(size), whole.argmax(axis=1)] += rest
    return whole.astype(np.float32)


def resized(image: Pixels, size: int) -> Pixels:
    """`[H, W, 3]` to `[S, S, 3]`: rows, then columns, each rounded to the nearest, halves up."""
    h, w = image.shape[:2]
    if h != size:
        rows = _weights(h, size) @ image.reshape(h, w * 3).astype(np.float32)
        image = _rounded(rows).reshape(size, w, 3)
    if w != size:
        columns = _weights(w, size) @ image.astype(np.float32)  # [S, W] @ [S, W, 3]
        image = _rounded(columns)
    return image


def _rounded(sums: npt.NDArray[np.float32]) -> Pixels:
    whole: npt.NDArray[np.int32] = sums.astype(np.int32) + 2 ** (BITS - 1)
    rounded: Pixels = (whole >> BITS).astype(np.uint8)
    return rounded


def moved(image: Pixels, down: int, right: int) -> Pixels:
    """`[S, S, 3]` moved, black where nothing came."""
    if down == right == 0:
        return image
    size = len(image)
    out = np.zeros_like(image)
    if max(abs(down), abs(right)) < size:
        out[max(down, 0) : size + min(down, 0), max(right, 0) : size + min(right, 0)] = image[
            max(-down, 0) : size - max(down, 0), max(-right, 0) : size - max(right, 0)
        ]
    return out


def coloured(image: Pixels, factors: tuple[int, int, int]) -> Pixels:
    """Brightness, contrast about the mean grey, saturation about each pixel's grey; factors in 256ths."""
    brightness, contrast, saturation = factors
    if factors == (WHOLE, WHOLE, WHOLE):
        return image
    x = image.astype(np.int32)
    x = np.clip((x * brightness) >> 8, 0, 255)
    mean = int(_grey(x).sum(dtype=np.int64)) // (x.shape[0] * x.shape[1])
    x = np.clip(mean + (((x - mean) * contrast) >> 8), 0, 255)
    grey = _grey(x)[..., None]
    x = np.clip(grey + (((x - grey) * saturation) >> 8), 0, 255)
    out: Pixels = x.astype(np.uint8)
    return out


def _grey(x: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    return (77 * x[..., 0] + 150 * x[..., 1] + 29 * x[..., 2] + 128) >> 8


def blend(own: Pixels, other: Pixels, share: int) -> Pixels:
    """`share` 256ths of one, the rest of the other."""
    mixed: npt.NDArray[np.int32] = own.astype(np.int32) * share + other.astype(np.int32) * (
        WHOLE - share
    )
    out: Pixels = ((mixed + WHOLE // 2) >> 8).astype(np.uint8)
    return out


def paste(own: Pixels, other: Pixels, box: Box) -> Pixels:
    """One with a rectangle of the other in the same place."""
    out = own.copy()
    here = (slice(box.top, box.top + box.height), slice(box.left, box.left + box.width))
    out[here] = other[here]
    return out


def normalised(
    pixels: Pixels, mean: Sequence[float], std: Sequence[float]
) -> npt.NDArray[np.float32]:
    """`[B, S, S, 3]` as a model is fed: `(x - mean) / std` in float32, `[B, 3, S, S]`."""
    x = (pixels.astype(np.float32) - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
