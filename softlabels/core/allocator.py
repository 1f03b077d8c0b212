"""Memory that arrays give back is kept for the next ones, and lies in large pages.

Left to itself, glibc asks the kernel for each large array and gives it back once it is freed. Whoever decodes one shard
after the other then has the same pages made, cleared and unmapped again and again: up to half of a loader's CPU seconds
were the kernel's. Told to keep them, it reuses them. Arrow has an allocator of its own that gives back, too, and is
told to use glibc's.

In pages of 4 KiB a decoded shard is thousands of them, more than a processor remembers the places of, and in a virtual
machine each one forgotten is looked up in two tables: loading took up to twice as long, and a training step on the CPU,
too. Linux makes pages of 2 MiB where it is asked to (`madvise`), so it is asked: for the beginning of the heap here,
and by torch for each of its own large arrays.

Price: what was once in use stays with the process, up to `KEPT`. Arrays above 32 MiB are glibc's own bound, and go back
to the kernel as before. Threads share one heap. Who spreads weights over processes to save memory says `give_back`.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
"""Of malloc.h."""
LARGEST = 32 * 2**20
"""Bytes of an array that glibc can be made to keep, at most."""
SMALL = 2**20
"""Bytes from which on an array is the kernel's, where memory is given back."""
PAD = 64 * 2**20
"""Bytes by which the heap grows at a time, at least."""
KEPT = 2**30
"""Bytes at the end of the heap that are kept."""
ADVISED = 2**29
"""Bytes of the heap, from its present end on, that lie in large pages once they are used."""
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
"""What the kernel promises: `2` says no more than it has."""
ARROW = "ARROW_DEFAULT_MEMORY_POOL"
"""Which allocator Arrow uses, read when it is imported."""
TORCH = "THP_MEM_ALLOC_ENABLE"
"""Whether torch asks for large pages for its arrays, read when it makes the first."""
CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
"""Whoever says one of them has chosen otherwise."""


def keep_memory() -> bool:
    """Have this process, and those that are forked from it, keep the memory of arrays; returns whether it does.

    Of Linux with glibc alone, and not where the environment says how to allocate (`CHOSEN`). It may be said at any
    time, best before much was allocated; Arrow hears of it if it is not imported yet.
    """
    if not _is_glibc() or not os.environ.keys().isdisjoint(CHOSEN):
        return False
    os.environ.setdefault(ARROW, "system")
    os.environ.setdefault(TORCH, "1")
    if not _told({M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: KEPT, M_ARENA_MAX: 1}):
        return False
    if not _is_counted() and _told({M_TOP_PAD: ADVISED}):
        _in_large_pages()
    return _told({M_TOP_PAD: PAD})


def give_back() -> bool:
    """Have this process return arrays that it frees, whatever `keep_memory` said; returns whether it does.

    Where `keep_memory` could not be said, nothing is.
    """
    if not _is_glibc() or not os.environ.keys().isdisjoint(CHOSEN):
        return False
    return _told({M_MMAP_THRESHOLD: SMALL, M_TRIM_THRESHOLD: SMALL, M_TOP_PAD: 0})


def _told(wanted: dict[int, int]) -> bool:
    import ctypes

    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(name, value) == 1 for name, value in wanted.items())


def _is_counted() -> bool:
    """Whether memory that is asked for and not used yet is counted: by a limit of this process, or by the kernel."""
    import resource

    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    if any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits):
        return True
    try:
        return OVERCOMMIT.read_text().strip() == "2"
    except OSError:  # in a sandbox that does not tell
        return False


def _in_large_pages() -> None:
    """Ask for large pages in what the heap grows by now. A kernel that has none is left as it is."""
    import ctypes

    libc, page = ctypes.CDLL(None), mmap.PAGESIZE
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.sbrk.argtypes = [ctypes.c_size_t], [ctypes.c_ssize_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.free.argtypes = [ctypes.c_void_p]
    begin = libc.malloc(LARGEST - page)
    end = libc.sbrk(0)
    if begin is not None and begin < end:  # else the heap could not grow, and this lies elsewhere
        first = -(-begin // page) * page
        libc.madvise(first, end // page * page - first, mmap.MADV_HUGEPAGE)
    libc.free(begin)


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # no such question on this system
        return False
