"""Memory that arrays give back is kept: the kernel is not asked for the same pages again."""

import json
import os
import subprocess
import sys

import pytest

from softlabels.core import allocator
from softlabels.core.allocator import ARROW, CHOSEN, give_back, keep_memory

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


def run(how: str, **environment: str) -> dict[str, object]:
    plain = {k: v for k, v in os.environ.items() if k not in (*CHOSEN, ARROW, "LD_PRELOAD")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
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
