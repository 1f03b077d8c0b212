"""Functions of Python that mirror a command: one keyword argument for each field of the command's config.

A command and its function say the same once: the fields of a frozen dataclass are both, and the string under a field is
the flag's help and the argument's description. What only the function has (where to write, who receives the progress) a
class adds that derives from the config. It is never made: it is the function's signature, for people and type checkers.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import PurePath
from typing import Any, ParamSpec, TypeVar, get_origin, get_type_hints

from softlabels.core.progress import Reporter
from softlabels.core.settings import field_help, from_sources

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Reported:
    """What every such function takes."""

    progress: Reporter | None = None
    """Receives stages, advances and notices; default nobody."""


def keywords(
    arguments: Callable[P, object], config: type[Any]
) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Make a function of keyword arguments from one of a config.

    Args:
        arguments: the dataclass whose fields are the keyword arguments; derives from `config`.
        config: made of those that are its fields, and checked as if they were flags: a path may stand for its text, a
            list for a tuple, and one value for a tuple of one. The decorated function gets it, and the others by name.
    """
    hints = get_type_hints(arguments)
    settings = {f.name for f in fields(config)}
    signature = inspect.signature(arguments)
    parameters = [p.replace(annotation=hints[n]) for n, p in signature.parameters.items()]

    def decorate(function: Callable[..., R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            given = {n: _plain(v, hints[n]) for n, v in bound.arguments.items() if n in settings}
            bound.apply_defaults()
            others = {n: v for n, v in bound.arguments.items() if n not in settings}
            return function(from_sources(config, None, given), **others)

        returned = inspect.signature(function).return_annotation
        call.__signature__ = inspect.Signature(parameters, return_annotation=returned)  # type: ignore[attr-defined]
        call.__doc__ = _documented(function.__doc__ or "", arguments)
        return call

    return decorate


def _plain(value: Any, hint: Any) -> Any:
    """A value as a file of TOML would give it."""
    if isinstance(value, list | tuple):
        return tuple(_plain(v, None) for v in value)
    value = str(value) if isinstance(value, PurePath) else value
    return (value,) if get_origin(hint) is tuple and value is not None else value


def _documented(text: str, arguments: Any) -> str:
    """A docstring with the arguments in it, before what is returned and raised."""
    listed = "".join(f"\n    {name}: {help}" for name, help in field_help(arguments).items())
    before, *after = re.split(r"\n\n(?=Returns:|Raises:)", inspect.cleandoc(text), maxsplit=1)
    return "\n\n".join([before, f"Args:{listed}", *after])
