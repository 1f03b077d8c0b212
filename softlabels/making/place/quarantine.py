"""Taking published files out of a bucket: deleted if they are proven ours, and else moved into `quarantine/`.

A bucket can neither rename nor, everywhere, delete on condition. So a file is taken out in four steps:
 1. it is read, and left alone unless it is of the version that was judged;
 2. unless it is proven ours its bytes are written to `quarantine/`, under a name that their digest gives;
 3. it is swapped, on condition of that version, for a mark (`WITHDRAWN`): what somebody put there since stays;
 4. of what is made again from shards the mark is deleted, if it is still there. A shard's mark stays, and a builder
    swaps it for the shard, again on condition (`commit.py`): so no repair, however late, deletes a shard.

Whoever dies in between leaves a copy, or a mark: the next repair takes that out, too, and so does a build of what it
makes (`publishing.py`, `clear_mark`). The price: the bytes come here, and go back once; and who stands still just
before 4 may delete a record, a card or a manifest that was made since, which the next repair or build makes again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from softlabels.core.records import FILE_LIMIT
from softlabels.errors import StoreError
from softlabels.making.place import Entry, Place
from softlabels.making.quarantine import QUARANTINE

WITHDRAWN = b"withdrawn by softlabels repair\n"


def is_mark(entry: Entry) -> bool:
    """Whether a record, as a listing has it, is the mark of a repair that died: no record is as short."""
    return entry.bytes == len(WITHDRAWN)


def retract_in(
    place: Place,
    name: str,
    seen: str | None,
    ours: Callable[[bytes], bool] = lambda _: False,
    *,
    stays: bool = False,
) -> str | None:
    """Take a file out, if it is of the version that was seen.

    Args:
        place: a bucket: a folder's published files cannot be swapped (`quarantine.py` is for folders).
        seen: None: nothing was there, so nothing is taken out.
        ours: given the bytes; True: they are proven the store's own.
        stays: leave the mark there.

    Returns:
        Where it is now; None: nowhere, or it is left where it was.

    Raises:
        StoreError: the place refuses.
    """
    if seen is None:
        return None
    try:
        data, version = place.read(name, limit=FILE_LIMIT)
    except FileNotFoundError:
        return None
    if version != seen:
        return None
    aside = None if data == WITHDRAWN or ours(data) else _copied(place, name, data)
    mark = place.swap(name, WITHDRAWN, version)
    if mark is not None and not stays:
        _remove(place, name, mark)
    return aside


def clear_mark(place: Place, name: str) -> bool:
    """Delete the mark that a repair left that died, of what is made again from shards; False: there is none."""
    try:
        data, version = place.read(name, limit=FILE_LIMIT)
    except FileNotFoundError:
        return False
    if data == WITHDRAWN:
        _remove(place, name, version)
    return data == WITHDRAWN


def _copied(place: Place, name: str, data: bytes) -> str:
    """Where a copy of a file's bytes is."""
    digest = hashlib.sha256(data).hexdigest()[:16]
    aside = f"{QUARANTINE}/{name.rpartition('/')[2]}.{digest}"
    if place.create(aside, data) is None and place.read(aside, limit=FILE_LIMIT)[0] != data:
        raise StoreError(
            f"{place.root / aside}: is there already, and not a copy of {name}; look whose it is, and move it away "
            "(nothing was changed)"
        )
    return aside


def _remove(place: Place, name: str, mark: str) -> None:
    """Delete a mark, looked at once more."""
    try:
        _, version = place.read(name, limit=FILE_LIMIT)
    except FileNotFoundError:
        return
    if version == mark:
        place.remove(name)
