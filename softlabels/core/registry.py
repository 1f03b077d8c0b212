"""Named, lazily imported components.

A registry maps a short name to `module:attribute`. Ours are listed in code, so a checkout works
uninstalled; other packages add theirs as entry points of the same group. Nothing is imported until
it is asked for, which keeps `import softlabels` light, and nothing a *store* says is ever imported:
stores name components, they do not name modules.

A component may have parameters of its own, which are those of the callable that makes it. They are written after its
name, as in `NAME?step=0.5&deep=true`, and have the types and the defaults of the callable's signature.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path, PurePath
from typing import Any, Generic, TypeVar, cast
from urllib.parse import parse_qsl, quote, urlencode

import msgspec

from softlabels.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """The components of one entry-point group.

    Args:
        group: entry-point group, e.g. `softlabels.teachers`.
        builtin: name to `module:attribute`, or to a module, for the components that ship with the project.
        flag: that names a component on the command line, for messages.
    """

    def __init__(self, group: str, builtin: Mapping[str, str], *, flag: str = "") -> None:
        self.group = group
        self.flag = flag
        self.builtin = dict(builtin)
        self._found: dict[str, EntryPoint] | None = None

    def _others(self) -> dict[str, EntryPoint]:
        """What is installed besides; it is looked up once, for that takes longer than to open a store."""
        if self._found is None:
            self._found = self._look()
        return self._found

    def _look(self) -> dict[str, EntryPoint]:
        others = {p.name: p for p in entry_points(group=self.group)}
        ours = [name for name in sorted(others) if name in self.builtin]
        for name in ours:
            if (point := others.pop(name)).value != self.builtin[name]:
                raise ConfigError(
                    f"{self.group}: an installed package redefines the built-in {name!r} "
                    f"as {point.value!r}; uninstall it or have it choose another name"
                )
        return others

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted({*self.builtin, *self._others()})

    def __contains__(self, name: str) -> bool:
        """Whether anything has that name; for the built-in ones nothing is looked up."""
        return name in self.builtin or name in self._others()

    def package(self, name: str) -> str | None:
        """The package that a component comes from; None: it is one of ours, or none that is installed."""
        point = None if name in self.builtin else self._others().get(name)
        return None if point is None or point.dist is None else point.dist.name

    def load(self, name: str) -> T:
        """Import a component; `ConfigError` if nothing has that name, or another package's cannot be imported."""
        if name in self.builtin:
            module, _, attribute = self.builtin[name].partition(":")
            found = import_module(module)
            return cast(T, getattr(found, attribute) if attribute else found)
        if (point := self._others().get(name)) is None:
            known = ", ".join(self.names())
            raise ConfigError(f"{self.group}: nothing is called {name!r}; known: {known}")
        try:
            return cast(T, point.load())
        except Exception as e:  # another package's program: it may raise anything
            raise ConfigError(
                f"{self.group}: {name!r} of the package {self.package(name)} cannot be imported from {point.value} "
                f"({type(e).__name__}: {e}); mend or uninstall that package"
            ) from e

    # -- components with parameters ----------------------------------------------------------------

    def make(self, spec: str, **given: Any) -> Any:
        """Call the component `NAME?parameter=value&…` with its parameters.

        Args:
            spec: the component and its own parameters.
            **given: what flags say, under the parameters' names; None: nothing.

        Raises:
            ConfigError: an unknown name, a parameter that it has not, that is missing or said twice, or of another
                type.
        """
        name, _ = name_of(spec)
        return cast(Any, self.load(name))(**self._arguments(spec, given))

    def spelled(self, spec: str, **given: Any) -> str:
        """The one spelling of a spec: its own parameters in the signature's order, defaults and all.

        Parameters that flags can say are left out.

        Raises:
            ConfigError: as of `make`.
        """
        name, _ = name_of(spec)
        values = self._arguments(spec, given)
        own = {}
        for parameter, p in self._signature(name).items():
            value = values.get(parameter, p.default)
            if parameter not in given and value is not None:
                text = str(msgspec.convert(value, type=p.annotation))
                own[parameter] = text.lower() if isinstance(value, bool) else text
        return name if not own else f"{name}?{urlencode(own, quote_via=quote, safe='/,:')}"

    def _signature(self, name: str) -> dict[str, inspect.Parameter]:
        return _parameters(cast(Any, self.load(name)))

    def _arguments(self, spec: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """What is said of a component's parameters, by flags or in its spec."""
        name, written = name_of(spec)
        signature = self._signature(name)
        values = {n: v for n, v in given.items() if v is not None}
        for parameter in values.keys() - signature.keys():
            having = [n for n in self.builtin if parameter in self._signature(n)]
            raise ConfigError(
                f"{_flag(parameter)} {values[parameter]}: belongs to {self.flag} {' or '.join(having)}, not to {name}"
            )
        own = [n for n in signature if n not in given]
        for parameter, text in written:
            if parameter not in signature:
                raise ConfigError(
                    f"{self.flag} {spec}: {name} has no parameter {parameter!r}; it has {', '.join(own) or 'none'}"
                )
            if parameter in given or parameter in values:
                how = f"say {_flag(parameter)}" if parameter in given else "say it once"
                raise ConfigError(f"{self.flag} {spec}: parameter {parameter}: {how}")
            try:
                hint = signature[parameter].annotation
                values[parameter] = msgspec.convert(text, type=hint, strict=False)
            except (msgspec.ValidationError, TypeError) as e:
                raise ConfigError(f"{self.flag} {spec}: parameter {parameter}: {e}") from e
        for parameter, p in signature.items():
            if parameter not in values and p.default is inspect.Parameter.empty:
                way = _flag(parameter) if parameter in given else f"{name}?{parameter}=VALUE"
                raise ConfigError(f"{way} is missing: {self.flag} {name} needs it")
        return values


@lru_cache(
    maxsize=256
)  # every shard that is decoded makes its codec, and this takes longer than all else of that
def _parameters(component: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Those that have names."""
    found = inspect.signature(component, eval_str=True).parameters
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {n: p for n, p in found.items() if p.kind in named}


def _flag(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}"


def name_of(spec: str) -> tuple[str, list[tuple[str, str]]]:
    """Split `NAME?parameter=value&parameter=value`."""
    name, _, query = spec.partition("?")
    return name, parse_qsl(query, keep_blank_values=True)


def split_spec(spec: str, *, flag: str, example: str = "hf:path/to/model") -> tuple[str, str]:
    """Split `name:argument`; `ConfigError` if there is no colon, or one side is empty."""
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
