"""The name and version under which a maker signs a store, so that an older one of the same maker can be told."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from softlabels.core.records import Record
from softlabels.errors import ConfigError

NAME = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}"
VERSION = r"(0|[1-9]\d{0,17})(\.(0|[1-9]\d{0,17})){0,7}"


class Release(Record, frozen=True, kw_only=True):
    """What a maker calls a store, and which state of it this is."""

    name: Annotated[str, msgspec.Meta(pattern=rf"^{NAME}$(?!\n)", max_length=200)]
    version: Annotated[str, msgspec.Meta(pattern=rf"^{VERSION}$(?!\n)", max_length=160)]
    """Whole numbers with points between them, compared number by number: 2 and 2.0 are the same, 2.10 is after 2.9."""

    @property
    def order(self) -> tuple[int, ...]:
        """What versions of one name are compared by."""
        numbers = [int(n) for n in self.version.split(".")]
        while len(numbers) > 1 and not numbers[-1]:
            numbers.pop()
        return tuple(numbers)

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def parse_release(text: str, *, versioned: bool) -> tuple[str, Release | None]:
    """`NAME@VERSION`, or `NAME` unless it must be `versioned`: the name, and both if there is a version.

    Raises:
        ConfigError: not of that form.
    """
    name, at, version = text.partition("@")
    fits = re.fullmatch(NAME, name) and (re.fullmatch(VERSION, version) if at else not versioned)
    if not fits:
        form = "NAME@VERSION" if versioned else "NAME or NAME@VERSION"
        raise ConfigError(
            f"--release {text}: expected {form}, the version being whole numbers with points between them, e.g. "
            "maker/austen@1.2"
        )
    return name, Release(name=name, version=version) if at else None
