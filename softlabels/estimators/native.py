"""`native.c`: the passes over logits on a CPU, as one compiler makes them of C; without a compiler torch does the same.

Selection reads each logit a few times and computes little, so on a CPU it costs what memory costs. torch goes through a
row once for each operation; these go through it once for all that can be told of a logit: ids are the same, and sums
agree to the rounding of float32.

The C compiler of the machine (`CC`, or `cc`) is run once in a process, for a second, when a CPU first selects from a
large vocabulary; nothing of it stays on disk. What was built is compared with torch before it is used. Where it cannot
be built, or `SOFTLABELS_NATIVE=0` is set, torch computes, and `reason` says why.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from softlabels.errors import first_line

if TYPE_CHECKING:
    from torch import Tensor

SWITCH = "SOFTLABELS_NATIVE"
SOURCE = Path(__file__).with_suffix(".c")
FEWEST_IDS = 8192
"""Of a vocabulary, for which a compiler is worth a second."""
PATIENCE = 60
"""Seconds for the compiler."""
BLOCK = 64
"""As of `native.c`."""
_LOCK = threading.Lock()


class Native(NamedTuple):
    """What was built, or why not."""

    library: ctypes.CDLL | None
    reason: str
    """For people."""


def suits(logits: Tensor) -> bool:
    """Whether these logits `[n, v]` are for `native.c`; it is built, if it was not yet."""
    return (
        logits.device.type == "cpu"
        and logits.dtype == torch.float32
        and logits.dim() == 2
        and logits.shape[1] >= FEWEST_IDS
        and logits.stride(1) == 1
        and built().library is not None
    )


def built() -> Native:
    """The library of this process."""
    with _LOCK:
        return _built()


@lru_cache(maxsize=1)
def _built() -> Native:
    if os.environ.get(SWITCH) == "0":
        return Native(None, f"{SWITCH}=0")
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        return Native(None, f"there is no C compiler ({compiler[0]})")
    said = ""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "native.so"
        for flags in (["-march=native"], []):  # some compilers know no machine by that name
            command = [*compiler, "-O3", *flags, "-shared", "-fPIC", str(SOURCE), "-o", str(out)]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=PATIENCE, check=False
                )
                if done.returncode == 0:
                    return _checked(ctypes.CDLL(str(out)))
                said = done.stderr.strip().partition("\n")[0]
            except (OSError, subprocess.TimeoutExpired, AttributeError) as e:
                said = first_line(e)
    return Native(None, f"{compiler[0]}: {said}")


def _checked(library: ctypes.CDLL) -> Native:
    """Only if it says of some logits what torch says."""
    library.scan.restype, library.exponentiate.restype = ctypes.c_int, None
    logits = torch.randn(3, 40 * BLOCK + 7, generator=torch.Generator().manual_seed(0)) * 4
    given = logits.clone()
    found = _scan(library, given, 9, [Chain(2.0, 1, 1)])
    y = logits.double() - found.top[:, 8:]
    y.scatter_(1, found.ids[:, :8], -1e9)
    tails = torch.stack([(y / 2).exp().sum(1), y.exp().sum(1), (y.exp() * y).sum(1)], 1)
    mass = logits[:, : 40 * BLOCK].contiguous()
    y = mass.double() - mass.amax(1, keepdim=True)
    spread, blocks = _exponentiate(library, mass, mass.amax(1, keepdim=True))
    pairs = (
        (given, logits),
        (found.totals, logits.sum(1)),
        (found.top, logits.topk(9).values),
        (found.top, logits.gather(1, found.ids)),
        (found.tails[:, 0, [0, 1, 3]], tails),
        (mass, y.exp()),
        (spread, (y.exp() * y).sum(1)),
        (blocks, y.exp().view(3, -1, BLOCK).sum(2)),
    )
    for own, reference in pairs:
        if not torch.allclose(own.double(), reference.double(), rtol=1e-5, atol=1e-5):
            return Native(None, "what the compiler made of native.c does not agree with torch")
    return Native(library, "")


class Chain(NamedTuple):
    """Temperatures that are powers of two apart."""

    first: float
    """The highest."""
    levels: int
    """How often it is halved, 0 to 2."""
    one: int
    """After how many halvings it is 1; -1: it never is."""


class Found(NamedTuple):
    """Of n rows; of one with a NaN nothing but the total means anything."""

    totals: Tensor
    """`[n] float32`: sums of logits."""
    top: Tensor
    """`[n, k] float32`: the largest, in descending order."""
    ids: Tensor
    """`[n, k] int64`: theirs; of equal logits the lowest."""
    tails: Tensor
    """`[n, C, 4] float64`: with y = z - `top[:, -1]`, over all ids but the first k - 1: sums of e^(y / T), for T of
    each chain and its half and quarter, and of e^y y."""


def scan(logits: Tensor, k: int, chains: Sequence[Chain]) -> Found:
    """What one pass over `logits [n, v]` finds, which are the same after it; at least k of their blocks are whole."""
    return _scan(_library(), logits, k, chains)


def exponentiate(logits: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """`logits [n, B * 64]` become e^y, y = z - `largest [n, 1]`; the sums of e^y y, `[n]`, and of blocks, `[n, B]`."""
    return _exponentiate(_library(), logits, largest)


def _library() -> ctypes.CDLL:
    library = built().library
    assert library is not None, "`suits` said that it is there"
    return library


def _scan(library: ctypes.CDLL, logits: Tensor, k: int, chains: Sequence[Chain]) -> Found:
    n, count = len(logits), len(chains)
    found = Found(
        logits.new_empty(n),
        logits.new_empty(n, k),
        torch.empty(n, k, dtype=torch.int64),
        torch.empty(n, count, 4, dtype=torch.float64),
    )
    scales = (ctypes.c_float * count)(*(1.0 / c.first for c in chains))
    levels = (ctypes.c_int * count)(*(c.levels for c in chains))
    ones = (ctypes.c_int * count)(*(c.one for c in chains))
    numbers = (ctypes.c_long(k), ctypes.c_int(count), scales, levels, ones)

    def part(rows: slice) -> None:
        if library.scan(*_rows(logits, rows), *numbers, *_at(rows, *found)):
            raise MemoryError(f"no memory for the {k} largest of {logits.shape[1]} logits")

    _each(n, part)
    return found


def _exponentiate(library: ctypes.CDLL, logits: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    n, v = logits.shape
    assert v % BLOCK == 0
    shift = largest.contiguous()
    spreads = torch.empty(n, dtype=torch.float64)
    blocks = torch.empty(n, v // BLOCK, dtype=torch.float64)
    _each(
        n,
        lambda rows: library.exponentiate(*_rows(logits, rows), *_at(rows, shift, spreads, blocks)),
    )
    return spreads, blocks


def _rows(logits: Tensor, rows: slice) -> tuple[ctypes.c_void_p | ctypes.c_long, ...]:
    """Of `logits`, as each function takes them: where they begin, how many, how far apart, how long."""
    (begin,) = _at(rows, logits)
    sizes = (rows.stop - rows.start, logits.stride(0), logits.shape[1])
    return (begin, *(ctypes.c_long(s) for s in sizes))


def _at(rows: slice, *tensors: Tensor) -> list[ctypes.c_void_p]:
    """Where the rows of each begin."""
    steps = [t.stride(0) * t.element_size() for t in tensors]
    pairs = zip(tensors, steps, strict=True)
    return [ctypes.c_void_p(t.data_ptr() + rows.start * step) for t, step in pairs]


def _each(n: int, work: Callable[[slice], object]) -> None:
    """All rows, some in each of torch's threads; C runs beside Python."""
    threads = min(torch.get_num_threads(), n)
    if threads <= 1:
        work(slice(0, n))
        return
    cuts = [n * i // threads for i in range(threads + 1)]
    list(_pool(threads).map(work, [slice(a, b) for a, b in pairwise(cuts)]))


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="softlabels-native")
