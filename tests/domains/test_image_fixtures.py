"""Stores of images that earlier versions made decode, to the last bit, and so do the pixels that they name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.domains.pictures import IMAGES
from tests.fixtures.images.make import STORES, contents

FIXTURES = Path(__file__).parents[1] / "fixtures" / "images"


def test_every_fixture_is_listed():
    assert {p.parent.name for p in FIXTURES.glob("*/manifest.json")} == set(STORES)
    assert {p.stem for p in FIXTURES.glob("*.npz")} == set(STORES)


@pytest.mark.parametrize("name", list(STORES))
def test_stored_bytes_and_pixels_stay_the_same_for_ever(name):
    assert verify_store(FIXTURES / name).problems == []
    found = contents(open_store(FIXTURES / name, images=IMAGES))
    with np.load(FIXTURES / f"{name}.npz") as expected:
        assert set(found) == set(expected.files)
        for what in expected.files:
            assert found[what].dtype == expected[what].dtype, what
            np.testing.assert_array_equal(found[what], expected[what], err_msg=what)
    assert found["view"].tolist() == [0, 1] * 6
    assert -1 in found["label"]
    assert len(np.unique(found["pixels"].reshape(12, -1), axis=0)) == 12
