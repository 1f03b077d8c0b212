"""Other tools' files of teacher log-probabilities: reading them into a store, and writing them from one.

What all of them lack is the tail at any temperature but 1, so an imported store has the grid {1}. At T = 1 the tail is
what true log-probabilities leave of 1. To add a kind to import: a file here, with a function `Read`, and a line in
`IMPORTS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from softlabels.core.registry import Registry, name_of

EXPORTS = ("axolotl", "topk", "llama-kld")


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignRow:
    """One sequence as another tool kept it."""

    where: str
    """File and row, for messages."""
    input_ids: npt.NDArray[np.int32]
    """`[S]`."""
    label_mask: npt.NDArray[np.bool_]
    """`[S]`: position t has a target, and predicts token t + 1."""
    ids: npt.NDArray[np.int64]
    """`[N, K]`: of the true entries of `label_mask`."""
    logp: npt.NDArray[np.float32]
    """`[N, K]`: natural log-probabilities at T = 1."""
    label_logp: npt.NDArray[np.float32] | None = None
    """`[N]`: that of the label, kept or not; None: no row of the kind says."""


class Read(Protocol):
    """What reads a kind of file."""

    def __call__(self, path: Path) -> Iterator[ForeignRow]:
        """All rows, in the same order each time.

        Raises:
            CorpusError: begins with file and row.
        """


IMPORTS: Registry[Read] = Registry(
    "softlabels.imports",
    {
        "axolotl": "softlabels.interchange.axolotl:read",
        "distillkit": "softlabels.interchange.distillkit:read",
        "arrays": "softlabels.interchange.arrays:read",
        "llama-kld": "softlabels.interchange.llama_kld:read",
    },
    flag="KIND",
)


def rows_of_kind(spec: str, path: Path) -> Iterator[ForeignRow]:
    """All rows of a file, by the kind `NAME`, or `NAME?parameter=value`.

    Raises:
        ConfigError: no such kind, or parameter of it.
        CorpusError: begins with file and row.
    """
    name, parameters = name_of(spec)
    found: Iterator[ForeignRow] = (
        IMPORTS.make(spec, path=path) if parameters else IMPORTS.load(name)(path)
    )
    return found
