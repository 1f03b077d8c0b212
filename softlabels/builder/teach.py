"""Rows -> teacher -> selection: the part of a build that runs on the teacher's device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from softlabels.core.positions import PositionRule
from softlabels.core.rows import UNLABELLED, InputRow
from softlabels.core.summary import Summary
from softlabels.core.targets import SoftTargets, gaps_from_logp
from softlabels.errors import NonFiniteError
from softlabels.estimators import Estimator, Selection
from softlabels.estimators.entropy import whole
from softlabels.format.identity import Identity
from softlabels.format.manifest import Statistics
from softlabels.format.statistics import statistics_of
from softlabels.teachers import Teacher
from softlabels.teachers.listing import selection_of, summary_of

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
) -> tuple[SoftTargets, Statistics]:
    """Run the teacher over consecutive rows and keep what the estimator selects, where the plan asks for it.

    Args:
        start_row: row number in the store of the first; with the seed it decides the random draws.
        batch_tokens: tokens of one forward pass, padding included.
        advance: told of each chunk's number of positions.

    Raises:
        NonFiniteError: names the row and the token.
    """
    seed, asked = identity.targets.seed, identity.targets.positions
    rule = None if asked is None else PositionRule.parse(asked)
    soft: list[np.ndarray[Any, np.dtype[np.bool_]]] = []
    parts: list[SoftTargets] = []
    states: list[np.ndarray[Any, np.dtype[np.float32]]] = []
    nll: float | None = 0.0
    wanted = identity.summary is not None
    first = start_row
    for batch in batches(rows, batch_tokens):
        each = estimator.uniforms
        drawn = [draw_uniforms(seed, first + i, r.n * each) for i, r in enumerate(batch)]
        uniforms = torch.from_numpy(np.concatenate(drawn)).view(-1, each) if each else None
        done = 0
        uncertain: list[np.ndarray[Any, np.dtype[np.float32]]] = []
        by_entropy = rule is not None and rule.name == "entropy"
        summarise = wanted or by_entropy
        for part in _said(teacher, estimator, batch, uniforms, first=first, summarise=summarise):
            selection, summary, known = part
            logp = selection.logp.cpu().numpy()
            slots = np.flatnonzero(np.isfinite(logp).any(axis=0))
            used = int(slots.max(initial=0)) + 1  # of k draws few are distinct
            nll = None if nll is None or known is None else nll + known
            if by_entropy and summary is not None:
                uncertain.append(summary.entropy)
            parts.append(
                SoftTargets(
                    ids=selection.ids[:, :used].to(torch.int32).cpu().numpy(),
                    gaps=gaps_from_logp(logp[:, :used]),
                    log_odds=selection.log_odds.cpu().numpy(),
                    temperatures=tuple(identity.targets.temperatures),
                    vocab_size=teacher.record.vocab_size,
                    estimator=identity.targets.estimator,
                    declared=identity.targets.declared,
                    summary=summary if wanted else None,
                )
            )
            n = len(selection.ids)
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
    return targets, statistics_of(targets, rows, identity, nll=nll)


class _Said(NamedTuple):
    """What the teacher said at the positions of one chunk."""

    selection: Selection
    summary: Summary | None
    """If it was asked for."""
    nll: float | None
    """Sum of -log p of the labels that are known, nats; None: the selection is at another temperature than 1."""


def _said(
    teacher: Teacher,
    estimator: Estimator,
    batch: Sequence[InputRow],
    uniforms: Tensor | None,
    *,
    first: int,
    summarise: bool,
) -> Iterator[_Said]:
    """Select from each chunk of a batch; `first` is the row number of its first row."""
    if teacher.listing is not None:
        for listed in teacher.listing.listed(batch, estimator.k):
            said = summary_of(listed) if summarise else None
            yield _Said(selection_of(listed), said, -float(listed.label_logp.sum()))
        return
    labels = torch.from_numpy(np.concatenate([r.labels for r in batch]).astype(np.int64))
    done = 0
    for logits in teacher.logits(batch):
        n = len(logits)
        _check_finite(logits, batch, first, done, teacher)
        own = labels[done : done + n].to(logits.device)
        label_logits = logits.gather(1, own.clamp(min=0)[:, None])[:, 0]
        u = None if uniforms is None else uniforms[done : done + n].to(logits.device)
        given = estimator.gives_whole
        seen = whole(logits) if summarise and not given else None  # before `select` overwrites them
        selection = estimator.select(logits, u)
        seen = selection.whole if given else seen
        nll: float | None = None
        if selection.reference == 1.0:
            log_p = label_logits - selection.log_norm
            log_p = torch.where(own == UNLABELLED, 0.0, log_p)
            nll = -float(log_p.sum(dtype=torch.float64))
        summary: Summary | None = None
        if summarise and seen is not None:
            logp = torch.where(own == UNLABELLED, torch.nan, seen.logp(label_logits))
            summary = Summary(
                label_logp=logp.cpu().numpy(),
                entropy=seen.entropy.float().cpu().numpy(),
                top=seen.top.to(torch.int32).cpu().numpy(),
            )
        yield _Said(selection, summary, nll)
        done += n


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


def _check_finite(
    logits: Tensor, batch: Sequence[InputRow], first_row: int, done: int, teacher: Teacher
) -> None:
    """One pass: a sum is finite only if every logit is."""
    finite = logits.sum(dim=1).isfinite()
    if bool(finite.all()):
        return
    bad = int((~finite).nonzero()[0, 0])
    index = done + bad
    for i, row in enumerate(batch):
        if index < row.n:
            value = logits[bad][~logits[bad].isfinite()]
            shown = f"{float(value[0])}" if len(value) else "a sum beyond float32"
            raise NonFiniteError(
                f"{teacher.record.spec}: logit {shown} at row {first_row + i}, {row.place(index)} "
                f"(document {row.documents[0]}); nothing was stored of this shard. Try --dtype "
                "float32, and check the teacher's weights"
            )
        index -= row.n
    raise AssertionError("a chunk reaches beyond its batch")
