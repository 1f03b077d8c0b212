"""Finishing a store that was made in a `Place`: one builder of many reads all records, and publishes the manifest."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, TypeVar

from softlabels.core.records import FILE_LIMIT, RECORD_LIMIT, canonical
from softlabels.errors import IntegrityError
from softlabels.format.containers.parquet import column_bytes
from softlabels.format.files import Address, Recorded
from softlabels.format.manifest import MANIFEST, Commit, Manifest, Plan, parse_manifest
from softlabels.format.shard_records import ShardRecord
from softlabels.making.card import card
from softlabels.making.finish import CARD, has_columns, make_manifest, with_files
from softlabels.making.place import HELD, Place, everything
from softlabels.making.place.builder import LONGEST_PAUSE, SHORTEST_PAUSE
from softlabels.making.place.claims import PlaceClaims
from softlabels.making.place.commit import LeaseRecords, parsed, read_commit, read_shard
from softlabels.making.place.holding import PlaceLease
from softlabels.making.place.leases import leases_of
from softlabels.making.place.names import FINISH, done_name, is_ours
from softlabels.making.place.plan import Mirror
from softlabels.making.place.quarantine import retract_in

AT_ONCE = 32
"""Requests that are under way at a time."""
LOOKS = 4
"""Times that who waits asks whether another is at it, before it asks again whether it is done."""
OF_RECORDS = 1e-4
"""Seconds for each shard that who waits for the manifest waits at first: before that it is hardly there."""

A = TypeVar("A")
T = TypeVar("T")


class Several(Protocol):
    """Does work on items, some at a time, and gives what comes of it in order."""

    def __call__(self, work: Callable[[A], T], items: Iterable[A], /) -> Iterator[T]:
        """What comes of each."""


def finished_in(place: Place) -> Manifest | None:
    """The manifest of a store that is finished, with all shards there; None: it is not finished.

    Raises:
        IntegrityError: a shard is gone, or not as long as recorded.
    """
    try:
        data, _ = place.read(MANIFEST, limit=RECORD_LIMIT)
    except FileNotFoundError:
        return None
    manifest = parse_manifest(data, PlacePages(place))
    check_sizes(place, manifest.shards)
    return manifest


class PlacePages:
    """Reads the pages of a record in a place."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @property
    def root(self) -> Path | Address:
        """The place."""
        return self._place.root

    def checked(self, file: Recorded) -> bytes:
        """A page whose size and sha256 were found equal to the record's."""
        where = self.root / file.name
        try:
            data, _ = self._place.read(file.name, limit=min(file.bytes, FILE_LIMIT))
        except FileNotFoundError as e:
            raise IntegrityError(f"{where}: missing, and the manifest names it") from e
        if (len(data), sha256(data).hexdigest()) != (file.bytes, file.sha256):
            raise IntegrityError(f"{where}: is not what the manifest says; copy it there again")
        return data


def finish_in(mirror: Mirror, plan: Plan, claims: PlaceClaims) -> Manifest:
    """Publish the card and the manifest of a store whose shards are all recorded, or wait until another has.

    Raises:
        IntegrityError: a shard or a record is not there, or damaged; there is no manifest then.
    """
    place = mirror.place

    def publish(lease: PlaceLease) -> None:
        commits, columns = collected(place, plan, lease.renew)
        check_sizes(place, commits)
        manifest, pages = make_manifest(mirror.folder, plan, commits, columns=columns)
        publish_in(mirror, manifest, commits, pages, {}, lease.renew, lease.holds)

    pause = first_pause(plan)
    return alone_in(claims, FINISH, lambda: finished_in(place), publish, pause=pause)


def first_pause(plan: Plan) -> float:
    """Seconds after which who waits for the manifest looks again first."""
    return min(max(SHORTEST_PAUSE, OF_RECORDS * len(plan.shards)), LONGEST_PAUSE)


def publish_in(
    mirror: Mirror,
    manifest: Manifest,
    commits: Sequence[Commit],
    pages: Mapping[str, bytes],
    made: Mapping[str, bytes],
    renew: Callable[[], None],
    holds: Callable[[], bool],
) -> None:
    """Publish the pages, the card, which is kept if there is one, and the manifest.

    Args:
        commits: of all shards, as the manifest says.
        made: files that were made from the manifest and are there.
        renew: shows that this process lives.
        holds: whether the store is still this process's to finish; else no manifest is published.

    Raises:
        IntegrityError: a page is another's, or a shard was withdrawn meanwhile; there is no manifest of this call then.
    """
    place, root = mirror.place, mirror.place.root
    for name, page in pages.items():
        if mirror.put(name, page) != page:
            raise IntegrityError(
                f"{root / name}: is there already with other content; run `softlabels repair {root}`"
            )
        renew()
    kept = mirror.put(CARD, card(manifest).encode())
    ours = canonical(with_files(manifest, {**made, CARD: kept}))
    if not holds():
        return
    version = place.create(MANIFEST, ours)
    try:
        check_sizes(place, commits)  # `repair` may have withdrawn one since
    except IntegrityError:
        retract_in(place, MANIFEST, version, lambda data: data == ours)
        raise


def alone_in(
    claims: PlaceClaims,
    name: str,
    done: Callable[[], T | None],
    work: Callable[[PlaceLease], None],
    *,
    pause: float = SHORTEST_PAUSE,
    sleep: Callable[[float], Any] = time.sleep,
) -> T:
    """Have one builder of many do something, under a claim of that name; what `done` then gives.

    Args:
        done: what came of it, whoever did it; None: it is still to be done.
        work: does it, under a lease that it renews now and then.
        pause: seconds before a second look, which become more.
        sleep: seconds.
    """
    while (result := done()) is None:
        if (lease := claims.take_end(name)) is not None:
            try:
                work(lease)
            finally:
                lease.release()
            continue
        for _ in range(LOOKS):  # and then whether it is done, for who did it may have died since
            sleep(claims.spread(pause))
            pause = min(2 * pause, LONGEST_PAUSE)
            if not claims.end_is_held(name):
                break
    return result


def in_threads(work: Callable[[A], T], items: Iterable[A]) -> Iterator[T]:
    """What comes of work on items, in order, `AT_ONCE` at a time."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="softlabels-finish") as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for item in items:
                if len(waiting) == 2 * AT_ONCE:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(work, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def check_sizes(place: Place, shards: Sequence[Commit] | Sequence[ShardRecord]) -> None:
    """Refuse a store of which a shard is missing or of another size: a listing, and no bytes are read.

    Raises:
        IntegrityError: names the first, and how many there are.
    """
    there = {e.name: e.bytes for folder in _folders(shards) for e in everything(place, folder)}
    wrong = [s for s in shards if there.get(s.name) != s.bytes]
    if wrong:
        found = there.get(wrong[0].name)
        raise IntegrityError(
            f"{place.root / wrong[0].name}: {'missing' if found is None else f'{found} bytes'}, recorded with "
            f"{wrong[0].bytes} bytes ({len(wrong)} of {len(shards)} shards are not there as recorded); run `softlabels "
            f"repair {place.root}`, which withdraws them, and then the same command again"
        )


def _folders(shards: Sequence[Commit] | Sequence[ShardRecord]) -> set[str]:
    return {s.name.rpartition("/")[0] for s in shards}


def clear_in(place: Place) -> None:
    """Remove what builders held, once the manifest is there; of several that do so each finds less."""
    place.remove(*[e.name for e in everything(place, HELD) if is_ours(e.name)])


def collected(
    place: Place, plan: Plan, renew: Callable[[], None], *, several: Several = in_threads
) -> tuple[list[Commit], dict[str, int] | None]:
    """All records, in order, and the bytes of each column.

    Args:
        renew: shows that this builder lives.
        several: reads leases, some at a time, and gives them in order.
    """
    commits: list[Commit] = []
    columns, known = Counter[str](), has_columns(plan.identity)
    first = plan.identity.encoding.dictionary_shards or 0
    read = partial(_lease_records, place, plan)
    for found, counted in several(read, leases_of(len(plan.shards), first).all):
        renew()
        commits += found
        columns.update(counted or {})
    return commits, dict(columns) if known else None


def _lease_records(
    place: Place, plan: Plan, shards: range
) -> tuple[list[Commit], dict[str, int] | None]:
    """Of one lease: from the one file that has all of them, or else one by one."""
    name = done_name(shards.start)
    planned = plan.shards[shards.start : shards.stop]
    try:
        page = LeaseRecords.of(place.read(name, limit=RECORD_LIMIT)[0])
    except FileNotFoundError:
        page = None
    if page is None:
        commits = [read_commit(place, plan, s) for s in planned]
        if not has_columns(plan.identity):
            return commits, None
        columns = Counter[str]()
        for shard in planned:
            columns.update(column_bytes(read_shard(place, shard)))
        return commits, dict(columns)
    if len(page.records) != len(planned):
        raise IntegrityError(
            f"{place.root / name}: {len(page.records)} records of {len(planned)} shards; remove it, and run the same "
            "command again"
        )
    where = place.root / name
    pairs = zip(page.records, planned, strict=True)
    return [parsed(data.encode(), plan, s, where) for data, s in pairs], page.column_bytes
