"""A candidate's logits, seen through the ids that a reference keeps: K + 1 bins, exact whatever the vocabulary.

With p of the reference and q of the candidate, over the kept ids S and one bin of all others (masses P and Q):

    KL of the bins   sum over S of p log(p/q)  +  P log(P/Q)
    the true KL      that, and the gap  P KL(p̃ ‖ q̃)  of the two distributions within the tail: never less

Of p̃ the store knows P and, from the position's entropy, H(p̃). By the variational formula of Donsker and Varadhan, with
the function -log q̃ against the uniform distribution,

    the gap is at most  P ( log sum exp(z)  +  log sum exp(-z)  -  2 H(p̃) )    over the logits z of the tail

which holds for every p̃ of that entropy, the worst included, and is wide for that reason.

Shapes: n positions of a chunk, K kept ids, V vocabulary of the candidate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softlabels.core.bins import acceptance
from softlabels.estimators.entropy import tiles
from softlabels.teachers.listing import Listed


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the reference says at n positions, at T=1, on the candidate's device."""

    ids: Tensor
    """`[n, K] int64`, all known to the candidate."""
    kept: Tensor
    """`[n, K] bool`."""
    log_p: Tensor
    """`[n, K+1] float64`: kept ids (`-inf`: not kept), then the tail."""
    label: Tensor
    """`[n] int64`; 0 where there is none."""
    top: Tensor
    """`[n] int64`: its likeliest id; -1: one that the candidate lacks."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the candidate says at n positions."""

    log_q: Tensor
    """`[n, K+1] float64`, over the reference's bins."""
    label_logp: Tensor
    """`[n] float64`."""
    same_top: Tensor
    """`[n] bool`: no id is likelier to it than the reference's likeliest."""
    right: Tensor
    """`[n] bool`: no id is likelier to it than the label."""
    spread: Tensor
    """`[n] float64`: log sum exp(z) + log sum exp(-z) over the tail; NaN: not known."""


def see(logits: Tensor, reference: Reference) -> Seen:
    """Look at `logits [n, V] float32`, which are overwritten; three passes over V while they are in the cache."""
    kept_z = logits.gather(1, reference.ids).double().where(reference.kept, -torch.inf)
    label_z, top_z = (
        logits.gather(1, which.clamp_min(0)[:, None])[:, 0].double()
        for which in (reference.label, reference.top)
    )
    # Padded slots repeat an id of their row: all of them are left out of the tail.
    logits.scatter_(1, reference.ids, torch.finfo(logits.dtype).min / 2)
    best, mass, inverse = (
        torch.empty(len(logits), dtype=torch.float64, device=logits.device) for _ in range(3)
    )
    for rows in tiles(logits):
        y = logits[rows]
        beyond = y.amax(1, keepdim=True)
        y.sub_(beyond).exp_()
        best[rows] = beyond[:, 0].double()
        mass[rows] = y.sum(1).double()
        y.scatter_(1, reference.ids[rows], torch.inf)
        inverse[rows] = y.reciprocal_().sum(1).double()
    none = best < torch.finfo(torch.float32).min / 4  # every id is kept
    tail = (best + mass.log()).masked_fill(none, -torch.inf)
    columns = torch.cat([kept_z, tail[:, None]], 1)
    log_norm = columns.logsumexp(1, keepdim=True)
    highest = torch.maximum(kept_z.amax(1), best.masked_fill(none, -torch.inf))
    return Seen(
        log_q=columns - log_norm,
        label_logp=label_z - log_norm[:, 0],
        same_top=(top_z >= highest) & (reference.top >= 0),
        right=label_z >= highest,
        spread=(mass.log() + inverse.log()).masked_fill(none, 0.0),
    )


def see_listed(listed: Listed, reference: Reference) -> tuple[Seen, Reference]:
    """Look at a list of a candidate that has no logits.

    An id that it does not list goes to the tail of both, so the bins are fewer and the bound still a lower one.

    Returns:
        What it says, and the reference in the bins that both know.
    """
    ids, logp = torch.from_numpy(listed.ids), torch.from_numpy(listed.logp)
    same = reference.ids[:, :, None] == ids[:, None, :]
    both = same.any(2) & reference.kept
    log_q = logp.gather(1, same.int().argmax(2)).where(both, -torch.inf)
    log_p = reference.log_p[:, :-1].where(both, -torch.inf)
    lost = reference.log_p[:, :-1].where(~both, -torch.inf).logsumexp(1)
    p_tail = torch.logaddexp(lost, reference.log_p[:, -1])
    q_tail = torch.log1p(-log_q.exp().sum(1).clamp_max(1.0))
    # A list's own rounding: what it leaves for a tail may be nothing, or less.
    q_tail = q_tail.clamp_min(float(np.log(1e-6)))
    label_logp, best = torch.from_numpy(listed.label_logp), ids[:, 0]
    seen = Seen(
        log_q=torch.cat([log_q, q_tail[:, None]], 1),
        label_logp=label_logp,
        same_top=best == reference.top,
        right=best == reference.label,
        spread=torch.full_like(label_logp, torch.nan),
    )
    fewer = Reference(
        ids=reference.ids,
        kept=both,
        log_p=torch.cat([log_p, p_tail[:, None]], 1),
        label=reference.label,
        top=reference.top,
    )
    return seen, fewer


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL over bins `[n, B]`, nats `[n]`; a bin without p adds nothing. Below zero is the rounding of a sum."""
    nothing = log_p == -torch.inf
    terms = log_p.exp() * (log_p - log_q).masked_fill(nothing, 0.0)
    return terms.masked_fill(nothing, 0.0).sum(1).clamp_min(0.0)


def proxy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """What the gap would be if the tail were as far as the less likely half of the kept ids: `[n]`, nats.

    The tail's mass times the KL within that half, each renormalised. Only a guess of its own; what wide rows measure
    says how much of it to believe.
    """
    kept_p, kept_q = log_p[:, :-1], log_q[:, :-1]
    rank = (-kept_p).argsort(1).argsort(1)
    half = (rank >= (kept_p > -torch.inf).sum(1, keepdim=True) // 2) & (kept_p > -torch.inf)
    a, b = (x.masked_fill(~half, -torch.inf) for x in (kept_p, kept_q))
    within = divergence(a - a.logsumexp(1, keepdim=True), b - b.logsumexp(1, keepdim=True))
    return log_p[:, -1].exp() * within.nan_to_num(0.0)


def accepted(log_p: Tensor, log_q: Tensor, vocab_size: int, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds `[n]` on the share of a candidate's drafts that the reference accepts (`softlabels.core.bins`)."""
    return acceptance(log_p, log_q, vocab_size - kept.sum(1))
