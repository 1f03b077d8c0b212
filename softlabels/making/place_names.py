"""Names of claims in a place: of leases, of their records, and of the marks of blocks; and what a free one says."""

from __future__ import annotations

from softlabels.making.place import HELD, Entry


def claim_name(start: int) -> str:
    """Of the lease that begins with a shard."""
    return f"{HELD}/{start:08d}.json"


DONE, MARK, FULL = ".done.json", "block-", ".full.json"
LEASE = len(HELD) + 9
"""So long is what names of a claim and of its records have in common, `claims/00000032`."""
AT = slice(len(HELD) + 1, LEASE)
"""Where that has the first shard."""
LAST = f"{HELD}/~"
"""Comes after all names."""


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
