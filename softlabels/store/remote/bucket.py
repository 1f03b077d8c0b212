"""A bucket in which a store is made: the six verbs of `making/place/__init__.py` as requests on condition.

`create` is a PUT with `If-None-Match: *`; `swap` and `renew` are PUTs with `If-Match` on the version that was seen.
Each is one request (at Google's a second, `versions.py`), of which the service lets one of many succeed. The sha256 of
what is sent goes with it, so that the service refuses what was altered on its way. A service that ignores conditions,
of which there are several, would let builders overwrite each other unseen: it is found out (`probe`) and refused before
anything is made there.

An answer may be lost after the request was carried out, and the request made again then meets its own doing: what is
there is then compared with what was sent.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from secrets import token_hex

from softlabels.core.records import FILE_LIMIT
from softlabels.errors import ConfigError, IntegrityError, RemoteError
from softlabels.format.files import Address
from softlabels.making.place import HELD, PROBE, TRIED, Entry
from softlabels.store.remote.addresses import writable
from softlabels.store.remote.client import Client
from softlabels.store.remote.versions import NO_VERSION, Untold

_CREATED = "a file that was there was created once more"
_REPLACED = "a file was replaced that was not the one that was expected"
_HERE = "several who write there at a time would overwrite each other unseen"


class BucketPlace:
    """The files under `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX`."""

    def __init__(self, url: str) -> None:
        """Nothing is asked yet.

        Raises:
            ConfigError: no such address, or one that cannot be written to file by file.
        """
        if not writable(url):
            raise ConfigError(
                f"{url}: a store cannot be built there; expected a folder, s3:// or gs:// (build in a folder, and "
                "`softlabels push` it)"
            )
        self.client = Client(url, checksums=True)

    @property
    def root(self) -> Address:
        """The address."""
        return self.client.root

    def create(self, name: str, data: bytes) -> str | None:
        """PUT, if there is none."""
        return self._done(name, data, lambda: self.client.put_new(name, data))

    def read(self, name: str, *, limit: int) -> tuple[bytes, str]:
        """GET."""
        return self.client.read_version(name, limit=limit)

    def list(self, folder: str, *, after: str = "") -> list[Entry]:
        """One page of names."""
        return [Entry(*found) for found in self.client.page(folder, after)]

    def renew(self, name: str, data: bytes, version: str) -> str | None:
        """PUT, if it is still of a version; an ETag is of the content, which must be another."""
        return self.swap(name, data, version)

    def swap(self, name: str, data: bytes, version: str) -> str | None:
        """PUT, if it is still of a version."""
        return self._done(name, data, lambda: self.client.put_if(name, data, version))

    def remove(self, *names: str) -> None:
        """DELETE."""
        if names:
            self.client.delete(*names)

    def _done(self, name: str, data: bytes, put: Callable[[], str | None]) -> str | None:
        """Put; if that was tried more than once, and refused, it may have been done at the first try."""
        before = self.client.repeats
        version = put()
        if version is None and self.client.repeats != before:
            try:
                found, there = self.read(name, limit=len(data))
            except (FileNotFoundError, IntegrityError):
                return None
            return there if found == data else None
        return version


def probe(place: BucketPlace, begun: bool = False) -> None:
    """Refuse a service that ignores preconditions, or tells no versions to put them on, by a file of its own.

    Args:
        begun: a store was begun there: four requests, and the file stays among the claims. Else it is gone afterwards.

    Raises:
        RemoteError: it does, or it is out of reach.
    """
    if begun:
        version = place.create(TRIED, b"first")
        if version is not None and place.create(TRIED, b"second") is not None:
            raise _ignores(place, _CREATED, "If-None-Match")
        with suppress(
            FileNotFoundError
        ):  # the store was finished this moment, and with it the claims went
            version = place.read(TRIED, limit=FILE_LIMIT)[1]
            if _listed(place, HELD, TRIED) not in (version, None):
                raise _lists_otherwise(place)
        if place.swap(TRIED, b"third", NO_VERSION) is not None:
            raise _ignores(place, _REPLACED, "If-Match")
        return
    name = f"{PROBE}{token_hex(8)}"
    try:
        refused = _tried(place, name)
    except Untold as e:
        refused = e
    try:
        place.remove(name)
    except RemoteError:
        if refused is None:
            raise
    if refused is not None:
        raise refused


def _tried(place: BucketPlace, name: str) -> RemoteError | None:
    """Why a service is refused, by a file that is there afterwards."""
    first = place.create(name, b"first")
    if first is None or place.create(name, b"second") is not None:
        return _ignores(place, _CREATED, "If-None-Match")
    if _listed(place, "", name) != first:
        return _lists_otherwise(place)
    second = place.swap(name, b"third", first)
    if second is None or place.swap(name, b"fourth", first) is not None:
        return _ignores(place, _REPLACED, "If-Match")
    return None


def _listed(place: BucketPlace, folder: str, name: str) -> str | None:
    """The version that a listing tells of a file; None: it does not name it."""
    found = place.list(folder, after=name[:-1])
    return next((e.version for e in found if e.name == name), None)


def _lists_otherwise(place: BucketPlace) -> RemoteError:
    return RemoteError(
        f"{place.root}: its listings do not tell the version (ETag) of a file that reading it tells, so a claim that "
        "was seen there could not be taken over; use a service whose listings do, or build in a folder and "
        "`softlabels push` it"
    )


def _ignores(place: BucketPlace, what: str, header: str) -> RemoteError:
    return RemoteError(
        f"{place.root}: ignores preconditions ({what}), so {_HERE}; use a service that obeys {header}, or build in a "
        "folder and `softlabels push` it"
    )
