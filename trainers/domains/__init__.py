"""What a trainer must know of each domain: how a model becomes a student of it, and how that student is exported.

A domain is a file here, of the name of its folder in `softlabels/domains/`, with `DOMAIN`. Another package registers
its own as an entry point of the group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from softlabels.core.registry import Registry
from softlabels.domains import BUILT_IN
from softlabels.errors import ConfigError

if TYPE_CHECKING:
    from trainers.data.tasks import Task
    from trainers.students import Student


class Domain(ABC):
    """One domain. If its students can be exported, it is `trainers.exports.domains.Exported`, too."""

    name: ClassVar[str]
    """As a store's identity spells it."""
    students: ClassVar[str] = "hf-config:FILE"
    """Ways to make its students, for messages."""
    stacked: ClassVar[bool] = True
    """Whether its models are one stack of layers, of which `layers-of:PATH` may keep some."""

    @abstractmethod
    def student(self, model: Any, task: Task, *, where: str, source: Path | None = None) -> Student:
        """A student of a model of transformers.

        Raises:
            ConfigError: it does not end in a head that serves the task; the message begins with `where`.
        """


class SizedDomain(Domain):
    """A domain that has students of any size, for `new:SIZE`."""

    students = "new:SIZE"

    @abstractmethod
    def parameters(self, task: Task, width: int, depth: int) -> int:
        """Of a student, tied ones once; layers, norms and heads as transformers makes them."""

    @abstractmethod
    def config(self, task: Task, width: int, depth: int, transformers: Any) -> Any:
        """The configuration of transformers."""


DOMAINS: Registry[Domain] = Registry(
    "trainers.domains", {n: f"{__name__}.{n.replace('-', '_')}:DOMAIN" for n in BUILT_IN}
)


def sized(name: str, *, where: str) -> SizedDomain:
    """The domain of this name.

    Raises:
        ConfigError: it has no students of any size.
    """
    domain = DOMAINS.load(name)
    if not isinstance(domain, SizedDomain):
        raise ConfigError(
            f"{where}: makes students that read text; for {name} use {domain.students}"
        )
    return domain
