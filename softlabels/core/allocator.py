"""Memory that arrays give back is kept for the next ones.

Left to itself, glibc asks the kernel for each large array and gives it back once it is freed. Whoever decodes one shard
after the other then has the same pages made, cleared and unmapped again and again: up to half of a loader's CPU seconds
were the kernel's. Told to keep them, it reuses them. Arrow has an allocator of its own that gives back, too, and is
told to use glibc's.

Price: what was once in use stays with the process, up to `KEPT`. Arrays above 32 MiB are glibc's own bound, and go back
to the kernel as before. Where many threads take and free much at a time, each keeps some, and the peak is higher: who
spreads weights over processes to save memory says `give_back`.
"""

from __future__ import annotations

import os

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Of malloc.h."""
LARGEST = 32 * 2**20
"""Bytes of an array that glibc can be made to keep, at most."""
SMALL = 2**20
"""Bytes from which on an array is the kernel's, where memory is given back."""
PAD = 64 * 2**20
"""Bytes of a heap of a thread; with less free space beside it, an empty one is given back."""
KEPT = 2**30
"""Bytes at the end of the heap that are kept."""
ARROW = "ARROW_DEFAULT_MEMORY_POOL"
"""Which allocator Arrow uses, read when it is imported."""
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
    return _told({M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: KEPT, M_TOP_PAD: PAD})


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


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # no such question on this system
        return False
