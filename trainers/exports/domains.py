"""What an export must know of a kind of student: its inputs, its output, and how to score it on rows of a store.

`trainers/domains/` has the kinds. B examples of at most S tokens (or whatever the
inputs' axes are), N places whose output counts, V classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import nn

from softlabels.domains import DOMAINS as FORMATS
from softlabels.errors import ConfigError
from trainers.domains import DOMAINS, Domain

if TYPE_CHECKING:
    from torch import Tensor

    from softlabels.store.reader import Store

Arrays = Mapping[str, npt.NDArray[Any]]
"""A model's inputs by name, with a batch axis in front."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One input of a real row, alone: no batch axis, no padding."""

    inputs: Arrays
    labels: npt.NDArray[np.int64]
    """`[M]`: the truth, where it is known."""
    labelled: npt.NDArray[np.int64]
    """`[M]`: which of the example's N outputs each label belongs to."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Laid:
    """B examples side by side."""

    inputs: Arrays
    places: npt.NDArray[np.int64]
    """`[N]`: where the examples' outputs lie in the model's output seen as `[-1, V]`, example by example."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Of one kind of model."""

    libraries: tuple[str, ...]
    """Beside PyTorch, those whose versions matter."""
    needs: str
    """What to install to load the weights."""
    code: str
    """Python from `inputs`, a dict of arrays, to `logits`, with imports; PATH is the folder."""
    sources: tuple[Path, ...] = ()
    """Python files that `code` imports, which lie beside the weights."""


def of_transformers(domain: str) -> Origin:
    """A model that transformers loads for a domain."""
    return Origin(
        libraries=("transformers",),
        needs="torch transformers",
        code=(
            "import torch, transformers\n"
            f'model = transformers.{FORMATS.load(domain).transformers}.from_pretrained("PATH").eval()\n'
            "logits = model(**{k: torch.from_numpy(v) for k, v in inputs.items()}).logits.detach().numpy()\n"
        ),
    )


class Wrapped(nn.Module):
    """A model as a module whose `forward` leads from the inputs, in order and by name, to float32 logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


class Exported(Domain):
    """A domain whose students can be exported."""

    inputs: tuple[str, ...]
    """Names of the model's inputs, in order. The one output is `logits`."""
    axes: Mapping[str, Mapping[int, str]]
    """Of each input: which axes may have any length, and what they are called."""
    usage: str
    """What a caller must know of the inputs, for the model card."""
    unit: str
    """What a throughput counts, e.g. `tokens`."""
    module: type[Wrapped]
    """What is exported, made of a model."""

    @abstractmethod
    def origin(self, folder: Path) -> Origin:
        """What the model in a folder is made with."""

    def examples(self, store: Store, rows: Sequence[int]) -> list[Example]:
        """Real inputs: what rows of a store hold."""
        return [example for r in rows for example in self.of_row(store.row(r).row)]

    @abstractmethod
    def of_row(self, row: Any) -> list[Example]:
        """What a row of the domain's stores holds."""

    @abstractmethod
    def lay(self, examples: Sequence[Example], *, left: bool = False) -> Laid:
        """Pad to one rectangle, on the right or, where the domain has it, on the left."""

    def shortest(self, example: Example) -> Example:
        """The smallest input that the model must take, cut from an example, if there is a smaller one."""
        return example

    @abstractmethod
    def reference(self, model: Any, example: Example) -> Tensor:
        """`[N, V]` logits of an example, alone and unpadded, from the model itself."""

    def describe(self, store: Store, folder: Path) -> dict[str, Any]:
        """What the record says of how inputs are made, beyond configuration and tokenizer; also as files."""
        return {}

    @abstractmethod
    def preparation(self, folder: Path, details: Mapping[str, Any]) -> str:
        """Python that makes `inputs` from something real; PATH is the folder.

        Args:
            folder: of the export.
            details: of its record, with what `describe` said.
        """

    def size(self, example: Example) -> int:
        """How many `unit` an example has: one, if it has one output."""
        return 1


def exported(name: str) -> Exported:
    """The domain of a store (`manifest.identity.domain`).

    Raises:
        ConfigError: its students cannot be exported.
    """
    domain = DOMAINS.load(name) if name in DOMAINS else None
    if not isinstance(domain, Exported):
        can = [n for n in DOMAINS.names() if isinstance(DOMAINS.load(n), Exported)]
        raise ConfigError(
            f"students of domain {name!r} cannot be exported; those of {', '.join(can)} can"
        )
    return domain


def spread(rows: int, wanted: int) -> list[int]:
    """`wanted` row numbers evenly over all `rows`, or all of them."""
    n = min(rows, wanted)
    return [i * rows // n for i in range(n)]
