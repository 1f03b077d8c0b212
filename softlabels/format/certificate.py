"""What the record of a measurement says: how far a store's targets are from its teacher's own distributions."""

from __future__ import annotations

from typing import Annotated

import msgspec

from softlabels.core.records import Count, Positive, Record


class Estimate(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A mean over the measured positions."""

    mean: float | None
    """null: infinite."""
    low: float | None = None
    """2.5 % quantile over resampled rows; absent: the mean is infinite, or there is one row only."""
    high: float | None = None
    """97.5 % quantile."""


class LogProbError(Record, frozen=True, kw_only=True):
    """Kept log-probabilities against the teacher's, and against the encoding's promise."""

    values: Count
    """How many were compared: the kept ids (of `sampled`, those that are kept at their own value)."""
    largest: float
    """The largest difference, in nats."""
    within: Annotated[float, msgspec.Meta(ge=0, le=1)]
    """The share of them that are within `relative_error * |v| + absolute_error`, and float32's own rounding."""


class SampleCheck(Record, frozen=True, kw_only=True):
    """Whether a random kept set stands for the teacher: of single positions nothing can be said, of means it can."""

    excess: Estimate
    """Mean over the kept ids, weighted, of the teacher's -log p, less the teacher's entropy, in nats. 0 is expected of
    an unbiased sample; of one of another distribution q, KL(q‖teacher) and the difference of the entropies."""
    squared_error: Estimate
    """Sum over all ids of (weight - p)²: the sample's variance."""


class FidelityAt(Record, frozen=True, kw_only=True, omit_defaults=True):
    """At one temperature of the grid; divergences in nats, angles in degrees."""

    temperature: Annotated[float, msgspec.Meta(gt=0)]
    covered_mass: Estimate
    """The teacher's own mass of the kept ids."""
    top1_agreement: Estimate
    """Share of positions at which the teacher's likeliest id has the largest stored value."""
    ece_teacher: float | None
    """Expected calibration error of the teacher's first choice against the labels: 15 equal bins; null: no label is
    known."""
    ece_drift: float | None
    """That of the stored first choice, less the teacher's."""
    gradient_angle: Estimate
    """Between the gradients, with respect to a student's logits, of the soft loss from the stored and from the dense
    target: mean over positions."""
    gradient_norm_ratio: Estimate
    """Norm of the former over the norm of the latter."""
    mean_gradient_angle: float
    """Between the two gradients summed over all positions (those of a bias of the student's head)."""
    kl: Estimate | None = None
    """KL(teacher‖stored) over the vocabulary, the tail spread evenly; absent of a sample."""
    kl_tail_bucket: Estimate | None = None
    """The same with the tail as one bin: what the encoding costs; absent of a sample."""
    kl_without_tail: Estimate | None = None
    """KL(kept set renormalised‖teacher): what a loss that ignores the tail teaches; absent of a sample."""
    gradient_angle_without_tail: Estimate | None = None
    """`gradient_angle` for a loss that ignores the tail; absent of a sample."""
    sample: SampleCheck | None = None
    """Of `sampled` and `rs` only."""
    log_prob_error: LogProbError | None = None
    """At T = 1 (of `sampled`: at its own T); absent elsewhere, and of `rs`."""


class Fidelity(Record, frozen=True, kw_only=True):
    """A measurement: the teacher was run again on some rows, and each stored target compared with what it said."""

    measured_by: str
    engine: str
    """Library and version that ran the teacher this time."""
    device: str
    dtype: str
    seed: Annotated[int, msgspec.Meta(ge=0)]
    """Of the choice of rows, of the student in `gradient_angle`, and of the resampling."""
    rows: Positive
    positions: Positive
    """With a soft target, in these rows."""
    temperatures: list[FidelityAt]
    """In order of the grid."""
