"""What every place must do, whatever it is: a battery that the folder, the bucket and the simulated one pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from softlabels.errors import IntegrityError
from softlabels.making.place import Place

HELD = "claims/00000007.json"


def check_place(make: Callable[[], Place], *, threads: int = 8) -> None:
    """Check an empty place, as several processes see it: each calls `make` for itself."""
    place, other = make(), make()
    _check_published(place, other)
    _check_held(place, other)
    _check_listing(place)
    if threads:
        _check_races(make, threads)


def _check_published(place: Place, other: Place) -> None:
    assert place.list("data") == []
    with pytest.raises(FileNotFoundError):
        place.read("data/a", limit=10)
    version = place.create("data/a", b"first")
    assert version is not None
    assert other.create("data/a", b"second") is None
    assert other.read("data/a", limit=10) == (b"first", version)
    with pytest.raises(IntegrityError, match="5 bytes, expected at most 4"):
        other.read("data/a", limit=4)
    assert [(e.name, e.version, e.bytes) for e in other.list("data")] == [("data/a", version, 5)]
    place.remove("data/a", "data/none")
    assert other.list("data") == []
    assert place.create("data/a", b"third") is not None


def _check_held(place: Place, other: Place) -> None:
    first = place.create(HELD, b"0 mine")
    assert first is not None
    assert other.create(HELD, b"0 theirs") is None
    time.sleep(0.02)  # a folder's clock ticks some hundred times a second
    renewed = place.renew(HELD, b"1 mine", first)
    assert renewed is not None
    assert renewed != first
    (seen,) = other.list("claims")
    assert (seen.name, seen.version) == (HELD, renewed)
    taken = other.swap(HELD, b"0 theirs", seen.version)
    assert taken is not None
    assert place.swap(HELD, b"2 mine", renewed) is None  # a late one
    assert place.renew(HELD, b"2 mine", renewed) is None
    assert place.read(HELD, limit=100) == (b"0 theirs", taken)
    assert other.renew(HELD, b"1 theirs", taken) is not None
    assert len(other.list("claims")) == 1
    other.remove(HELD)
    assert place.list("claims") == []
    assert other.renew(HELD, b"2 theirs", taken) is None
    assert place.create(HELD, b"0 again") is not None
    place.remove(HELD)


def _check_listing(place: Place) -> None:
    names = [f"commits/{i:05d}.json" for i in range(12)]
    for name in reversed(names):
        place.create(name, b"x")
    place.create("commits.json", b"x")  # its name begins like the folder's
    assert [e.name for e in place.list("commits")] == names
    assert [e.name for e in place.list("commits", after=names[4])] == names[5:]
    assert place.list("commits", after=names[-1]) == []


def _check_races(make: Callable[[], Place], threads: int) -> None:
    """Of many that try at once, one creates, and one swaps."""
    for i in range(4):
        name = f"claims/{i:08d}.json"
        with ThreadPoolExecutor(threads) as pool:
            won = list(pool.map(lambda k: make().create(name, b"%d" % k), range(threads)))  # noqa: B023
            assert sum(v is not None for v in won) == 1
            (version,) = (v for v in won if v is not None)
            swapped = pool.map(lambda k: make().swap(name, b"s%d" % k, version), range(threads))  # noqa: B023
            assert sum(v is not None for v in swapped) == 1
