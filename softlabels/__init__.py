"""Run a teacher once, keep its soft targets, train many students.

    store = softlabels.open_store("path/to/store")
    row = store.row(0)
    row.targets.probs(2.0)          # [N, K]: the teacher's probabilities of the kept ids at T=2

Importing this package is cheap: everything heavy is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_LAZY = {
    "BuildConfig": "softlabels.builder.config",
    "build": "softlabels.builder.door",
    "measure": "softlabels.builder.door",
    "open_store": "softlabels.store.reader",
    "scan": "softlabels.store.scan",
    "Store": "softlabels.store.reader",
    "SoftTargets": "softlabels.core.targets",
    "Row": "softlabels.core.rows",
}

if TYPE_CHECKING:
    from softlabels.builder.config import BuildConfig as BuildConfig
    from softlabels.builder.door import build as build
    from softlabels.builder.door import measure as measure
    from softlabels.core.rows import Row as Row
    from softlabels.core.targets import SoftTargets as SoftTargets
    from softlabels.store.reader import Store as Store
    from softlabels.store.reader import open_store as open_store
    from softlabels.store.scan import scan as scan

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
