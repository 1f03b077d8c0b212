"""`sampled`: k distinct ids whose weights average to the teacher's probabilities, exactly.

Threshold sampling. Find tau with `sum_i min(1, p_i / tau) = k`. Every id with `p_i >= tau` is kept at
its own value (the head); each other id is kept with probability `p_i / tau` at weight tau. So
`E[weight_i] = p_i` for every id of the vocabulary, the weights of a draw sum to one, and k ids are
always kept. The draw is systematic: lay the tail's probabilities on a line, put a comb of spacing tau
on it at one random offset, keep the ids that a tooth hits. One uniform number per position.

Threshold sampling is Duffield, Lund and Thorup's (IEEE Trans. Inform. Theory 51(5), 2005); the systematic
draw is Madow's (Ann. Math. Statist. 20, 1949).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, ClassVar

import torch

from softlabels.core.kept import BUILT_IN, KeptSet
from softlabels.estimators import Estimator, Selection
from softlabels.estimators.blocks import add_back, find, masses
from softlabels.estimators.entropy import Whole, entropy_of
from softlabels.estimators.scan import Scan, Sought, scan
from softlabels.estimators.topk import check_k
from softlabels.estimators.vocab_parallel import VocabPart, merged, summed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampled(Estimator):
    """Keep k distinct ids of each position, drawn so that the weights are unbiased at one temperature."""

    keeps: ClassVar[KeptSet] = BUILT_IN["sampled"]
    uniforms: ClassVar[int] = 1
    deals: ClassVar[bool] = True

    k: int = 12
    """Ids kept at each position."""
    temperatures: tuple[float, ...] = (1.0,)
    """Exactly one: a sample is unbiased at the temperature that it was drawn at, and at no other."""

    def __post_init__(self) -> None:
        check_k(self.k)

    @property
    def gives_whole(self) -> bool:
        """At T=1 alone the logits are exponentiated as they are."""
        return self.temperatures[0] == 1.0

    @property
    def sought(self) -> Sought:
        """As many as are kept, of which some are the head."""
        return Sought(self.k)

    def select(
        self,
        logits: Tensor,
        uniforms: Tensor | None = None,
        part: VocabPart | None = None,
        first: Scan | None = None,
    ) -> Selection:
        """Draw from `logits [n, v] float32` (overwritten) with `uniforms [n, 1] float64` in [0, 1).

        Slots hold the head in descending order, then the sampled ids in ascending order of id.
        """
        assert uniforms is not None, (
            "a random estimator is called with one uniform number per position"
        )
        k = self.k
        first = first or scan(logits, self.sought, part)
        top, top_ids = merged(first.top, first.ids, k, part)
        if self.temperatures[0] != 1.0:
            logits.div_(self.temperatures[0])
            top = top / self.temperatures[0]
        top_gap = top - top[:, :1]
        top_mass, top_gap = top_gap.exp(), top_gap.double()
        mass, blocks, spread = masses(logits, top[:, :1], top_ids, part)
        outside, spread = summed(torch.stack([blocks.sum(1), spread]), part)
        spread = spread + (top_mass.double() * top_gap).sum(1)

        # beyond[:, h]: mass ranked after the h largest; tau[:, h]: the threshold if those h are the head.
        beyond = outside[:, None] + top_mass.double().flip(1).cumsum(1).flip(1)
        tau_of = beyond / torch.arange(k, 0, -1, device=mass.device)
        fits = top_mass <= tau_of
        fits[:, -1] = True  # h = k-1 always does; said once more for the sake of rounding
        head = fits.to(torch.uint8).argmax(1, keepdim=True)
        tau = tau_of.gather(1, head)
        total = beyond[:, :1].log()
        rest = outside + top_mass[:, 1:].double().sum(1)

        slot = torch.arange(k, device=mass.device)[None, :]
        is_head = slot < head
        back = top_mass.masked_fill(is_head, 0.0)  # of the k largest, those that take their chance
        add_back(mass, blocks, top_ids, back, logits.shape[1], part)
        # An empty tail (all its mass underflows) has no line to lay a comb on: the next largest ids, at
        # their own (vanishing) values, take the free slots.
        is_own = is_head | (tau <= 0)
        tooth = ((slot - head + 1).double() - uniforms.double().view(-1, 1)).clamp_min(0.0) * tau
        hit = find(mass, blocks.cumsum(1), tooth, part)
        twice = torch.zeros_like(is_own)
        twice[:, 1:] = (hit[:, 1:] == hit[:, :-1]) & ~is_own[:, 1:] & ~is_own[:, :-1]
        ids = torch.where(is_own, top_ids, hit)
        weight = torch.where(is_own, top_gap - total, tau.clamp_min(1e-300).log() - total)
        # Two teeth on one id can only come of rounding; they are one id of twice the weight.
        weight[:, :-1] += torch.where(twice[:, 1:], log(2.0), 0.0)
        weight = weight.masked_fill(twice, -torch.inf)
        no_tail = torch.full_like(top[:, :1], -torch.inf)
        log_norm = top[:, 0] + total[:, 0].float()
        seen = None
        if self.gives_whole:
            seen = Whole(top_ids[:, 0], top[:, 0], rest.log1p(), entropy_of(rest, spread))
        return Selection(ids, weight.float(), no_tail, log_norm, self.temperatures[0], seen)
