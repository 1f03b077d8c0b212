"""What is counted of a shard while it is made, and the sums over shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from softlabels.core.rows import UNLABELLED, InputRow
from softlabels.core.summary import UNKNOWN
from softlabels.core.targets import SoftTargets
from softlabels.format.identity import Identity
from softlabels.format.manifest import Statistics

CLASSES_COUNTED = 1024
"""Classes, at most, whose labels are counted: a record holds a number for each."""


def statistics_of(
    targets: SoftTargets, rows: Sequence[InputRow], identity: Identity, *, nll: float | None
) -> Statistics:
    """Of one shard, given the sum of the teacher's -log p of its labels at T=1, unless only summaries tell it."""
    labels = np.concatenate([np.zeros(0, np.int32), *(row.labels for row in rows)])
    has = labels != UNLABELLED
    soft, labelled = int(targets.soft.sum()), int(has.sum())
    found = Statistics(
        kept_ids=int(targets.kept.sum()),
        kept_mass=[
            float((1.0 - targets.tail(t).astype(np.float64)).sum())  # 0 of a hard-label-only one
            for t in targets.temperatures
        ],
        teacher_nll=nll,
        soft_positions=None if soft == targets.n else soft,
        labelled=None if labelled == targets.n else labelled,
    )
    if (summary := targets.summary) is None:
        return found
    logp = summary.label_logp[has].astype(np.float64)
    if nll is None and np.isfinite(logp).all():
        nll = -float(logp.sum())
    classes = identity.classes or ()
    counts = None
    if 0 < len(classes) <= CLASSES_COUNTED:
        counts = np.bincount(labels[has], minlength=len(classes)).tolist()
    known = not np.isnan(summary.entropy).any()
    certain = not (summary.top[has] == UNKNOWN).any()
    return msgspec.structs.replace(
        found,
        teacher_nll=nll,
        teacher_right=int((summary.top == labels)[has].sum()) if certain else None,
        teacher_entropy=float(summary.entropy.sum(dtype=np.float64)) if known else None,
        label_counts=counts,
    )


def total(shards: Sequence[tuple[int, Statistics]]) -> Statistics:
    """Sums over shards, of each its positions and its statistics; what is not known of one is not known of all."""
    parts = [own for _, own in shards]
    positions = sum(n for n, _ in shards)
    soft = sum(own.soft_of(n) for n, own in shards)
    labelled = sum(own.labelled_of(n) for n, own in shards)
    right = _sum(p.teacher_right for p in parts)
    return Statistics(
        kept_ids=sum(p.kept_ids for p in parts),
        kept_mass=[
            float(sum(values)) for values in zip(*(p.kept_mass for p in parts), strict=True)
        ],
        teacher_nll=_sum(p.teacher_nll for p in parts),
        soft_positions=None if soft == positions else soft,
        labelled=None if labelled == positions else labelled,
        teacher_right=None if right is None else int(right),
        teacher_entropy=_sum(p.teacher_entropy for p in parts),
        label_counts=_counts([p.label_counts for p in parts]),
    )


def _sum(values: Iterable[float | None]) -> float | None:
    every = list(values)
    known = [v for v in every if v is not None]
    return float(sum(known)) if len(known) == len(every) else None


def _counts(parts: Sequence[list[int] | None]) -> list[int] | None:
    known = [p for p in parts if p is not None]
    if len(known) != len(parts) or len({len(p) for p in known}) != 1:
        return None
    return [sum(each) for each in zip(*known, strict=True)]
