"""Views: the parameters, the arithmetic, and pixels that must stay the same for ever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabels.domains.image_classification import pixels
from softlabels.domains.image_classification.draws import Box, draw
from softlabels.domains.image_classification.recipe import Recipe
from softlabels.domains.image_classification.sources import open_images
from softlabels.domains.image_classification.views import ImageViews, check_of, digest_of
from softlabels.errors import ConfigError
from tests.domains.pictures import IMAGES

SHARES = st.floats(0, 0.5, allow_nan=False)
RECIPES = st.builds(
    Recipe,
    rrc=st.none() | st.floats(0.01, 1),
    crop=st.integers(0, 40),
    flip=st.booleans(),
    colour=st.floats(0, 1),
    mixup=SHARES,
    cutmix=SHARES,
)
FOR_EVER = {
    "": "3f5910e5a1051a5e",
    "crop:3,flip": "6e8895881830226d",
    "centre:0.7": "6a3cf3d0f5b620f7",
    "rrc:0.3,flip,colour:0.4,mixup:0.4,cutmix:0.4": "34be199b1e20a6ac",
}
"""Of images 0 to 19 in two views: what their pixels were when this was first released."""


def philox(key: tuple[int, int], counter: tuple[int, ...]) -> list[int]:
    """One block of Philox4x64-10 (Salmon et al. 2011), from the paper."""
    wrap = 2**64 - 1
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], 2**64)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B97F4A7C15) & wrap, (k[1] + 0xBB67AE8584CAA73B) & wrap]
    return c


@pytest.mark.parametrize(("seed", "image", "view"), [(0, 0, 0), (7, 12345, 3), (2**63 - 1, 9, 1)])
def test_parameters_are_what_the_format_says(seed, image, view):
    words = [w for block in range(1, 9) for w in philox((seed, image), (block, 0, 1, view))]
    u = [(w >> 11) / 2**53 for w in words]
    recipe = Recipe.parse("rrc:0.3,crop:3,flip,colour:0.25,mixup:0.5,cutmix:0.5")
    own, mix = draw(recipe, seed=seed, image=image, view=view, images=100, size=32)
    for geometry, at in ((own, 0), (mix.geometry, 16)):
        assert (geometry.area, geometry.aspect, geometry.x, geometry.y) == tuple(u[at : at + 4])
        assert geometry.down == int(u[at + 4] * 7) - 3
        assert geometry.right == int(u[at + 5] * 7) - 3
        assert geometry.flip == (u[at + 6] < 0.5)
        assert geometry.factors == tuple(192 + int(x * 129) for x in u[at + 7 : at + 10])
    assert (mix.cut is None) == (u[10] < 0.5)
    assert mix.share == 1 + int(u[11] * 255)
    assert mix.partner == int(u[12] * 100)


@given(RECIPES)
def test_a_recipe_has_one_spelling(recipe):
    assert Recipe.parse(str(recipe)) == recipe
    words = str(recipe).split(",")
    assert Recipe.parse(", ".join(reversed(words))) == recipe
    assert Recipe.parse("centre:0.5") != Recipe()


def test_centre_and_rrc_exclude_each_other():
    with pytest.raises(ConfigError, match="both say which part"):
        Recipe.parse("centre:0.875,rrc:0.3")


@given(RECIPES, st.integers(1, 500), st.integers(1, 500), st.integers(0, 2**40))
def test_boxes_lie_in_their_image(recipe, height, width, image):
    geometry, mix = draw(recipe, seed=1, image=image, view=0, images=10, size=17)
    box = geometry.box(recipe, height, width)
    assert 1 <= box.height <= height - box.top
    assert 1 <= box.width <= width - box.left
    if mix is not None:
        assert 0 <= mix.partner < 10
        assert 1 <= mix.share <= 255
        if (cut := mix.cut) is not None:
            assert cut.top + cut.height <= 17
            assert cut.left + cut.width <= 17


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 2**32))
def test_resizing_is_exact_in_whole_numbers(height, width, size, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image[: height // 2] = 255  # the largest sums
    out = pixels.resized(image, size)
    down = pixels._weights(height, size).astype(np.int64)
    across = pixels._weights(width, size).astype(np.int64)
    assert (down.sum(axis=1) == 2**14).all()
    assert (across >= 0).all()
    rows = (np.einsum("sh,hwc->swc", down, image.astype(np.int64)) + 2**13) >> 14
    if height == size:
        rows = image.astype(np.int64)
    both = (np.einsum("tw,swc->stc", across, rows) + 2**13) >> 14
    np.testing.assert_array_equal(out, rows if width == size else both)


@pytest.mark.parametrize("size", [14, 56, 100])
def test_resizing_is_pillows_bilinear_within_a_level(size):
    from PIL import Image

    source = open_images(IMAGES, flag="--corpus")
    for i in range(10):
        image = source.image(i)
        resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
        theirs = np.asarray(resized).astype(int)
        assert np.abs(pixels.resized(image, size).astype(int) - theirs).max() <= 1


def test_moving_brings_in_black():
    image = np.arange(1, 4 * 4 * 3 + 1, dtype=np.uint8).reshape(4, 4, 3)
    out = pixels.moved(image, 1, -2)
    np.testing.assert_array_equal(out[1:, :2], image[:-1, 2:])
    assert not out[0].any()
    assert not out[:, 2:].any()
    assert not pixels.moved(image, 4, 0).any()


def test_mixtures_are_of_both():
    own, other = np.full((8, 8, 3), 200, np.uint8), np.full((8, 8, 3), 100, np.uint8)
    assert (pixels.blend(own, other, 64) == 125).all()
    cut = pixels.paste(own, other, Box(top=2, left=3, height=2, width=4))
    assert (cut == 100).sum() == 2 * 4 * 3
    assert (own == 200).all()


def test_colours_keep_their_grey_without_a_change():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    np.testing.assert_array_equal(pixels.coloured(image, (256, 256, 256)), image)
    grey = pixels.coloured(image, (256, 256, 0)).astype(int)
    assert (grey[..., 0] == grey[..., 1]).all()
    assert pixels.coloured(image, (512, 256, 256)).mean() > image.mean()
    assert pixels.coloured(image, (256, 64, 256)).std() < 0.5 * image.std()


@pytest.mark.parametrize("recipe", list(FOR_EVER))
def test_pixels_stay_the_same_for_ever(recipe):
    views = ImageViews(
        open_images(IMAGES, flag="--corpus"),
        Recipe.parse(recipe),
        seed=11,
        size=24 if "rrc" in recipe else 28,
        mean=[0] * 3,
        std=[1] * 3,
    )
    digests = [digest_of(views.pixels(i, v)) for i in range(20) for v in range(2)]
    assert digest_of(np.frombuffer(b"".join(digests), np.uint8)).hex()[:16] == FOR_EVER[recipe]
    assert check_of(bytes([1, 2, *range(30)])) == 1


def test_a_model_is_fed_three_normalised_channels():
    views = ImageViews(
        open_images(IMAGES, flag="--corpus"),
        Recipe(),
        seed=0,
        size=28,
        mean=[10, 20, 30],
        std=[2, 4, 8],
    )
    own = views.pixels(0, 0)
    fed = views.feed([own, own])
    assert fed.shape == (2, 3, 28, 28)
    assert fed.dtype == np.float32
    np.testing.assert_array_equal(fed[1, 2], (own[..., 2].astype(np.float32) - 30) / 8)
