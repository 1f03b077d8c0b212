"""Memory that arrays give back is kept: the kernel is not asked for the same pages again."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from softlabels.core import allocator
from softlabels.core.allocator import ARROW, CHOSEN, TORCH, give_back, keep_memory

PROGRAM = """
import json, resource, sys
import numpy as np
from softlabels.core.allocator import give_back, keep_memory

said = keep_memory() if sys.argv[1].startswith("kept") else None
if sys.argv[1] == "kept, then given back":
    said = give_back()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use():  # as a shard does: some arrays at once, then none of them
    arrays = [np.ones(n * 2**17) for n in (1, 4, 28, 28, 28, 28)]  # MiB
    return sum(a[-1] for a in arrays)

use()
before = faults()
for _ in range(4):
    use()
after = faults()
import pyarrow

pool = pyarrow.default_memory_pool().backend_name
print(json.dumps({"said": said, "faults": after - before, "arrow": pool}))
"""


LARGE_PAGES = r"""
import json, re
from pathlib import Path
from softlabels.core.allocator import keep_memory

kept = keep_memory()
import numpy as np

array = np.ones(3 * 2**17)  # 3 MiB
at = array.ctypes.data
for area in re.split(r"\n(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text()):
    begin, end = (int(x, 16) for x in area.split()[0].split("-"))
    if begin <= at < end:
        flags = area.rpartition("VmFlags:")[2].split()
print(json.dumps({"kept": kept, "asked": "hg" in flags}))
"""


def run(how: str, program: str = PROGRAM, **environment: str) -> dict[str, object]:
    others = (*CHOSEN, ARROW, TORCH, "LD_PRELOAD")
    plain = {k: v for k, v in os.environ.items() if k not in others}
    done = subprocess.run(
        [sys.executable, "-c", program, how],
        env=plain | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(not allocator._is_glibc(), reason="of Linux with glibc")
def test_pages_are_not_faulted_in_again():
    kept, given_back = run("kept"), run("given back")
    assert kept["said"] is True
    assert (kept["arrow"], given_back["arrow"] != "system") == ("system", True)
    assert kept["faults"] < 100 < 1000 < given_back["faults"]


@pytest.mark.skipif(not allocator._is_glibc(), reason="of Linux with glibc")
def test_who_needs_memory_may_have_it_given_back_again():
    found = run("kept, then given back")
    assert found["said"] is True
    assert found["faults"] > 1000


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="of Linux with large pages"
)
@pytest.mark.skipif(not allocator._is_glibc(), reason="of Linux with glibc")
def test_arrays_lie_in_memory_for_which_large_pages_were_asked():
    assert run("kept", LARGE_PAGES) == {"kept": True, "asked": True}
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))\n"
    assert run("kept", limited + LARGE_PAGES) == {"kept": True, "asked": False}
    chosen = {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}
    assert run("kept", LARGE_PAGES, **chosen) == {"kept": False, "asked": False}


def test_memory_that_a_kernel_counts_before_it_is_used_is_not_asked_for(monkeypatch, tmp_path):
    without = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda limit: without)
    monkeypatch.setattr(allocator, "OVERCOMMIT", tmp_path / "overcommit_memory")
    assert not allocator._is_counted()
    (tmp_path / "overcommit_memory").write_text("2\n")
    assert allocator._is_counted()


@pytest.mark.skipif(not allocator._is_glibc(), reason="of Linux with glibc")
def test_torch_asks_for_large_pages_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv(TORCH, "0")
    assert keep_memory()
    assert os.environ[TORCH] == "0"
    monkeypatch.delenv(TORCH)
    assert keep_memory()
    assert os.environ[TORCH] == "1"


def test_who_has_chosen_otherwise_is_left_alone(monkeypatch):
    for name in CHOSEN:
        monkeypatch.setenv(name, "glibc.malloc.trim_threshold=131072")
        assert keep_memory() is False
        assert give_back() is False
        monkeypatch.delenv(name)


def test_another_c_library_is_left_alone(monkeypatch):
    for answer in (None, "musl 1.2", ValueError()):

        def confstr(name, answer=answer):
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(os, "confstr", confstr)
        assert keep_memory() is False
