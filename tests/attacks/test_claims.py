"""Numbers that a manifest claims: what would be allocated for them is bounded before anything is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from softlabels import open_store
from softlabels.builder.config import BuildConfig
from softlabels.errors import ConfigError, FormatError
from softlabels.format.identity import ROWS_LIMIT
from softlabels.format.manifest import MANIFEST, load_manifest
from tests.fakes import build_tiny, write_corpus
from tests.store.made_up import write_sealed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("claims")
    build_tiny(folder / "store", write_corpus(folder / "c", documents=2), limit_rows=2)
    return folder / "store"


def claim(good: Path, bad: Path, *, rows: int, size: int, shards: int = 1) -> Path:
    """A store that claims so many rows in each of its shards, which are sparse files of so many bytes."""
    raw = json.loads((good / MANIFEST).read_bytes())
    name = raw["shards"][0]["name"]
    raw["shards"] = []
    for i in range(shards):
        path = bad / f"{i}-{Path(name).name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(size)
        raw["shards"].append(
            {
                "name": path.name,
                "sha256": "0" * 64,
                "bytes": size,
                "rows": rows,
                "positions": rows,
                "start_row": i * rows,
            }
        )
    raw["identity"]["corpus"] |= {"rows": rows * shards, "positions": rows * shards}
    write_sealed(bad / MANIFEST, raw)
    return bad


@pytest.mark.parametrize(
    ("rows", "size"),
    [
        (3 * 10**8, 5000),  # the 15 KB manifest that took the trainer to gigabytes
        (2**16 + 1, 1024),
        (ROWS_LIMIT + 1, 2**31),
        (2**53, 2**31),
    ],
)
def test_more_rows_than_bytes_can_hold_are_refused_at_opening(good, tmp_path, rows, size):
    with pytest.raises(FormatError, match=r"says that shard .* holds .* rows in .* bytes"):
        open_store(claim(good, tmp_path / "bad", rows=rows, size=size))


def test_what_can_be_is_opened(good, tmp_path):
    assert len(open_store(claim(good, tmp_path / "a", rows=2**16, size=1))) == 2**16
    assert len(open_store(claim(good, tmp_path / "b", rows=ROWS_LIMIT, size=2**16))) == ROWS_LIMIT


TRAIN = """
import resource, sys, tracemalloc
from softlabels.errors import IntegrityError
from trainers.data.stream import SoftTargetStream
tracemalloc.start()
for prefetch in (0, 2):
    stream = SoftTargetStream(sys.argv[1], batch_size=4, prefetch=prefetch)
    batches = iter(stream)
    try:
        next(batches)
    except IntegrityError as e:
        print(e)
    batches.close()
print(tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.slow
def test_a_trainer_believes_no_block_before_its_shards_are_decoded(good, tmp_path):
    bad = claim(good, tmp_path / "bad", rows=ROWS_LIMIT, size=2**16, shards=16)
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(bad)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    first, second, peak = done.stdout.splitlines()
    assert "sha256 is" in first
    assert "sha256 is" in second
    assert int(peak) < 20 * 2**20  # the order of one block alone has 8 * 4 million numbers


IMAGES: dict[str, Any] = {
    "images": 1,
    "views": 1,
    "size": 8,
    "augment": "",
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
    "software": {},
    "replay": [],
}


@pytest.mark.parametrize(
    "changes",
    [
        {"images": IMAGES | {"size": 4097}},
        {"images": IMAGES | {"size": 2**40}},
        {"images": IMAGES | {"mean": [0.0]}},
        {"images": IMAGES | {"std": [1.0] * 10**5}},
        {"images": IMAGES | {"replay": [{"document": 0, "view": 0, "sha256": "0" * 64}] * 1025}},
        {"teacher": {"vocab_size": 2**31}},
        {"tokenizer": {"vocab_size": 2**40}},
        {"targets": {"seed": 2**63}},
        {"hidden": {"values": "int8", "width": 2**30, "error": 0.0}},
        {"masking": {"share": 0.5, "targets": "masked", "views": 2**40, "seed": 0}},
    ],
    ids=lambda c: json.dumps(c)[:50],
)
def test_figures_of_the_identity_are_bounded(good, tmp_path, changes):
    raw = json.loads((good / MANIFEST).read_bytes())
    for name, value in changes.items():
        raw["identity"][name] = raw["identity"].get(name, {}) | value
    (tmp_path / "bad").mkdir()
    write_sealed(tmp_path / "bad" / MANIFEST, raw)
    with pytest.raises(FormatError, match="not a valid manifest"):
        load_manifest(tmp_path / "bad")


def test_a_build_asks_for_no_more_than_a_reader_takes():
    common = {"teacher": "hf:x", "corpus": ("text:x",), "estimator": "topk"}
    with pytest.raises(ConfigError, match=f"--shard-rows .*: expected at most {ROWS_LIMIT}"):
        BuildConfig(**common, shard_rows=ROWS_LIMIT + 1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--image-size 4097: expected at most 4096"):
        BuildConfig(**common, domain="image-classification", image_size=4097)  # type: ignore[arg-type]
