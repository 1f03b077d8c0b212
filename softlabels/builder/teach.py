"""Rows -> teacher -> selection: the part of a build that runs on the teacher's device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from softlabels.capture import BadLogitError, Job, Kept, labels_of
from softlabels.core.positions import PositionRule
from softlabels.core.rows import UNLABELLED, InputRow
from softlabels.core.summary import Summary
from softlabels.core.targets import SoftTargets, gaps_from_logp
from softlabels.errors import NonFiniteError
from softlabels.estimators import Estimator
from softlabels.format.identity import Identity
from softlabels.format.manifest import Statistics
from softlabels.format.statistics import statistics_of
from softlabels.teachers import Teacher

if TYPE_CHECKING:
    from torch import Tensor


def batches(rows: Sequence[InputRow], tokens: int) -> Iterator[list[InputRow]]:
    """Consecutive rows whose padded rectangle is at most `tokens` (one row, if it alone is longer)."""
    batch: list[InputRow] = []
    width = 0
    for row in rows:
        wider = max(width, row.size)
        if batch and wider * (len(batch) + 1) > tokens:
            yield batch
            batch, wider = [], row.size
        batch.append(row)
        width = wider
    if batch:
        yield batch


def draw_uniforms(seed: int, row: int, n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """`[n] float64` in [0, 1): a function of seed and row number alone, so a redone shard is the same."""
    key = np.array([seed, row], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(n)


@torch.no_grad()
def teach(
    rows: Sequence[InputRow],
    identity: Identity,
    estimator: Estimator,
    teacher: Teacher,
    *,
    start_row: int,
    batch_tokens: int,
    advance: Callable[[int], None],
    impossible: Impossible | None = None,
) -> tuple[SoftTargets, Statistics]:
    """Run the teacher over consecutive rows and keep what the estimator selects, where the plan asks for it.

    Args:
        start_row: row number in the store of the first; with the seed it decides the random draws.
        batch_tokens: tokens of one forward pass, padding included.
        advance: told of each chunk's number of positions.
        impossible: counts the ids of probability 0, for who wants to tell of them.

    Raises:
        NonFiniteError: names the row and the token.
    """
    seed, asked = identity.targets.seed, identity.targets.positions
    rule = None if asked is None else PositionRule.parse(asked)
    by_entropy = rule is not None and rule.name == "entropy"
    wanted = identity.summary is not None
    job = Job(estimator, summarise=wanted or by_entropy)
    soft: list[np.ndarray[Any, np.dtype[np.bool_]]] = []
    parts: list[SoftTargets] = []
    states: list[np.ndarray[Any, np.dtype[np.float32]]] = []
    label_logp: list[Tensor] = []
    first = start_row
    for batch in [list(rows)] if teacher.batches else batches(rows, batch_tokens):
        each = estimator.uniforms
        drawn = [draw_uniforms(seed, first + i, r.n * each) for i, r in enumerate(batch)]
        uniforms = torch.from_numpy(np.concatenate(drawn)).view(-1, each) if each else None
        done = 0
        uncertain: list[np.ndarray[Any, np.dtype[np.float32]]] = []
        for kept in selected(teacher, batch, job, uniforms, first=first):
            summary, n = _summary(kept), len(kept.ids)
            logp = kept.logp.cpu().numpy()
            slots = np.flatnonzero(np.isfinite(logp).any(axis=0))
            used = int(slots.max(initial=0)) + 1  # of k draws few are distinct
            if by_entropy and summary is not None:
                uncertain.append(summary.entropy)
            parts.append(
                SoftTargets(
                    ids=kept.ids[:, :used].to(torch.int32).cpu().numpy(),
                    gaps=gaps_from_logp(logp[:, :used]),
                    log_odds=kept.log_odds.cpu().numpy(),
                    temperatures=tuple(identity.targets.temperatures),
                    vocab_size=teacher.record.vocab_size,
                    estimator=identity.targets.estimator,
                    declared=identity.targets.declared,
                    summary=summary if wanted else None,
                )
            )
            label_logp.append(kept.label_logp.double().cpu())
            if impossible is not None:
                impossible.add(kept)
            done += n
            advance(n)
        if identity.hidden is not None:
            states.append(teacher.last_layer.cpu().numpy())
        expected = sum(r.n for r in batch)
        assert done == expected, f"the teacher gave {done} positions for {expected}"
        if rule is not None:
            ends = np.cumsum([r.n for r in batch])
            entropy = np.concatenate([np.zeros(0, np.float32), *uncertain])
            for i, part_entropy in enumerate(np.split(entropy, ends[:-1])):
                soft.append(rule.choose(batch[i].n, seed=seed, row=first + i, entropy=part_entropy))
        first += len(batch)
    targets = SoftTargets.concatenate(parts) if parts else _no_targets(identity)
    if states:
        targets = replace(targets, hidden=np.concatenate(states))
    if rule is not None:
        targets = targets.hard_label_only(~np.concatenate(soft))
    return targets, statistics_of(targets, rows, identity, nll=_loss(label_logp, rows))


def _loss(label_logp: Sequence[Tensor], rows: Sequence[InputRow]) -> float | None:
    """Sum of -log p of the labels that there are, nats; None: one is not known, or impossible."""
    if not label_logp:
        return 0.0
    known = torch.cat(list(label_logp))[labels_of(rows) != UNLABELLED]
    loss = -float(known.sum())
    return loss if math.isfinite(loss) else None


@dataclass
class Impossible:
    """How often ids had probability 0."""

    positions: int = 0
    """Where some had."""
    labels: int = 0
    """Where the label had."""
    seen: int = 0
    """Positions."""

    def add(self, kept: Kept) -> None:
        """Count in a chunk."""
        self.positions += int((kept.impossible > 0).sum())
        self.labels += int(kept.label_logp.isneginf().sum())
        self.seen += len(kept.impossible)

    def remarks(self, spec: str) -> list[str]:
        """A line for people, if there were any."""
        if not self.positions:
            return []
        labels = "no label among them"
        if self.labels:
            labels = f"at {self.labels:,} of them also to the label, so the teacher's loss is infinite and not recorded"
        return [
            f"{spec}: gives some ids probability 0 (a logit of -inf) at {self.positions:,} of {self.seen:,} positions, "
            f"{labels}; these ids are never kept"
        ]


def selected(
    teacher: Teacher,
    batch: Sequence[InputRow],
    job: Job,
    uniforms: Tensor | None,
    *,
    first: int,
) -> Iterator[Kept]:
    """What is kept of a batch, whose first row has the number `first`."""
    try:
        yield from teacher.selected(batch, job, uniforms)
    except BadLogitError as e:
        raise _not_finite(e, batch, first, teacher) from None


def _not_finite(
    bad: BadLogitError, batch: Sequence[InputRow], first: int, teacher: Teacher
) -> NonFiniteError:
    """Where a bad logit is, in words; `first` is the row number of the batch's first row."""
    index = bad.index
    for i, row in enumerate(batch):
        if index < row.n:
            return NonFiniteError(
                f"{teacher.record.spec}: logit {bad.shown} at row {first + i}, {row.place(index)} "
                f"(document {row.documents[0]}); nothing was stored of this shard. Try --dtype "
                "float32, and check the teacher's weights"
            )
        index -= row.n
    raise AssertionError("a chunk reaches beyond its batch")


def _summary(kept: Kept) -> Summary | None:
    """What was looked at of the whole distribution, if anything was."""
    if kept.entropy is None or kept.top is None:
        return None
    return Summary(
        label_logp=kept.label_logp.cpu().numpy(),
        entropy=kept.entropy.cpu().numpy(),
        top=kept.top.to(torch.int32).cpu().numpy(),
    )


def _no_targets(identity: Identity) -> SoftTargets:
    """Of a shard in which nothing is to be learnt."""
    return SoftTargets(
        ids=np.zeros((0, 1), np.int32),
        gaps=np.zeros((0, 1), np.float32),
        log_odds=np.zeros((0, len(identity.targets.temperatures)), np.float32),
        temperatures=tuple(identity.targets.temperatures),
        vocab_size=identity.teacher.vocab_size,
        estimator=identity.targets.estimator,
        declared=identity.targets.declared,
        hidden=None
        if identity.hidden is None
        else np.zeros((0, identity.hidden.width), np.float32),
        summary=None if identity.summary is None else Summary.empty(),
    )
