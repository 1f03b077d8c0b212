"""Frozen config dataclasses from flags, TOML or Python: one reader for builder and trainer."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from softlabels.errors import ConfigError

__all__ = ["Group", "check_at_least", "from_sources"]

C = TypeVar("C")


@dataclass(frozen=True)
class Group:
    """Marks a config's field (`Annotated[T, Group("Loss")]`): the heading under which `--help` shows its flag."""

    heading: str


def from_sources(
    cls: type[C], toml: Path | None, flags: Mapping[str, Any], *, required: Sequence[str]
) -> C:
    """Flags over TOML over defaults; a flag that is None or empty was not given.

    Raises:
        ConfigError: unreadable TOML, an unknown key, a wrong type, a missing field.
    """
    values: dict[str, Any] = {}
    known = list(cls.__dataclass_fields__)  # type: ignore[attr-defined]
    if toml is not None:
        try:
            values = tomllib.loads(toml.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
            raise ConfigError(f"{toml}: {e}") from e
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(f"{toml}: unknown key {unknown[0]!r}; known: {', '.join(known)}")
    values |= {k: v for k, v in flags.items() if v is not None and v != ()}
    for name in required:
        if name not in values:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is missing (or {name!r} in the config file)")
    try:
        return msgspec.convert(values, cls)
    except msgspec.ValidationError as e:
        if isinstance(e.__cause__, ConfigError):  # from __post_init__: it names the flag
            raise e.__cause__ from None
        raise ConfigError(f"{toml or 'config'}: {e}") from e


def check_at_least(config: object, **lowest: int) -> None:
    """Refuse whole numbers below their lowest; None passes.

    Raises:
        ConfigError: names the flag.
    """
    for name, low in lowest.items():
        value = getattr(config, name)
        if value is not None and value < low:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected at least {low}")
