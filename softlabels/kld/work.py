"""What is finished of a comparison, on disk: `softlabels kld --work DIR` goes on there after it was stopped.

DIR/KEY is of one candidate on one reference: KEY is a digest of all that decides its numbers. In it are parts, each
FIRST-END-SHA256.npz: what is known of the positions of rows FIRST to END - 1. A part appears whole (`durable.publish`)
and is never changed; its name tells whether it still is what was written. Parts end where a batch does, so the same
command goes on with the very batches that it would have had, and comes to the very same figures.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.core.durable import alone, explained, make_folder, publish, sweep
from softlabels.core.npz import read_npz
from softlabels.core.records import canonical, read_file
from softlabels.errors import IntegrityError
from softlabels.kld.positions import Answered, Said, joined

SECONDS = 20.0
"""Of a pass, after which what was found is written: a kill costs so much."""
_PART = re.compile(r"([0-9]{8})-([0-9]{8})-([0-9a-f]{64})\.npz")
_SAID, _ANSWERED = ([f.name for f in fields(kind)] for kind in (Said, Answered))
_BEYOND = "beyond"


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Some rows of a reference through a candidate."""

    end: int
    """The row after its last."""
    said: Said | None
    """None: none of its positions has a soft target."""
    answered: Answered | None
    beyond: int


class Work:
    """What is finished of one candidate on one reference."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder = folder / hashlib.sha256(canonical(facts)).hexdigest()[:32]
        self.parts: list[Part] = []

    @contextmanager
    def opened(self) -> Iterator[Work]:
        """Read what is there, and let no other process work beside.

        Raises:
            StoreError: another does, or the folder cannot be read or made.
            IntegrityError: a part is not what was written.
        """
        with explained(self.folder):
            make_folder(self.folder)
        with alone(self.folder, taken="another `softlabels kld` works here; wait for it to end"):
            with explained(self.folder):
                sweep(self.folder)
                names = sorted(p.name for p in self.folder.iterdir())
            for match in filter(None, map(_PART.fullmatch, names)):
                if int(match[1]) == self.end:
                    self.parts.append(_read(self.folder / match[0], int(match[2]), match[3]))
            yield self

    @property
    def end(self) -> int:
        """How many rows are finished."""
        return self.parts[-1].end if self.parts else 0

    def add(self, part: Part) -> None:
        """Write the rows after those that are finished.

        Raises:
            StoreError: the disk is full, …
        """
        arrays: dict[str, npt.NDArray[Any]] = {_BEYOND: np.array(part.beyond)}
        if part.said is not None and part.answered is not None:
            arrays |= {f"said_{n}": getattr(part.said, n) for n in _SAID}
            arrays |= {f"answered_{n}": getattr(part.answered, n) for n in _ANSWERED}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        data = buffer.getvalue()
        name = f"{self.end:08d}-{part.end:08d}-{hashlib.sha256(data).hexdigest()}.npz"
        publish(self.folder / name, data)
        self.parts.append(part)


class Pending:
    """What was found since the last part; written, where there is `work`, every `SECONDS`."""

    def __init__(self, work: Work | None) -> None:
        self._work = work
        self._found: list[tuple[Said, Answered]] = []
        self._begun = time.monotonic()
        self._beyond = 0

    def finished(
        self, found: Sequence[tuple[Said, Answered]], *, end: int, beyond: int, last: bool
    ) -> None:
        """A batch is done, whose last row is before `end`; `beyond` is of all of this run."""
        self._found += found
        if self._work is None:
            return
        if time.monotonic() - self._begun < SECONDS and not last:
            return
        said, answered = joined_pairs(self._found)
        beyond, self._beyond = beyond - self._beyond, beyond
        self._work.add(Part(end=end, said=said, answered=answered, beyond=beyond))
        self._found, self._begun = [], time.monotonic()

    def all(self) -> list[tuple[Said, Answered]]:
        """What is known, from the first row on."""
        parts = [] if self._work is None else self._work.parts
        kept = [
            (p.said, p.answered) for p in parts if p.said is not None and p.answered is not None
        ]
        return kept + self._found


def joined_pairs(
    found: Sequence[tuple[Said, Answered]],
) -> tuple[Said, Answered] | tuple[None, None]:
    """One after the other; None of nothing."""
    if not found:
        return None, None
    return joined([said for said, _ in found]), joined([answered for _, answered in found])


def _read(path: Path, end: int, sha256: str) -> Part:
    with explained(path):
        data = read_file(path)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise IntegrityError(
                f"{path}: is not what was written; remove this file, and its rows are compared again"
            )
        names = [_BEYOND, *(f"said_{n}" for n in _SAID), *(f"answered_{n}" for n in _ANSWERED)]
        arrays = read_npz(path, names)
    said = answered = None
    if len(arrays) > 1:
        said = Said(**{n: arrays[f"said_{n}"] for n in _SAID})
        answered = Answered(**{n: arrays[f"answered_{n}"] for n in _ANSWERED})
    return Part(end=end, said=said, answered=answered, beyond=int(arrays[_BEYOND]))
