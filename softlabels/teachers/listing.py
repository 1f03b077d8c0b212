"""Teachers that list the log-probabilities of the k most probable ids, and nothing else: servers.

What such a list does not determine is refused before anything is taught: another temperature than 1 (the tail's mass
there
is unknown), an estimator that needs the whole distribution (all but `topk`), positions by entropy. The grid is {1}.

Of a whole vocabulary the tail is a log-sum-exp over the other ids. Here it is 1 minus the sum of the listed
probabilities, in float64; how small it can be told is decided by the rounding of the list, so it is never taken as less
than `FLOOR`. Positions where that floor was needed are counted, and reported.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from softlabels.builder.config import BuildConfig
from softlabels.capture import Job, Kept
from softlabels.errors import ConfigError, TeacherError
from softlabels.estimators import Estimator
from softlabels.teachers import Teacher
from softlabels.teachers.segments import Segment, segments_of

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = 1e-6
"""Least mass of the tail: float32 log-probabilities, and the log-sum-exp behind them, are no more exact than that."""
EXCESS = 1e-3
"""By which listed probabilities may sum to more than 1; more is not rounding."""


class Listed(NamedTuple):
    """What a list says at n positions, at T=1."""

    ids: npt.NDArray[np.int64]
    """`[n, k]`, the most probable first."""
    logp: npt.NDArray[np.float64]
    """`[n, k]`, nats."""
    label_logp: npt.NDArray[np.float64]
    """`[n]`, nats: of the label."""

    def raised(self) -> int:
        """Positions whose tail is taken as `FLOOR`."""
        return int((1.0 - np.exp(self.logp).sum(axis=1) < FLOOR).sum())


class ListingTeacher(Teacher):
    """A teacher without logits: a back-end defines `ask`, and `check_k`."""

    def __init__(self) -> None:
        self.listing = self
        self._raised = self._positions = 0

    def logits(self, rows: Sequence[Any]) -> Iterator[Tensor]:
        """Always a `TeacherError`: there are none to give."""
        raise TeacherError(
            f"{self.record.spec}: lists the log-probabilities of the most probable ids, and has no logits to give; "
            "this needs a teacher that runs here, such as hf:PATH"
        )

    @abstractmethod
    def check_k(self, k: int) -> None:
        """Make it ready to list k ids at each position.

        Raises:
            ConfigError: it does not list so many.
        """

    @abstractmethod
    def ask(self, segments: Sequence[Segment], k: int) -> Iterator[Listed]:
        """What it lists at each segment's positions (`listed_of`), in order."""

    def listed(self, rows: Sequence[Any], k: int) -> Iterator[Listed]:
        """The positions of all rows, in order."""
        for listed in self.ask(segments_of(rows), k):
            self._raised += listed.raised()
            self._positions += len(listed.ids)
            yield listed

    def selected(self, rows: Sequence[Any], job: Job, uniforms: Tensor | None) -> Iterator[Kept]:
        """What the lists determine."""
        return (kept_of(listed) for listed in self.listed(rows, job.estimator.k))

    def remarks(self) -> list[str]:
        """At how many positions the tail was taken as `FLOOR`."""
        if not self._raised:
            return []
        return [
            f"{self.record.spec}: at {self._raised:,} of {self._positions:,} positions the listed ids left less than "
            f"{FLOOR:g} of the mass, which rounding hides; the tail was stored as {FLOOR:g}"
        ]


def check_listing(config: BuildConfig, estimator: Estimator, teacher: Teacher) -> None:
    """Refuse a build that asks for what a list does not determine with a `ConfigError` that names the flag."""
    if teacher.listing is None:
        return
    spec = teacher.record.spec
    why = f"{spec} lists the log-probabilities of the most probable ids at T=1 only"
    if not estimator.takes_lists:
        raise ConfigError(f"--estimator {config.estimator}: {why}; use --estimator topk")
    if tuple(config.temperature) != (1.0,):
        grid = ", ".join(f"{t:g}" for t in config.temperature)
        raise ConfigError(f"--temperature {grid}: {why}, so the tail at another is unknown; use 1")
    if config.positions is not None and config.positions.startswith("entropy"):
        raise ConfigError(f"--positions {config.positions}: {why}; use random:SHARE")
    teacher.listing.check_k(estimator.k)


def listed_of(
    entries: Sequence[Mapping[int, float] | None],
    segment: Segment,
    k: int,
    *,
    vocab_size: int,
    spec: str,
) -> Listed:
    """Of one segment, from what a server says of each token given those before it.

    Args:
        entries: one for each token: log-probabilities by id, of at least the k most probable and of the token itself;
            that of the first token is not looked at.
        segment: what was asked.
        k: ids wanted.
        vocab_size: V.
        spec: of the teacher, for messages.

    Raises:
        TeacherError: a list that is too short, lacks the label, or holds no log-probabilities.
    """
    if len(entries) != len(segment.input_ids):
        raise TeacherError(
            f"{spec}: gave log-probabilities for {len(entries)} tokens, was asked for {len(segment.input_ids)}"
        )
    n = len(segment.positions)
    out = Listed(np.zeros((n, k), np.int64), np.zeros((n, k)), np.zeros(n))
    for i, (position, label) in enumerate(zip(segment.positions, segment.labels, strict=True)):
        entry = entries[position + 1]
        where = f"{spec}: token {position + 1} of {len(entries)}"
        if entry is None or len(entry) < k:
            raise TeacherError(f"{where}: lists {len(entry or ())} ids, expected at least {k}")
        if int(label) not in entry:
            raise TeacherError(f"{where}: the list lacks the next token, {label}")
        best = sorted(entry.items(), key=lambda item: (-item[1], item[0]))[:k]
        ids, logp = zip(*best, strict=True)
        out.ids[i], out.logp[i], out.label_logp[i] = ids, logp, entry[int(label)]
    numbers = (out.logp < np.inf).all() and (out.label_logp < np.inf).all()
    if not (numbers and np.isfinite(out.logp[:, :1]).all()):  # -inf is a probability of 0
        raise TeacherError(
            f"{spec}: lists a log-probability that is NaN or infinite; nothing was stored"
        )
    if n and (out.ids.min() < 0 or out.ids.max() >= vocab_size):
        raise TeacherError(
            f"{spec}: lists id {int(out.ids.max())}, beyond the vocabulary of {vocab_size} ids; give the width of "
            "its head with ?vocab=N"
        )
    total = np.exp(out.logp).sum(axis=1)
    if n and total.max() > 1 + EXCESS:
        raise TeacherError(
            f"{spec}: listed probabilities sum to {total.max():.4g}; they are not those at T=1 (logits, or a server "
            "that changes probabilities before it lists them)"
        )
    return out


def kept_of(listed: Listed) -> Kept:
    """As an estimator would have selected; of the whole distribution the entropy is not known."""
    kept = np.exp(listed.logp).sum(axis=1)
    tail = np.maximum(1.0 - kept, FLOOR)
    odds = np.log(tail) - np.log(kept)
    ids, logp = torch.from_numpy(listed.ids), torch.from_numpy(listed.logp.astype(np.float32))
    return Kept(
        ids=ids,
        logp=logp,
        log_odds=torch.from_numpy(odds.astype(np.float32)[:, None]),
        label_logp=torch.from_numpy(np.minimum(listed.label_logp, 0.0).astype(np.float32)),
        impossible=logp.isneginf().sum(dim=1),
        entropy=torch.full((len(ids),), torch.nan),
        top=ids[:, 0],
    )
