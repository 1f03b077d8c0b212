"""All that a store holds, in an order that does not depend on how it is coded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from softlabels.store.reader import open_store
from tests.fakes import TEXT
from tests.fixtures.make import contents


def content(store: Path) -> dict[str, np.ndarray]:
    """As `contents`, with the kept ids of a position ascending: readers may not rely on their order."""
    found = contents(open_store(store))
    kept = np.isfinite(found["gaps"])
    order = np.argsort(np.where(kept, found["ids"], np.int64(2**31)), axis=1, kind="stable")
    for name, value in found.items():
        if name in ("ids", "gaps") or name.startswith("probs"):
            found[name] = np.take_along_axis(value, order, axis=1)
    found["ids"] = np.where(np.isfinite(found["gaps"]), found["ids"], -1)
    return found


def varied_corpus(folder: Path, *, documents: int = 12, seed: int = 0) -> str:
    """Documents of many lengths, no two rows of which are alike; returns the corpus spec."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    words = TEXT.split()
    for i in range(documents):
        text = " ".join(rng.choice(words, int(rng.choice([3, 4, 40]))))
        (folder / f"{i:02d}.txt").write_text(f"{i} {text}", encoding="utf-8")
    return f"text:{folder}/*.txt"


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
