"""A candidate's logits, seen through the ids that a reference keeps: K + 1 bins, exact whatever the vocabulary.

With p of the reference and q of the candidate, over the kept ids S and one bin of all others (masses P and Q):

    KL of the bins   sum over S of p log(p/q)  +  P log(P/Q)
    the true KL      that, and the gap  P KL(p̃ ‖ q̃)  of the two distributions within the tail: never less

Of p̃ the store knows P and, from the position's entropy, H(p̃). By the variational formula of Donsker and Varadhan, with
the function -log q̃ against the uniform distribution,

    the gap is at most  P ( log sum exp(z)  +  log sum exp(-z)  -  2 H(p̃) )    over the logits z of the tail

which holds for every p̃ of that entropy, the worst included, and is wide for that reason.

Rounding. Stored are log-probabilities log p' of the bins, each within a slack e of the true one (`said.py`): the
true p_i = p'_i exp(d_i), |d_i| <= e_i, and both sum to 1. With K' the KL of the stored bins, any c, and
a_i = log(p'_i/q_i) - c,

    KL of the bins - K'  =  sum of  p'_i (exp(d_i) (a_i + d_i) - a_i)

since c times either sum is c. Each term is at most the larger of its values at d_i = -e_i and e_i, and at least its
value at d_i = -1 - a_i, where its only minimum is, moved into [-e_i, e_i]: so the sums of these bound the difference
(`rounded`). c = K' + 1 makes the slopes p'_i (log(p'_i/q_i) - K') sum to 0, and the bound near the best there is.
K' is above the truth: where gaps to the likeliest id are rounded, independently, uniformly within e, and the sum is 1,
that adds sum of p_i (1 - p_i) e_i^2 / 6 over the other kept ids on average, to the second order (`expected_excess`).
`ARITHMETIC` allows for the candidate's side, which is not stored.

Shapes: n positions of a chunk, K kept ids, V vocabulary of the candidate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softlabels.core.bins import acceptance
from softlabels.estimators.tiles import tiles
from softlabels.teachers.listing import Listed

ARITHMETIC = 2.0**-20
"""Nats: what sums in single precision over a vocabulary do to a KL."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the reference says at n positions, at T=1, on the candidate's device."""

    ids: Tensor
    """`[n, K] int64`, all known to the candidate."""
    kept: Tensor
    """`[n, K] bool`."""
    log_p: Tensor
    """`[n, K+1] float64`: kept ids (`-inf`: not kept), then the tail."""
    slack: Tensor
    """`[n, K+1] float64`: within what each of these is the true one."""
    rounding: Tensor
    """`[n, K] float64`: within what the gap of each id to the likeliest was rounded."""
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
        slack=torch.cat([reference.slack[:, :-1], reference.slack.amax(1, keepdim=True)], 1),
        rounding=reference.rounding,
        label=reference.label,
        top=reference.top,
    )
    return seen, fewer


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL over bins `[n, B]`, nats `[n]`; a bin without p adds nothing. Below zero is the rounding of a sum."""
    nothing = log_p == -torch.inf
    terms = log_p.exp() * (log_p - log_q).masked_fill(nothing, 0.0)
    return terms.masked_fill(nothing, 0.0).sum(1).clamp_min(0.0)


def rounded(log_p: Tensor, log_q: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds `[n]`, nats, on the KL over bins `[n, B]` whose true log-probabilities are within `slack` of `log_p`."""
    found = divergence(log_p, log_q)
    nothing = log_p == -torch.inf
    p, slack = log_p.exp(), slack.masked_fill(nothing, 0.0)
    a = (log_p - log_q).masked_fill(nothing, 0.0) - found[:, None] - 1

    def term(d: Tensor) -> Tensor:
        return p * (a * torch.expm1(d) + d * d.exp())

    lowest = torch.minimum(torch.maximum(-1 - a, -slack), slack)
    least = found + term(lowest).sum(1) - ARITHMETIC
    most = found + torch.maximum(term(-slack), term(slack)).sum(1) + ARITHMETIC
    infinite = found == torch.inf
    return (
        least.clamp_min(0.0).masked_fill(infinite, torch.inf),
        most.masked_fill(infinite, torch.inf),
    )


def expected_excess(log_p: Tensor, rounding: Tensor) -> Tensor:
    """What rounding of the kept ids `[n, K]` adds to the KL over bins `[n, K+1]` on average, nats `[n]`."""
    p = log_p[:, :-1].exp()
    added = p * (1 - p) * rounding**2 / 6
    return added.sum(1) - added.gather(1, p.argmax(1, keepdim=True))[:, 0]


def accepted(reference: Reference, log_q: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Bounds `[n]` on the share of a candidate's drafts that the reference accepts (`softlabels.core.bins`).

    Sum of min(p, q) is 1 less half the sum of |p - q|, so rounding moves it by at most half of what it moves p by.
    """
    log_p, outside = reference.log_p, vocab_size - reference.kept.sum(1)
    low, high = acceptance(log_p, log_q, outside)
    moved = (log_p.exp() * torch.expm1(reference.slack)).sum(1) / 2
    return (low - moved).clamp_min(0.0), (high + moved).clamp_max(1.0)
