"""Claims: how any number of builders share one plan without knowing of each other.

Before a builder makes a shard it publishes `claims/00007-0.json`, which names its process
(`core/processes.py`) and a random token; of many that try, one creates the file. While it works it renews the
file's time, and when the shard is committed it removes the file. A claim is dead if its process can be looked at from
here and is gone, or if it was not renewed for `EXPIRY` seconds. Generation 1, `claims/00007-1.json`, takes over from
a dead generation 0: again one creates it, and a late taker meets a name that exists. The highest generation is the
claim in force.

Ages are differences of two times that the file system gave, so that no host's clock matters. A time in the future, as
in a store that was copied from where a clock was ahead, says nothing: then it counts for how long the claim was seen
unchanged (`Ages`).

Safety never rests on a claim: shards and records are published by create-if-absent, and what is judged damaged is moved
aside only while it is the very file that was judged, so a claim that was wrongly taken over (a builder that stood
still for longer than `EXPIRY`) costs a shard's work, and nothing else.
The price: one small durable file for each shard, and one listing of the folder for each claim.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import msgspec

from softlabels.core.durable import explained, publish, sweep, temporary_beside
from softlabels.core.inside import inside
from softlabels.core.processes import Process, is_alive, this_process
from softlabels.core.records import canonical
from softlabels.errors import StoreError

CLAIMS = "claims"
EXPIRY = 300.0
"""Seconds without a renewal after which a claim is dead: longer than any one step of the teacher."""
RENEWAL = 5.0
"""Seconds between renewals, at least."""
LOOK = 5.0
"""Seconds between two looks at claims that are watched."""
CROWD = 8
"""Builders that may try to claim one shard at a time: all but one of them then try the next."""
_NAME = re.compile(r"(\d{5,12})-(\d{1,9})\.json")
LIVING: set[str] = set()
"""Tokens of this process's builds. A claim of this process with another token is of one that ended."""


@dataclass(frozen=True, kw_only=True)
class Holder(Process):
    """Who holds a claim."""

    token: str

    @classmethod
    def here(cls) -> Holder:
        """This process, with a new token."""
        return cls(**asdict(this_process()), token=token_hex(8))


@dataclass
class Claim:
    """A shard in this builder's hands; a context manager that releases it."""

    index: int
    """Of the shard."""
    path: Path
    older: list[Path]
    """Claims of the dead that it took over from."""
    content: bytes
    """Of its file, which names the holder."""
    _renewed: float = field(default_factory=time.monotonic)

    def renew(self) -> None:
        """Say that the holder lives; cheap enough for every chunk of logits."""
        if time.monotonic() - self._renewed < RENEWAL:
            return
        self._renewed = time.monotonic()
        with suppress(OSError):  # if it fails for long the claim expires, which is safe
            os.utime(self.path)  # to the file system's present, not the host's

    def in_force(self) -> bool:
        """Whether the shard is still this builder's: one that stood still may have been taken over from.

        Raises:
            StoreError: the claims cannot be read.
        """
        with explained(self.path):
            if _standing(self.path.parent).get(self.index) != int(self.path.stem.split("-")[1]):
                return False
            try:
                return _read(self.path)[0] == self.content
            except FileNotFoundError:
                return False

    def release(self) -> None:
        """Let go of the shard."""
        with suppress(OSError):  # what stays expires, and goes when the store is finished
            if not self.in_force():
                return  # what is there now is another's
            for path in (*self.older, self.path):  # its own last: it is in force until it is gone
                path.unlink(missing_ok=True)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()


class Ages:
    """For how long claims were not renewed, as one sees it who looks again and again."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[float, float]] = {}
        """Claims whose time lies in the future: their time, and since when it is seen by this process's own clock."""

    def left(self, path: Path, renewed: float, now: float) -> float:
        """Seconds for which a claim still counts, if it is not renewed."""
        if renewed <= now:
            self._seen.pop(path, None)
            return EXPIRY - (now - renewed)
        clock = time.monotonic()
        if path not in self._seen or self._seen[path][0] != renewed:
            self._seen[path] = renewed, clock
        return EXPIRY - (clock - self._seen[path][1])

    def watches(self, path: Path) -> bool:
        """Whether nothing but watching a claim says for how long it was not renewed."""
        return path in self._seen


class Claims:
    """One builder's side of the claims of a store."""

    def __init__(self, store: Path) -> None:
        self._folder, self._ages = store / CLAIMS, Ages()
        self._me = Holder.here()
        LIVING.add(self._me.token)

    def take(self, indices: Sequence[int], *, in_order: bool = False) -> Claim | None:
        """Claim one of these shards, if one is free or its holder is dead.

        The first that is free. If there are many builders, who would try it, too, a random one of the first, one for
        each `CROWD` that are claimed, unless these are to be taken in order.
        The caller must then look whether the shard was committed meanwhile.

        Raises:
            StoreError: the file system refuses.
        """
        try:
            standing = _standing(self._folder)
            free = [i for i in indices if i not in standing]
            others = 0 if in_order else (len(indices) - len(free)) // CROWD
            free[: others + 1] = random.sample(free[: others + 1], len(free[: others + 1]))
            for index in free:
                if claim := self._create(index, 0):
                    return claim
            now: float | None = None
            for index in (i for i in indices if i in standing):
                now = _now(self._folder) if now is None else now
                if _is_dead(self._path(index, standing[index]), now, self._ages) and (
                    claim := self._create(index, standing[index] + 1)
                ):
                    return claim
        except StoreError as e:
            if not isinstance(e.__cause__, FileNotFoundError):
                raise
            # Whoever finished the store removed the folder under our hands: nothing is left to claim.
        return None

    def close(self) -> None:
        """Whatever was claimed here and not released is dead from now on.

        Such as a claim whose making failed half way; the process itself may live, and build again.
        """
        LIVING.discard(self._me.token)

    def _path(self, index: int, generation: int) -> Path:
        return self._folder / f"{index:05d}-{generation}.json"

    def _create(self, index: int, generation: int) -> Claim | None:
        path = inside(self._folder.parent, f"{CLAIMS}/{self._path(index, generation).name}")
        content = canonical(self._me)
        if not publish(path, content):
            return None
        older = [self._path(index, g) for g in range(generation)]
        return Claim(index=index, path=path, older=older, content=content)


def _now(folder: Path) -> float:
    """The present, as the file system that holds the claims sees it."""
    probe = temporary_beside(inside(folder.parent, f"{CLAIMS}/now"))
    publish(probe, b"")
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _is_dead(path: Path, now: float, ages: Ages) -> bool:
    try:
        data, renewed = _read(path)
    except FileNotFoundError:
        return False  # released this moment
    if (holder := holder_of(data)) is not None:  # else only its age counts
        if str(holder) == str(this_process()):
            if holder.token not in LIVING:
                return True
        elif is_alive(holder) is False:
            return True
    return ages.left(path, renewed, now) < 0


def _read(path: Path) -> tuple[bytes, float]:
    """What a claim says, and when it was renewed; whatever lies there, there is an end to reading it."""
    # Opening it makes a network file system ask its server.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as f:
        return f.read(4096), os.fstat(f.fileno()).st_mtime


def holder_of(data: bytes) -> Holder | None:
    """Whom the bytes of a claim name; None: nobody, so that only its age counts."""
    try:
        return msgspec.json.decode(data, type=Holder)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _standing(folder: Path) -> dict[int, int]:
    """Shards that are claimed, each with its highest generation."""
    standing: dict[int, int] = {}
    for name in _names(folder):
        if match := _NAME.fullmatch(name):
            index, generation = int(match[1]), int(match[2])
            standing[index] = max(generation, standing.get(index, 0))
    return standing


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A claim in force, as it was seen."""

    index: int
    """Of the shard."""
    holder: Holder | None
    """None: it does not say whose it is."""
    renewed: float
    """When, as the file system says."""
    alive: bool | None
    """Whether its process lives; None: that cannot be told from here."""


def sightings(store: Path) -> list[Sighting]:
    """All claims in force, by shard; nothing is written."""
    folder, found = store / CLAIMS, []
    for index, generation in sorted(_standing(folder).items()):
        try:
            data, renewed = _read(folder / f"{index:05d}-{generation}.json")
        except FileNotFoundError:
            continue  # released this moment
        holder = holder_of(data)
        alive = None if holder is None else is_alive(holder)
        found.append(Sighting(index=index, holder=holder, renewed=renewed, alive=alive))
    return found


def at_work(store: Path, *, unsure: bool = False) -> bool:
    """Whether a builder that lives, or may live, holds a claim on a store.

    Args:
        unsure: what is said of claims whose time lies in the future.

    Raises:
        StoreError: the claims cannot be read.
    """
    ages = Ages()
    return any(unsure or not ages.watches(path) for _, path in _living(store, ages))


def _living(store: Path, ages: Ages) -> Iterator[tuple[int, Path]]:
    """Shards that are claimed by who is not dead, with their claims."""
    folder, now = store / CLAIMS, None
    for index, generation in sorted(_standing(folder).items()):
        path = folder / f"{index:05d}-{generation}.json"
        now = _now(folder) if now is None else now
        if not _is_dead(path, now, ages):
            yield index, path


def refuse_living(store: Path, ages: Ages, notice: Callable[[str], None]) -> None:
    """Refuse to change a store on which builders are at work; claims whose time lies in the future are watched first.

    Args:
        ages: what was seen of the claims before.

    Raises:
        StoreError: names one of them.
    """
    told = False
    while watched := list(_living(store, ages)):
        for index, path in watched:
            with explained(path):
                try:
                    holder = holder_of(_read(path)[0])
                except FileNotFoundError:
                    continue  # released this moment
            who = f"process {holder.pid} of {holder.host}" if holder else "somebody"
            if not ages.watches(path) or (holder is not None and is_alive(holder)):
                raise StoreError(
                    f"{store}: a builder is at work on it ({who} holds shard {index}); let it end, or stop it, and run "
                    f"the same command again (nothing was changed; {path.name} counts until {EXPIRY:.0f} s after its "
                    "last renewal)"
                )
            if not told:
                notice(
                    f"waiting for up to {EXPIRY:.0f} s to see whether {who}, who holds shard {index}, is at work: the "
                    f"time of {path.name} lies in the future"
                )
            told = True
        time.sleep(LOOK)


def is_claim(path: Path) -> bool:
    """Whether a file is a claim: named like one, in a folder of claims, and says who holds it."""
    if path.parent.name != CLAIMS or path.is_symlink() or not _NAME.fullmatch(path.name):
        return False
    try:
        return holder_of(_read(path)[0]) is not None
    except OSError:
        return not path.exists()  # released this moment


def claim_files(store: Path) -> list[Path]:
    """All claims of a store, whoever made them; none where the folder is a link, and so another's."""
    folder = store / CLAIMS
    if folder.is_symlink():
        return []
    return [folder / name for name in sorted(_names(folder)) if _NAME.fullmatch(name)]


def clear_claims(store: Path) -> None:
    """Remove the claims of a store whose shards are all committed.

    A builder that has not noticed yet may put one more there; it comes by here, too, when it does.
    """
    if (store / CLAIMS).is_symlink():
        return
    with suppress(OSError):  # gone already, or a living builder's temporary file is in it
        for path in claim_files(store):
            path.unlink(missing_ok=True)
        sweep(store / CLAIMS)
        (store / CLAIMS).rmdir()


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  Path.iterdir gives paths; names are wanted
    except FileNotFoundError:
        return []
