"""Whatever ends an operation, the same command finishes it, and sources stay what they are."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from softlabels.algebra.append import append
from softlabels.algebra.convert import convert
from softlabels.algebra.merge import merge
from softlabels.algebra.subset import subset
from softlabels.algebra.subset_config import SubsetConfig
from softlabels.algebra.view import view
from softlabels.builder.config import AppendConfig
from softlabels.core.progress import Silent
from softlabels.errors import FormatError, StoreError
from softlabels.making.claims import Claims
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.algebra.compare import varied_corpus
from tests.fakes import TinyTeacher, build_tiny
from tests.store.made_up import files_of

FORK = multiprocessing.get_context("fork")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two stores of one job, and text to append."""
    made = tmp_path_factory.mktemp("crashes")
    for name, documents in (("a", 6), ("b", 3)):
        corpus = varied_corpus(made / f"text-{name}", documents=documents, seed=documents)
        build_tiny(made / name, corpus, shard_rows=4, k=9)
    varied_corpus(made / "new", documents=3, seed=9)
    return made


@pytest.fixture(autouse=True)
def one_thread():
    """A forked child must not wait for threads that it does not have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


OPERATIONS = {  # without polars, whose threads do not outlive a fork
    "merge": lambda f, out: merge([f / "a", f / "b"], out),
    "append": lambda f, out: append(
        f / "a",
        AppendConfig(teacher="fake:tiny", corpus=(f"text:{f}/new/*.txt",)),
        out,
        teacher=TinyTeacher(),
    ),
    "subset": lambda f, out: subset(f / "a", SubsetConfig(sample=0.6, k=4), out),
    "first": lambda f, out: subset(f / "a", SubsetConfig(first=9), out),
    "convert": lambda f, out: convert(f / "a", out, profile="packed", values="nat16"),
    "view": lambda f, out: view(f / "a", "trim:280", out),
}
operations = pytest.mark.parametrize("name", OPERATIONS)


def _die_at(link: int, operation, folder: Path, out: Path) -> None:
    """The `link`-th file that is published is the last thing that this process does."""
    real, count = os.link, 0

    def dying(*arguments, **more):
        nonlocal count
        count += 1
        if count == link:
            if link % 2:  # the name is there, and nothing after it
                real(*arguments, **more)
            os._exit(9)
        real(*arguments, **more)

    os.link = dying
    operation(folder, out)
    os._exit(0)


@operations
def test_dying_at_every_file_leaves_no_store_and_a_rerun_finishes(folder, tmp_path, name):
    operation, before = OPERATIONS[name], [files_of(folder / n) for n in ("a", "b")]
    operation(folder, tmp_path / "clean")
    files = len(list((tmp_path / "clean").rglob("*.*")))
    deaths = 0
    for link in range(1, files + 1, 3):
        out = tmp_path / f"at{link}"
        child = FORK.Process(target=_die_at, args=(link, operation, folder, out))
        child.start()
        child.join(120)
        if child.exitcode == 0:
            continue
        assert child.exitcode == 9
        deaths += 1
        if not (out / "manifest.json").exists():
            with pytest.raises(FormatError):
                open_store(out)
        operation(folder, out)
        assert verify_store(out).problems == []
        assert open_store(out).digest == open_store(tmp_path / "clean").digest
    assert deaths >= 3
    assert [files_of(folder / n) for n in ("a", "b")] == before


@pytest.mark.slow
def test_kill_minus_9_at_random_moments(folder, tmp_path):
    """A moment is so many files that are there: by the clock, a busy machine is done before it or never begins."""
    out = tmp_path / "out"
    OPERATIONS["convert"](folder, tmp_path / "clean")
    files = len(files_of(tmp_path / "clean"))
    rng = random.Random(0)
    killed = 0
    for _ in range(60):
        killed += _killed(out, folder / "a", when=rng.randint(1, files))
        if killed == 8:
            break
        if (out / "manifest.json").exists():
            shutil.rmtree(out)
    assert killed == 8
    OPERATIONS["convert"](folder, out)
    assert verify_store(out).problems == []
    assert open_store(out).digest == open_store(tmp_path / "clean").digest


@operations
def test_a_full_disk_says_so_and_the_rest_is_made_later(folder, tmp_path, name, monkeypatch):
    real, count = os.link, 0

    def full(*arguments, **more):
        nonlocal count
        count += 1
        if count > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", full)
        with pytest.raises(StoreError, match=r"disk is full.*same command again"):
            OPERATIONS[name](folder, tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()
    assert not list((tmp_path / "out").rglob(".tmp-*"))
    OPERATIONS[name](folder, tmp_path / "out")
    assert verify_store(tmp_path / "out").problems == []


@operations
def test_a_shard_that_was_damaged_meanwhile_is_made_again(folder, tmp_path, name):
    OPERATIONS[name](folder, tmp_path / "out")
    digest = open_store(tmp_path / "out").digest
    (tmp_path / "out/manifest.json").unlink()
    shard = sorted((tmp_path / "out/data").iterdir())[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.unlink()  # never through a name that a source shares
    shard.write_bytes(data)
    OPERATIONS[name](folder, tmp_path / "out")
    assert open_store(tmp_path / "out").digest == digest
    assert verify_store(tmp_path / "out").problems == []
    assert verify_store(folder / "a").problems == []


def test_it_waits_for_the_shard_that_another_holds(folder, tmp_path):
    """As a build does; so several of one command share the work."""
    out = tmp_path / "out"
    OPERATIONS["convert"](folder, out)
    whole = files_of(out)
    (out / "manifest.json").unlink()
    (out / "commits/00000.json").unlink()
    sorted((out / "data").iterdir())[0].unlink()
    held = Claims(out).take([0])
    assert held is not None

    class Reporter(Silent):
        def notice(self, message):
            if message.startswith("waiting: the shards that are left (1)"):
                held.release()

    convert(folder / "a", out, profile="packed", values="nat16", reporter=Reporter())
    now = files_of(out)
    assert not held.path.exists()
    assert {n: d for n, d in now.items() if n.startswith("data/")} == {
        n: d for n, d in whole.items() if n.startswith("data/")
    }


MERGE = """
import sys
from softlabels.algebra.merge import merge

manifest = merge(sys.argv[2:], sys.argv[1])
assert "torch" not in sys.modules
peak = next(x for x in open("/proc/self/status") if x.startswith("VmHWM"))
print(len(manifest.shards), peak.split()[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads VmHWM")
def test_merging_1000_shards_takes_less_than_300_mb(tmp_path):
    corpus = varied_corpus(tmp_path / "text", documents=60)
    shards = len(build_tiny(tmp_path / "a", corpus, shard_rows=1).shards)
    sources = [str(tmp_path / "a")] * -(-1000 // shards)
    done = subprocess.run(
        [sys.executable, "-c", MERGE, str(tmp_path / "m"), *sources],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    merged, kilobytes = map(int, done.stdout.split())
    assert merged >= 1000
    assert kilobytes < 300_000
    assert verify_store(tmp_path / "m", deep=False).problems == []


@pytest.mark.slow
def test_appending_one_part_in_a_hundred_costs_about_that(tmp_path):
    """Bytes that are written, and positions that the teacher sees."""
    for i in range(101):
        part = tmp_path / ("new" if i == 100 else "old")
        part.mkdir(exist_ok=True)
        (part / f"{i}.txt").write_text(f"Chapter {i:03d}. " + "What is it all about, then? " * 9)
    build_tiny(tmp_path / "g0", f"text:{tmp_path}/old/*.txt", shard_rows=16)
    teacher = TinyTeacher()
    config = AppendConfig(teacher="fake:tiny", corpus=(f"text:{tmp_path}/new/*.txt",))
    append(tmp_path / "g0", config, tmp_path / "g1", teacher=teacher)
    old = open_store(tmp_path / "g0").manifest.identity.corpus
    assert 0.009 < teacher.seen / old.positions < 0.011
    data = [p.stat() for p in (tmp_path / "g1/data").iterdir()]
    written = sum(s.st_size for s in data if s.st_nlink == 1)
    assert written / sum(s.st_size for s in data) < 0.03  # a small file's footer counts, too


def _killed(out: Path, source: Path, *, when: int) -> bool:
    """Convert, until so many files are there; False: it was done before that could be seen."""
    command = [sys.executable, "-m", "softlabels", "convert", str(source), "--out", str(out)]
    command += ["--profile", "packed", "--values", "nat16"]
    child = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    while child.poll() is None and sum(1 for p in out.rglob("*") if p.is_file()) < when:
        time.sleep(0.001)
    child.kill()
    return child.wait() == -9
