"""Publishing a file of a place: created if it is absent, or swapped for the mark of a repair, which is nothing."""

from __future__ import annotations

from softlabels.core.records import FILE_LIMIT
from softlabels.errors import IntegrityError
from softlabels.making.place import Place
from softlabels.making.place.quarantine import WITHDRAWN


def published(
    place: Place, name: str, data: bytes, *, limit: int = FILE_LIMIT
) -> tuple[bytes, bool]:
    """What has a name now, and whether we put it there; else it was there, and is not the mark of a repair.

    Raises:
        IntegrityError: it was there, and is gone; or what is there has more than `limit` bytes.
    """
    if place.create(name, data) is not None:
        return data, True
    there, version = read_published(place, name, limit=limit)
    if there != WITHDRAWN:
        return there, False
    if place.swap(name, data, version) is not None:
        return data, True
    return read_published(place, name, limit=limit)[0], False


def read_published(place: Place, name: str, *, limit: int = FILE_LIMIT) -> tuple[bytes, str]:
    """A file that was there, and its version; `IntegrityError` if it is gone."""
    try:
        return place.read(name, limit=limit)
    except FileNotFoundError as e:
        raise IntegrityError(
            f"{place.root / name}: was there, and is gone: somebody withdrew it; {way_out(place)}"
        ) from e


def way_out(place: Place) -> str:
    """What to do about a file that is damaged or gone, and is made from others."""
    return f"run `softlabels repair {place.root}`, and then the same command again"
