"""What Ray costs a build: two actors beside two plain processes, with a teacher that takes its time and no CPU.

    python -m tests.benchmarks.on_ray --shards 300

The actors' time is from the first builder's beginning to the store's manifest; what Ray takes before (a cluster on this
host) is told apart, since it is paid once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from softlabels.builder.build import build
from softlabels.builder.on_ray import build_on_ray
from softlabels.core.progress import Silent
from softlabels.format.manifest import load_manifest
from tests.benchmarks.bucket import CHANGES, Slow, _write_corpus
from tests.fakes import config_of

BUILDERS = 2


def work(config: Any, out: Path | str, *, pause: float) -> Any:
    """One builder; it notes when it began."""
    torch.set_num_threads(1)
    (Path(out).parent / f"begun-{time.time()}").touch()
    return build(config, out, teacher=Slow(pause))


def measured(folder: Path, config: Any, pause: float, *, ray: bool) -> dict[str, Any]:
    """Build once."""
    folder.mkdir()
    store, begun = folder / "store", time.time()
    one = partial(work, pause=pause)
    if ray:
        build_on_ray(config, store, report=Silent(), builders=BUILDERS, work=one)
    else:
        spawn = multiprocessing.get_context("spawn")
        crew = [spawn.Process(target=one, args=(config, store)) for _ in range(BUILDERS)]
        for process in crew:
            process.start()
        for process in crew:
            process.join()
    first = min(float(p.name.partition("-")[2]) for p in folder.glob("begun-*"))
    ended = (store / "manifest.json").stat().st_mtime
    digest = load_manifest(store).content_digest
    return {"before": round(first - begun, 1), "seconds": round(ended - first, 1), "digest": digest}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.on_ray", description=__doc__)
    parser.add_argument("--shards", type=int, default=300)
    parser.add_argument("--pause", type=float, default=0.2, help="Seconds of the teacher.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = config_of(_write_corpus(folder / "corpus", args.shards), **CHANGES)
        plain = measured(folder / "plain", config, args.pause, ray=False)
        on_ray = measured(folder / "ray", config, args.pause, ray=True)
    found = {
        "same_store": plain.pop("digest") == on_ray.pop("digest"),
        "plain": plain,
        "ray": on_ray,
        "overhead": round(on_ray["seconds"] / plain["seconds"] - 1, 3),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
