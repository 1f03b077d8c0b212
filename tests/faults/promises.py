"""Where the product says that something is safe: each such call leaves a mark in the trace."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.faults.trace import mark

__all__ = ["PROMISES", "note_promises"]

PROMISES = {
    "softlabels.core.durable:_linked": "path",
    "softlabels.core.durable:replace": "path",
    "softlabels.core.folders:publish_folder": "final",
}
"""Functions that return when a file or folder is durable, and the argument that names it."""


def note_promises() -> None:
    """Have them leave their marks, in this process."""
    for name, argument in PROMISES.items():
        module, _, attribute = name.partition(":")
        real = getattr(importlib.import_module(module), attribute)
        marking = _marking(real, argument)
        for other in _our_modules():  # whoever has imported it by name
            if vars(other).get(attribute) is real:
                setattr(other, attribute, marking)


def _our_modules() -> list[ModuleType]:
    return [m for n, m in sys.modules.items() if n.partition(".")[0] in ("softlabels", "trainers")]


def _marking(real: Callable[..., Any], argument: str) -> Callable[..., Any]:
    signature = inspect.signature(real)

    @functools.wraps(real)
    def marking(*given: Any, **more: Any) -> Any:
        result = real(*given, **more)
        if result is not False:  # somebody else's file was there
            mark(Path(signature.bind(*given, **more).arguments[argument]))
        return result

    return marking
