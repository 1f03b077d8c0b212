"""What a store of very many shards costs to open, to go on with and to verify: its records lie in pages.

    python -m tests.benchmarks.pages [--shards 100000 1000000] [--verified 20000 100000] [--json FILE]

The stores are made up. Records name shards that are not there (each with a digest of its own, as real ones have), but
for `verify`, whose shards are names of one file. Each part runs in a process of its own, and its peak memory is that of
the process: interpreter and libraries, too. "Going on" is what a builder does before its first shard, with an (empty)
record of each shard but some. Seconds are CPU seconds, the best of three.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from softlabels.core.progress import Silent
from softlabels.core.records import PAGED_VERSION, canonical, file_record, read_record, seal
from softlabels.format.manifest import MANIFEST, Commit, Manifest, content_digest, load_manifest
from softlabels.format.pages import positions_of
from softlabels.format.shard_records import ManifestPages
from softlabels.making.builder import Builder
from softlabels.making.finish import make_manifest
from softlabels.making.place import FolderPlace
from softlabels.making.place.finish import collected
from softlabels.making.plan import begun, make_plan, publish_plan, read_plan
from softlabels.making.same_job import check_same_job
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store

ROWS = 8
"""Of a shard."""
LEFT = 10_000
"""Shards that are still to be made, where a builder goes on."""
LINKS = 30_000
"""Names of one file, which a file system may limit."""


def status(name: str) -> float:
    """Of this process, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(f"{name}:"))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, and what came of it."""
    begin = time.process_time()
    found = work()
    return time.process_time() - begin, found


# -- made up -----------------------------------------------------------------------------------------------------------


def made_up(small: Path, store: Path, shards: int) -> dict[str, Any]:
    """A store of so many shards like the one of a small store; none of them is there."""
    draw = random.Random(0)
    one, planned = load_manifest(small), read_plan(small)
    names = [f"data/train-{i:05d}-of-{shards:05d}.parquet" for i in range(shards)]
    corpus = replace(
        one.identity.corpus, rows=ROWS * shards, positions=one.shards[0].positions * shards
    )
    identity = replace(one.identity, corpus=corpus)
    like = planned.shards[0]
    wanted = [
        replace(
            like,
            index=i,
            name=name,
            start_row=ROWS * i,
            document=3 * i + draw.randrange(3),
            offset=draw.randrange(4000),
            inputs_sha256=draw.randbytes(32).hex(),
        )
        for i, name in enumerate(names)
    ]
    files = {n: (small / n).read_bytes() for n in planned.files}
    plan = make_plan(identity, wanted, files, shard_rows=ROWS)
    seconds, plan = timed(lambda: publish_plan(store, plan, files))
    record = one.shards[0]
    pages, held = ManifestPages.written(
        [
            replace(record, start_row=ROWS * i, name=name, sha256=draw.randbytes(32).hex())
            for i, name in enumerate(names)
        ]
    )
    _write_manifest(store, replace(one, identity=identity, shards=pages), held)
    return {
        "shards": shards,
        "plan_seconds": seconds,
        "plan_bytes": size_of(store, "plan"),
        "manifest_bytes": size_of(store, "manifest"),
        "root_bytes": (store / MANIFEST).stat().st_size,
    }


def _write_manifest(store: Path, manifest: Manifest, pages: dict[str, bytes]) -> None:
    for name, data in pages.items():
        (store / name).write_bytes(data)
    digest = content_digest(manifest.identity, manifest.shards)
    new = replace(manifest, version=PAGED_VERSION, content_digest=digest)
    (store / MANIFEST).write_bytes(canonical(seal(new)))


def size_of(store: Path, stem: str) -> int:
    """Bytes of the pages of a record."""
    return sum(p.stat().st_size for p in (store / "pages").glob(f"{stem}-*"))


def half_made(store: Path, shards: int) -> None:
    """Have all shards but some recorded, and no manifest."""
    (store / MANIFEST).unlink()
    (store / "commits").mkdir()
    for i in range(LEFT, shards):
        os.close(os.open(store / f"commits/{i:05d}.json", os.O_CREAT | os.O_WRONLY))


def linked(small: Path, store: Path, shards: int) -> None:
    """A store that `verify --quick` finds whole: its shards are names of one file."""
    made_up(small, store, shards)
    plan, like = read_plan(small), load_manifest(small).shards[0]
    wanted = read_plan(store)
    commit = read_record(small / "commits/00000.json", Commit)
    (store / "commits").mkdir()
    (store / "data").mkdir()
    source = small / plan.shards[0].name
    for shard in wanted.shards:
        if shard.index % LINKS == 0:
            source = Path(shutil.copy(small / plan.shards[0].name, store / shard.name))
        else:
            os.link(source, store / shard.name)
        record = replace(commit, plan_digest=wanted.digest, index=shard.index, name=shard.name)
        (store / f"commits/{shard.index:05d}.json").write_bytes(canonical(seal(record)))
    manifest = load_manifest(store)
    pages, held = ManifestPages.written([replace(s, sha256=like.sha256) for s in manifest.shards])
    for page in manifest.shards.pages:
        (store / page.name).unlink()
    card = file_record((small / "README.md").read_bytes())
    shutil.copy(small / "README.md", store)
    files = {**manifest.files, "README.md": card}
    _write_manifest(store, replace(manifest, shards=pages, files=files), held)


# -- measured, each in a process of its own ----------------------------------------------------------------------------


def opened(store: Path) -> dict[str, Any]:
    """Opening, the first row, and one of another page."""
    before = status("VmRSS")
    seconds, found = timed(lambda: open_store(store))
    memory = status("VmHWM")
    first, _ = timed(lambda: found.locate(len(found) // 2))
    other, _ = timed(lambda: found.locate(len(found) // 3))
    return {
        "open_seconds": seconds,
        "open_mb": memory,
        "open_own_mb": memory - before,
        "first_row_seconds": first,
        "page_seconds": other,
        "row_mb": status("VmHWM"),
    }


class _Nothing:
    """A job whose shards are never asked for."""

    stage = "build"

    def __init__(self, store: Path) -> None:
        self.store = store


def gone_on(store: Path) -> dict[str, Any]:
    """What a builder does before it takes its first shard."""

    def ready() -> int:
        plan = begun(store, print)
        assert plan is not None
        check_same_job(store, plan, read_plan(store), command="build")
        builder = Builder(_Nothing(store), plan, Silent(), None)  # type: ignore[arg-type]
        builder._collect()
        assert positions_of(plan.shards) > positions_of(plan.shards, builder._todo.made)
        return len(builder._todo.open())

    seconds, leases = timed(ready)
    return {"resume_seconds": seconds, "resume_mb": status("VmHWM"), "leases": leases}


def verified(store: Path) -> dict[str, Any]:
    """`verify --quick`."""
    seconds, report = timed(lambda: verify_store(store, deep=False))
    assert report.problems == [], report.problems[:3]
    shards = len(load_manifest(store).shards)
    return {"shards": shards, "ms_a_shard": 1e3 * seconds / shards, "verify_mb": status("VmHWM")}


def finished(store: Path) -> dict[str, Any]:
    """What who plans and who finishes hold of each shard: its line of the plan, its record, and at most."""
    plan = read_plan(store)
    plan.shards[0]  # imports what reads pages
    before = status("VmRSS")
    lines = list(plan.shards)
    planned, place = status("VmRSS"), FolderPlace(store)
    commits, columns = collected(place, plan, lambda: None)
    records = status("VmRSS")
    make_manifest(store, plan, commits, columns=columns)
    kb = 1e3 / len(lines)
    return {
        "shards_finished": len(lines),
        "plan_kb": kb * (planned - before),
        "record_kb": kb * (records - planned),
        "finish_kb": kb * (status("VmHWM") - planned),
    }


PARTS = {"opened": opened, "gone_on": gone_on, "verified": verified, "finished": finished}


def apart(part: str, store: Path, times: int = 3) -> dict[str, Any]:
    """A part in processes of its own: of each figure the smallest."""
    command = [sys.executable, "-m", "tests.benchmarks.pages", "--part", part, str(store)]
    found = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(times)
    ]
    return {name: min(f[name] for f in found) for name in found[0]}


def measured(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """A line of each table."""
    from tests.fakes import build_tiny, write_corpus  # which import torch

    small = folder / "small"
    build_tiny(small, write_corpus(folder / "text"), limit_rows=ROWS, shard_rows=ROWS)
    for shards in args.shards:
        store = folder / "store"
        found = made_up(small, store, shards) | apart("opened", store)
        half_made(store, shards)
        yield found | apart("gone_on", store)
        shutil.rmtree(store)
    for shards in args.verified:
        linked(small, folder / "store", shards)
        yield apart("verified", folder / "store", times=1)
        yield apart("finished", folder / "store", times=1)
        shutil.rmtree(folder / "store")


def table(lines: list[dict[str, Any]]) -> str:
    """Both tables of docs/scale.md."""
    rows = [
        [
            f"{f['shards']:,}",
            f"{f['plan_bytes'] / 1e6:.1f}",
            f"{f['manifest_bytes'] / 1e6:.1f}",
            f"{f['root_bytes'] / 1e3:.0f}",
            f"{f['open_seconds']:.3f}",
            f"{f['open_mb']:.0f} ({f['open_own_mb']:.1f})",
            f"{f['first_row_seconds']:.2f}",
            f"{f['page_seconds']:.3f}",
            f"{f['resume_seconds']:.2f}",
            f"{f['resume_mb']:.0f}",
        ]
        for f in lines
        if "open_mb" in f
    ]
    quick = [
        [f"{f['shards']:,}", f"{f['ms_a_shard']:.2f}", f"{f['verify_mb']:.0f}"]
        for f in lines
        if "verify_mb" in f
    ]
    return "\n".join(
        [
            "| shards | plan's pages, MB | manifest's | its root, kB | open, s | process, MB (its own) | "
            "first row, s | another page, s | going on, s | process, MB |",
            "|" + "---|" * 10,
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            "| shards | `verify --quick`, ms a shard | process, MB |",
            "|---|---|---|",
            *(f"| {' | '.join(row)} |" for row in quick),
            "",
            "| shards | kB of each in memory: its line of a plan | its record | at most while it is finished |",
            "|---|---|---|---|",
            *(
                f"| {f['shards_finished']:,} | {f['plan_kb']:.2f} | {f['record_kb']:.2f} | {f['finish_kb']:.2f} |"
                for f in lines
                if "finish_kb" in f
            ),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--verified", type=int, nargs="*", default=[20_000, 100_000])
    parser.add_argument("--folder", type=Path, help="a folder to make the stores in")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", nargs=2, metavar=("PART", "STORE"))
    args = parser.parse_args()
    if args.part:
        print(json.dumps(PARTS[args.part[0]](Path(args.part[1]))))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        lines = list(measured(args, Path(folder)))
    if args.json:
        args.json.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    print(table(lines))


if __name__ == "__main__":
    main()
