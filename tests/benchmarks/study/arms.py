"""What is compared: how a store is built for each arm, or what stands in for one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """A way to teach a student."""

    name: str
    build: tuple[str, ...] = ()
    """Flags of `softlabels build`; none: the arm reads the first arm's store for its rows alone."""
    full: bool = False
    """The teacher's whole distribution, from its hidden states."""
    hard: bool = False
    """The text's own words, and the best of its epochs: the most that can be had without a teacher."""


HARD = Arm("hard", hard=True)
FULL = Arm("full", full=True)
ARMS = (
    HARD,
    FULL,
    Arm("sampled-12", ("--estimator", "sampled", "--k", "12")),
    Arm("sampled-24", ("--estimator", "sampled", "--k", "24")),
    Arm("sampled-48", ("--estimator", "sampled", "--k", "48")),
    Arm("rs-31", ("--estimator", "rs", "--k", "31")),
    Arm("rs-35", ("--estimator", "rs", "--k", "35")),
    Arm("systematic-12", ("--estimator", "systematic", "--mean-k", "12")),
    Arm("systematic-24", ("--estimator", "systematic", "--mean-k", "24")),
    Arm("systematic-35", ("--estimator", "systematic", "--k", "35")),
    Arm("rs-95", ("--estimator", "rs", "--k", "95")),
    Arm("rs-190", ("--estimator", "rs", "--k", "190")),
    Arm("systematic-95", ("--estimator", "systematic", "--k", "95")),
    Arm("topk-12", ("--estimator", "topk", "--k", "12")),
    Arm("topk-50", ("--estimator", "topk", "--k", "50")),
)
