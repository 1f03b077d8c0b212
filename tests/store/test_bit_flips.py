"""No flipped bit goes unnoticed, whatever the profile and container; tests/benchmarks/bit_flips.py flips more."""

from __future__ import annotations

from collections import Counter

import pytest

from softlabels.format.encoding import CONTAINERS, PROFILES
from tests.benchmarks.bit_flips import flip, make_store


@pytest.mark.parametrize("container", CONTAINERS.names())
@pytest.mark.parametrize("profile", PROFILES)
def test_any_flipped_bit_is_found(profile, container, tmp_path):
    store = make_store(tmp_path, profile, container)
    found = flip(store, 100)
    kinds = {"data", "commits", "tokenizer", "manifest.json", "plan.json", "README.md"}
    assert set(found) == kinds | ({"dictionaries"} if profile == "packed" else set())
    assert sum(found.values(), Counter())["nothing"] == 0
