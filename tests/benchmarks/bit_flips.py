"""Does any single flipped bit of a store go unnoticed?

    python -m tests.benchmarks.bit_flips [--flips 5000] [--json FILE]

For each profile in each container: a store of a tiny teacher, with a dictionary where it is packed. One
random bit of a random file of a random kind is flipped; the store is opened and all of it is read; if that finds
nothing, it is verified (`--quick`). Then the bit is put back. Prints how many flips each way found.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from softlabels.errors import SoftLabelsError
from softlabels.format.encoding import CONTAINERS, PROFILES
from softlabels.making import dictionary
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.fakes import build_tiny, write_corpus


def make_store(folder: Path, profile: str, container: str) -> Path:
    """A finished store of six shards."""
    corpus = write_corpus(folder, documents=4)
    store = folder / f"{profile}-{container}"
    before, dictionary.POSITIONS = dictionary.POSITIONS, 300
    try:
        build_tiny(store, corpus, profile=profile, container=container)
    finally:
        dictionary.POSITIONS = before
    return store


def found_by(store: Path) -> str:
    """Which step notices that something is wrong: `read`, `verify`, or none."""
    try:
        opened = open_store(store)
        for i in range(len(opened.manifest.shards)):
            opened.read_shard(i)
        for name in opened.manifest.files:
            opened.file(name)
    except SoftLabelsError:
        return "read"
    return "verify" if verify_store(store, deep=False).problems else "nothing"


def flip(store: Path, flips: int, seed: int = 0) -> dict[str, Counter[str]]:
    """How many flips of each kind of file each step found."""
    assert found_by(store) == "nothing", "the store is not whole to begin with"
    rng = np.random.default_rng(seed)
    kinds: dict[str, list[Path]] = {}
    for path in sorted(p for p in store.rglob("*") if p.is_file()):
        kinds.setdefault(path.relative_to(store).parts[0], []).append(path)
    found: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    for _ in range(flips):
        kind = list(kinds)[rng.integers(len(kinds))]
        file = kinds[kind][rng.integers(len(kinds[kind]))]
        good = file.read_bytes()
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        found[kind][found_by(store)] += 1
        file.write_bytes(good)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for profile in PROFILES:
            for container in CONTAINERS.names():
                store = make_store(Path(folder), profile, container)
                found = flip(store, args.flips)
                total = sum(found.values(), Counter())
                row = {"store": f"{profile} {container}", "flips": args.flips, **total}
                row["silent"] = total["nothing"]
                rows.append(row | {"kinds": {k: dict(v) for k, v in found.items()}})
                print(row["store"], dict(total), {k: dict(v) for k, v in found.items()}, flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
