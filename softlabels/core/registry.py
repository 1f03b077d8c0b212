"""Named, lazily imported components.

A registry maps a short name to `module:attribute`. Ours are listed in code, so a checkout works
uninstalled; other packages add theirs as entry points of the same group. Nothing is imported until
it is asked for, which keeps `import softlabels` light, and nothing a *store* says is ever imported:
stores name components, they do not name modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path, PurePath
from typing import Generic, TypeVar, cast

from softlabels.errors import ConfigError

__all__ = ["Registry", "split_spec", "without_folder"]

T = TypeVar("T")


class Registry(Generic[T]):
    """The components of one entry-point group.

    Args:
        group: entry-point group, e.g. `softlabels.teachers`.
        builtin: name to `module:attribute`, for the components that ship with the project.
    """

    def __init__(self, group: str, builtin: Mapping[str, str]) -> None:
        self.group = group
        self._builtin = dict(builtin)
        self._found: dict[str, str] | None = None

    def _targets(self) -> dict[str, str]:
        """All components; what is installed is looked up once, for it takes longer than to open a store."""
        if self._found is None:
            self._found = self._look()
        return self._found

    def _look(self) -> dict[str, str]:
        others = {p.name: p.value for p in entry_points(group=self.group)}
        clash = sorted(n for n in others if n in self._builtin and others[n] != self._builtin[n])
        if clash:
            raise ConfigError(
                f"{self.group}: an installed package redefines the built-in {clash[0]!r} "
                f"as {others[clash[0]]!r}; uninstall it or have it choose another name"
            )
        return others | self._builtin

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted(self._targets())

    def __contains__(self, name: str) -> bool:
        """Whether anything has that name; for the built-in ones nothing is looked up."""
        return name in self._builtin or name in self._targets()

    def load(self, name: str) -> T:
        """Import and return one component.

        Raises:
            ConfigError: nothing has that name.
        """
        target = self._builtin.get(name) or self._targets().get(name)
        if target is None:
            known = ", ".join(self.names())
            raise ConfigError(f"{self.group}: nothing is called {name!r}; known: {known}")
        module, _, attribute = target.partition(":")
        return cast(T, getattr(import_module(module), attribute))


def split_spec(spec: str, *, flag: str, example: str = "hf:path/to/model") -> tuple[str, str]:
    """Split `name:argument`.

    Raises:
        ConfigError: there is no colon, or one side is empty.
    """
    name, colon, argument = spec.partition(":")
    if not (name and colon and argument):
        if flag == "--student" and spec.endswith(".json"):
            example = f"hf-config:{spec}"
        elif spec and Path(spec).exists():
            example = f"hf:{spec}"
        raise ConfigError(f"{flag} {spec!r}: expected NAME:ARGUMENT, e.g. {example}")
    return name, argument


def without_folder(spec: str) -> str:
    """`text:/home/me/books/*.txt` as `text:*.txt`: what a store records.

    Where files lay is nobody else's business, and must not make two equal stores differ.
    """
    name, colon, argument = spec.partition(":")
    return name + colon + PurePath(argument).name
