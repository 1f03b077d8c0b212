"""A bucket in memory, in which who uses it dies at a request of one's choosing."""

from __future__ import annotations

from itertools import count

from softlabels.errors import IntegrityError
from softlabels.format.files import Address
from softlabels.making.place import PAGE, Entry


class Died(BaseException):
    """Nothing more is done."""


class MemoryPlace:
    """A `Place`.

    Args:
        files: of the bucket; several places may share them.
    """

    root = Address("mem://bucket")

    def __init__(self, files: dict[str, tuple[bytes, str]] | None = None) -> None:
        self.files = {} if files is None else files
        self.requests: list[str] = []
        """Verb and name of each."""
        self.dies_at: int | None = None
        """Twice the number of the request that is not made, or of which the answer is lost, if it is odd."""
        self.dies_with: type[BaseException] = Died
        """What is raised then, and at all later requests."""
        self.once = False
        """Later ones are answered."""
        self._versions = count()

    def create(self, name: str, data: bytes) -> str | None:
        self._ask("create", name)
        version = None if name in self.files else self._put(name, data)
        self._answer()
        return version

    def read(self, name: str, *, limit: int) -> tuple[bytes, str]:
        self._ask("read", name)
        if name not in self.files:
            raise FileNotFoundError(name)
        data, version = self.files[name]
        if len(data) > limit:
            raise IntegrityError(f"{name}: {len(data)} bytes, expected at most {limit}")
        self._answer()
        return data, version

    def list(self, folder: str, *, after: str = "") -> list[Entry]:
        self._ask("list", folder)
        begin = f"{folder}/" if folder else ""
        names = sorted(n for n in self.files if n.startswith(begin) and n > after)[:PAGE]
        self._answer()
        return [Entry(n, self.files[n][1], len(self.files[n][0]), 0.0) for n in names]

    def renew(self, name: str, data: bytes, version: str) -> str | None:
        return self.swap(name, data, version)

    def swap(self, name: str, data: bytes, version: str) -> str | None:
        self._ask("swap", name)
        there = self.files.get(name)
        new = None if there is None or there[1] != version else self._put(name, data)
        self._answer()
        return new

    def remove(self, *names: str) -> None:
        for name in names:
            self._ask("remove", name)
            self.files.pop(name, None)
            self._answer()

    def put(self, name: str, data: bytes) -> None:
        """What somebody else does, without conditions."""
        self._put(name, data)

    def _put(self, name: str, data: bytes) -> str:
        version = f"{id(self)}.{next(self._versions)}"
        self.files[name] = (data, version)
        return version

    def _ask(self, verb: str, name: str) -> None:
        self.requests.append(f"{verb} {name}")
        self._meet(answered=False)

    def _answer(self) -> None:
        self._meet(answered=True)

    def _meet(self, *, answered: bool) -> None:
        if self.dies_at is None or self.dies_at % 2 != answered:
            return
        left = len(self.requests) - 1 - self.dies_at // 2
        if left == 0 or (left > 0 and not self.once):
            raise self.dies_with("mem://bucket: out of reach")
