"""Where the files of a store are read from: a folder of this machine, or an address (`remote/`)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from softlabels.core.records import check_file, read_record_file
from softlabels.errors import IntegrityError, UnreadableError


@dataclass(frozen=True)
class Address:
    """The URL of a store, or of a file in it; joined like a path."""

    url: str

    def __truediv__(self, name: str) -> Address:
        return Address(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url


class Recorded(NamedTuple):
    """A file that the manifest vouches for."""

    name: str
    sha256: str
    bytes: int


class StoreFiles(Protocol):
    """The files of one store, read only."""

    @property
    def root(self) -> Path | Address:
        """Where they are; `root / name` is what messages call a file."""

    def record(self, name: str) -> bytes:
        """A small file that nothing vouches for yet.

        Raises:
            FileNotFoundError, NotADirectoryError: there is none (callers say what that means).
            FormatError: too large to be a record.
        """

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    def checked(self, file: Recorded) -> bytes:
        """A file whose size and sha256 were found equal to the record's.

        Raises:
            IntegrityError: missing, torn or altered.
        """

    def check_present(self, file: Recorded) -> None:
        """Refuse a file that is missing or torn, where that can be told without a request for each.

        Raises:
            IntegrityError: as `checked`.
        """

    def ahead(self, wanted: Iterable[Recorded]) -> None:
        """These, and no others, are read next: fetch them meanwhile, if that takes time."""

    def give_up(self) -> None:
        """Wait for nothing: reads that need a network fail, those of now and, until `go_on`, those to come."""

    def go_on(self) -> None:
        """Wait again, after `give_up`."""

    def names(self) -> Iterable[str] | None:
        """The names of all files, in any order; None: they cannot be listed there."""


@dataclass(frozen=True)
class LocalFiles:
    """The files of a folder."""

    root: Path

    def record(self, name: str) -> bytes:
        """A small file that nothing vouches for yet."""
        return read_record_file(self.root / name)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.root / name).exists()

    def checked(self, file: Recorded) -> bytes:
        """A file whose size and sha256 were found equal to the record's."""
        return check_file(self.root / file.name, sha256=file.sha256, size=file.bytes)

    def check_present(self, file: Recorded) -> None:
        """Refuse a file that is missing, or not as long as recorded."""
        path = self.root / file.name
        try:
            size = path.stat().st_size
        except (FileNotFoundError, NotADirectoryError) as e:
            raise IntegrityError(
                f"{path}: missing; copy it again from the store's source (sha256 {file.sha256[:12]}…)"
            ) from e
        except OSError as e:
            raise UnreadableError(f"{path}: cannot be looked at ({e.strerror}); try again") from e
        if size != file.bytes:
            raise IntegrityError(
                f"{path}: {size} bytes, the manifest says {file.bytes}: torn; copy it again from its source"
            )

    def ahead(self, wanted: Iterable[Recorded]) -> None:
        """Nothing: they are here."""

    def give_up(self) -> None:
        """Nothing: no read waits."""

    def go_on(self) -> None:
        """Nothing: no read waits."""

    def names(self) -> Iterable[str] | None:
        """The names of all files, as they are listed: there may be millions."""
        return _names(self.root, "")


def _names(folder: Path, before: str) -> Iterator[str]:
    with os.scandir(folder) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                yield from _names(folder / entry.name, f"{before}{entry.name}/")
            elif entry.is_symlink():  # to itself, or to nothing: no file
                if Path(entry.path).is_file():
                    yield before + entry.name
            elif entry.is_file():
                yield before + entry.name
