"""Selection rules: which ids of a position are kept, and what their values mean.

An estimator is a small frozen dataclass. It sees one chunk of logits, on the teacher's device, and
never the rest. To add one: one file here, one line in `ESTIMATORS`, one file in tests/estimators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from softlabels.core.kept import KeptSet
from softlabels.core.registry import Registry, name_of
from softlabels.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from softlabels.estimators.entropy import Whole
    from softlabels.estimators.scan import Sought


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
    """A selection rule and its parameters; inherit from it for the members that have a default here.

    Its fields besides `k` and `temperatures` are parameters of its own: `--estimator NAME?parameter=value`.
    """

    keeps: ClassVar[KeptSet]
    """What the kept ids are. It is checked before a build, and a store carries it where it is not built in."""
    k: int
    """Ids kept at a position, at most."""
    temperatures: tuple[float, ...]
    """The grid, ascending; of a sample one temperature."""

    @property
    def gives_whole(self) -> bool:
        """Whether selections come with `whole`; otherwise it is computed, which is one more pass over the logits."""
        return False

    @property
    def takes_lists(self) -> bool:
        """Whether all it needs are the k likeliest ids at T=1 with their log-probabilities, as a server lists them."""
        return False

    @property
    def uniforms(self) -> int:
        """How many uniform numbers `select` takes for each position; 0: it is deterministic."""
        return 0

    @property
    def counts(self) -> bool:
        """Whether the weights are whole multiples of one number, so that `--values counts` holds them as they are."""
        return False

    @property
    def deals(self) -> bool:
        """Whether `select` takes a `part` (`vocab_parallel.VocabPart`): some ids in each of several processes."""
        return False

    @property
    def sought(self) -> Sought | None:
        """What a first pass is to find, which `select` then takes as `first` (`scan.Scan`); None: it takes none."""
        return None

    def check_vocab(self, vocab_size: int) -> None:
        """Raise `ConfigError` if the rule is impossible with V ids: by default if k is more than these."""
        if self.k > vocab_size:
            raise ConfigError(
                f"--k {self.k}: the teacher's vocabulary has only {vocab_size} ids; give --k {vocab_size} or fewer"
            )

    def select(self, logits: Tensor, uniforms: Tensor | None) -> Selection:
        """Select from `logits [n, V] float32`, all finite, which may be overwritten.

        `uniforms` is `[n, self.uniforms] float64` in [0, 1), or None if there are none.
        """


ESTIMATORS: Registry[Callable[..., Estimator]] = Registry(
    "softlabels.estimators",
    {
        "topk": "softlabels.estimators.topk:TopK",
        "topp": "softlabels.estimators.topp:TopP",
        "sampled": "softlabels.estimators.sampled:Sampled",
        "systematic": "softlabels.estimators.systematic:Systematic",
        "rs": "softlabels.estimators.rs:RandomSampling",
        "dense": "softlabels.estimators.dense:Dense",
    },
    flag="--estimator",
)


def make_estimator(spec: str, parameters: Mapping[str, Any]) -> Estimator:
    """Build a registered estimator, `NAME` or `NAME?parameter=value`, and check what it declares.

    Args:
        spec: the estimator with parameters of its own.
        parameters: what flags say: `k`, `temperatures`, and others; None: nothing.

    Raises:
        ConfigError: unknown name, impossible parameters, or a declaration that is missing or contradicts itself.
    """
    name, _ = name_of(spec)
    estimator: Estimator = ESTIMATORS.make(spec, **parameters)
    keeps = getattr(estimator, "keeps", None)
    if not isinstance(keeps, KeptSet):
        raise ConfigError(
            f"--estimator {name}: declares no `keeps`, a softlabels.estimators.KeptSet, so no reader would know what "
            "its ids and values mean; add it to the estimator"
        )
    keeps.check_grid(name, estimator.temperatures)
    return estimator
