"""Names of claims in a place: of leases, of their records, and of the marks of blocks; and what a claim says.

A listing tells the length of a claim, and so that tells two things: whether somebody let go of it (`FREE`), and which
claims may be of one host, whose processes can be looked at from there. So a builder reads few claims of other hosts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from zlib import crc32

import msgspec

from softlabels.core.processes import Process
from softlabels.making.claims import Holder
from softlabels.making.place import HELD, TRIED, Entry

PLANNING, FINISH = "plan", "finish"
"""Claims of what one builder alone does: who plans, and who publishes the manifest."""


def claim_name(start: int) -> str:
    """Of the lease that begins with a shard."""
    return f"{HELD}/{start:08d}.json"


DONE, MARK, FULL = ".done.json", "block-", ".full.json"
LEASE = len(HELD) + 9
"""So long is what names of a claim and of its records have in common, `claims/00000032`."""
AT = slice(len(HELD) + 1, LEASE)
"""Where that has the first shard."""


def done_name(start: int) -> str:
    """Of the records of the lease that begins with a shard."""
    return f"{HELD}/{start:08d}{DONE}"


def mark_name(block: int, kind: str = ".json") -> str:
    """Of what says that all leases of a block are done, or claimed (`FULL`)."""
    return f"{HELD}/{MARK}{block:05d}{kind}"


FREE = b"free\n"
"""Content of a claim that was let go of; its length, which a listing tells, is no other claim's."""


def is_free(entry: Entry) -> bool:
    """Whether a claim was let go of."""
    return entry.bytes == len(FREE)


HOSTS = 64
"""Hosts that the length of a claim tells apart."""


def claim_content(holder: Holder, salt: str, renewals: int) -> bytes:
    """What a claim says that was renewed so many times; white space brings its length to that of its host's claims."""
    said = msgspec.json.encode(holder)[:-1] + b',"lease":"%s","renewals":%d}' % (
        salt.encode(),
        renewals,
    )
    return said.ljust(len(said) + (_remainder(holder) - len(said)) % HOSTS)


def may_be_beside(entry: Entry, process: Process) -> bool:
    """Whether a claim may be of a process that this one can look at, by its length."""
    return entry.bytes % HOSTS == _remainder(process) and not is_free(entry)


def _remainder(process: Process) -> int:
    return crc32(f"{process.host} {process.boot} {process.space}".encode()) % HOSTS


_CLAIM = re.compile(rf"{HELD}/(?:([0-9]{{8}})|{PLANNING}|{FINISH})\.json")
"""Of a lease, or of what one builder alone does."""
_DONE = re.compile(rf"{HELD}/[0-9]{{8}}{re.escape(DONE)}")
_MARK = re.compile(rf"{HELD}/{MARK}([0-9]{{5}})(?:{re.escape(FULL)}|\.json)")


def is_ours(name: str) -> bool:
    """Whether a file is one that builders hold; whatever else lies in `claims/` is somebody's, and left alone."""
    return name == TRIED or any(p.fullmatch(name) for p in (_CLAIM, _DONE, _MARK))


def shard_of(name: str) -> int | None:
    """The first shard of the lease that a claim is on; None: it is no claim on a lease."""
    match = _CLAIM.fullmatch(name)
    return int(match[1]) if match is not None and match[1] is not None else None


@lru_cache(maxsize=4096)
def block_of(name: str) -> int | None:
    """The block that a mark is of; None: it is no mark."""
    match = _MARK.fullmatch(name)
    return None if match is None else int(match[1])


def in_force(entries: Sequence[Entry]) -> list[Entry]:
    """The claims that somebody holds, of all files in `claims/`: neither let go of, nor of a lease that is done."""
    done = {e.name[:LEASE] for e in entries if e.name[LEASE:] == DONE}
    return [
        e
        for e in entries
        if _CLAIM.fullmatch(e.name) and not is_free(e) and e.name[:LEASE] not in done
    ]
