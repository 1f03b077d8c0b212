"""What estimators share that draw k times at a position and keep each distinct id at its share of the draws."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from softlabels.estimators import Estimator, Selection
from softlabels.estimators.blocks import find, line_of
from softlabels.estimators.entropy import Whole, entropy_of
from softlabels.estimators.scan import Scan, Sought, scan
from softlabels.estimators.topk import check_k
from softlabels.estimators.vocab_parallel import VocabPart, merged

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Draws(Estimator):
    """Draws at one temperature: the ids lie on a line, each as long as its probability, and points of it are drawn.

    A kind says where the points fall. It is unbiased if they hit a piece that is a share p of the line k p times on
    average.
    """

    counts: ClassVar[bool] = True
    deals: ClassVar[bool] = True

    k: int = 35
    """Draws at each position: the most distinct ids that can be kept."""
    temperatures: tuple[float, ...] = (1.0,)
    """Exactly one: where the teacher is drawn from."""

    def __post_init__(self) -> None:
        check_k(self.k)

    @property
    def gives_whole(self) -> bool:
        """At T=1 alone the logits are exponentiated as they are."""
        return self.temperatures[0] == 1.0

    def check_vocab(self, vocab_size: int) -> None:
        """Any number of draws is possible."""

    @property
    def sought(self) -> Sought:
        """The likeliest."""
        return Sought(1)

    @abstractmethod
    def points(self, uniforms: Tensor, length: Tensor) -> Tensor:
        """Where the draws fall on a line.

        Args:
            uniforms: `[n, self.uniforms] float64` in [0, 1).
            length: `[n, 1] float64`, of the line.

        Returns:
            `[n, k] float64` in (0, length], ascending; at 0 could be an id of no mass.
        """

    def select(
        self,
        logits: Tensor,
        uniforms: Tensor | None = None,
        part: VocabPart | None = None,
        first: Scan | None = None,
    ) -> Selection:
        """Draw from `logits [n, v] float32` (overwritten) with `uniforms [n, self.uniforms] float64` in [0, 1).

        Slots hold distinct ids in ascending order; free ones repeat the first, not kept.
        """
        assert uniforms is not None, "a random estimator is called with its uniform numbers"
        first = first or scan(logits, self.sought, part)
        largest, top = merged(first.top, first.ids, 1, part)
        if self.temperatures[0] != 1.0:
            logits.div_(self.temperatures[0])
            largest = largest / self.temperatures[0]
        mass, ends, rest, spread = line_of(logits, largest, top, part)
        points = self.points(uniforms.double(), 1.0 + rest[:, None])
        ids, counts = counted(find(mass, ends, points, part))
        return Selection(
            ids,
            (counts.log() - torch.tensor(float(self.k)).log()).float(),
            torch.full_like(largest, -torch.inf),
            largest[:, 0] + rest.log1p().float(),
            self.temperatures[0],
            Whole(top[:, 0], largest[:, 0], rest.log1p(), entropy_of(rest, spread))
            if self.gives_whole
            else None,
        )


def counted(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct ids of ascending draws `[n, k]`, and how often each was drawn, `float64`, 0 in slots that are free.

    Free slots repeat the first id.
    """
    first = torch.ones_like(drawn, dtype=torch.bool)
    first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    slot = first.cumsum(1) - 1
    one = torch.ones((), dtype=torch.float64, device=drawn.device).expand_as(drawn)
    counts = torch.zeros_like(drawn, dtype=torch.float64).scatter_add_(1, slot, one)
    return drawn[:, :1].repeat(1, drawn.shape[1]).scatter_(1, slot, drawn), counts
