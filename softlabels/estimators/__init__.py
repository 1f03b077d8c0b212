"""Selection rules: which ids of a position are kept, and what their values mean.

An estimator is a small frozen dataclass. It sees one chunk of logits, on the teacher's device, and
never the rest. To add one: one file here, one line in `ESTIMATORS`, one file in tests/estimators.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from softlabels.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from softlabels.estimators.entropy import Whole

__all__ = ["ESTIMATORS", "Estimator", "Selection", "make_estimator"]


class Selection(NamedTuple):
    """What is kept of n positions, on the device of the logits."""

    ids: Tensor
    """`[n, K] int64`, unique in each row except where `logp` is `-inf`."""
    logp: Tensor
    """`[n, K] float32`, nats: log-probabilities at T=1, or log weights of a sample; `-inf`: not kept."""
    log_odds: Tensor
    """`[n, G] float32`: the tail's log-odds at each temperature of the grid."""
    log_norm: Tensor
    """`[n] float32`: log-sum-exp of the logits at `reference`."""
    reference: float
    """The temperature that `logp` and `log_norm` are at."""
    whole: Whole | None = None
    """Of the whole distribution at T=1, if `gives_whole` says so."""


class Estimator(Protocol):
    """A selection rule and its parameters."""

    name: ClassVar[str]
    k: int
    """Ids kept at a position, at most."""
    temperatures: tuple[float, ...]

    @property
    def gives_whole(self) -> bool:
        """Whether selections come with `whole`; an estimator without this attribute gives none, and it is computed."""

    @property
    def uniforms(self) -> int:
        """How many uniform numbers `select` takes for each position; 0: it is deterministic."""

    def check_vocab(self, vocab_size: int) -> None:
        """Raise `ConfigError` if the rule is impossible with V ids."""

    def select(self, logits: Tensor, uniforms: Tensor | None) -> Selection:
        """Select from `logits [n, V] float32`, all finite, which may be overwritten.

        `uniforms` is `[n, self.uniforms] float64` in [0, 1), or None if there are none.
        """


ESTIMATORS: Registry[type[Any]] = Registry(
    "softlabels.estimators",
    {
        "topk": "softlabels.estimators.topk:TopK",
        "topp": "softlabels.estimators.topp:TopP",
        "sampled": "softlabels.estimators.sampled:Sampled",
        "rs": "softlabels.estimators.rs:RandomSampling",
        "dense": "softlabels.estimators.dense:Dense",
    },
)


def make_estimator(name: str, parameters: Mapping[str, Any]) -> Estimator:
    """Build a registered estimator.

    Raises:
        ConfigError: unknown name, or impossible parameters.
    """
    estimator: Estimator = ESTIMATORS.load(name)(**parameters)
    return estimator
