"""Where the logits of ids lie: all in this process, or dealt out over several (tensor parallel).

Where a head is dealt out, each process has the rows of its own ids, all have the same hidden states, and each makes its
part of the logits. What the others have to know is K + 3 numbers a position at T=1, one more at another T and one with
label smoothing: the largest logit outside the kept set, then, added up, what each has of kept logits, label and
exponentials. So all have the same columns, and each the gradient of its own rows. That of the states, D numbers a
position, is added up once.

Shapes: n positions, V ids, of which v are here, K kept ids.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from softlabels.core.ranks import Ranks


class Sums(NamedTuple):
    """What of the logits is a sum over ids."""

    found: Tensor
    """`[n, K]`: logits of the kept ids, one term each."""
    label: Tensor
    """`[n]`: that of the label."""
    at_t: Tensor
    """`[n]`: of the exponentials at the loss's temperature."""
    at_1: Tensor
    """`[n]`: at T=1; the same tensor, if that is the loss's."""
    mean: Tensor | None
    """`[n]`: of the logits, over V; None: not wanted."""


class Vocabulary:
    """All ids are here."""

    def __init__(self, size: int) -> None:
        self.size = size
        """V."""
        self.here = size
        """v."""

    def at(self, z: Tensor, ids: Tensor) -> Tensor:
        """`[n, K]`: the numbers of `z [n, v]` at `ids [n, K]`; 0 where they are not here."""
        return z.gather(1, ids)

    def take_out(self, z: Tensor, ids: Tensor, found: Tensor, rows: Tensor) -> None:
        """Make the numbers at ids, which were `found`, -inf in the `rows [n, 1] bool`."""
        z.scatter_(1, ids, found.masked_fill(rows, -torch.inf))

    def add_at(self, dz: Tensor, ids: Tensor, values: Tensor) -> None:
        """Add values to the numbers at ids."""
        dz.scatter_add_(1, ids, values)

    def largest(self, top: Tensor) -> Tensor:
        """Of all ids, given the largest of those here."""
        return top

    def added(self, sums: Sums) -> Sums:
        """Over all ids, given those over the ones here."""
        return sums

    def total(self, d_hidden: Tensor) -> Tensor:
        """The gradient of the hidden states, given that from the ids here."""
        return d_hidden


class DealtVocabulary(Vocabulary):
    """Some ids are here, the others in other processes, which all call the same in the same order."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(ranks.vocab_size)
        self._ranks, self._first, self.here = ranks, ranks.first, len(ranks.ids)

    def _own(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Places of ids among those here, and which are here; the place of another is any."""
        places = ids - self._first
        return places.clamp(0, self.here - 1), (places >= 0) & (places < self.here)

    def at(self, z: Tensor, ids: Tensor) -> Tensor:
        """0 where another process has the id."""
        places, own = self._own(ids)
        return z.gather(1, places).masked_fill_(~own, 0.0)

    def take_out(self, z: Tensor, ids: Tensor, found: Tensor, rows: Tensor) -> None:
        """Those that are here."""
        places, own = self._own(ids)
        bound = torch.full_like(found, torch.inf).masked_fill_(own & rows, -torch.inf)
        z.scatter_reduce_(1, places, bound, "amin")

    def add_at(self, dz: Tensor, ids: Tensor, values: Tensor) -> None:
        """Those that are here."""
        places, own = self._own(ids)
        dz.scatter_add_(1, places, values.masked_fill(~own, 0.0))

    def largest(self, top: Tensor) -> Tensor:
        """One number a position goes round."""
        return self._ranks.largest(top)

    def added(self, sums: Sums) -> Sums:
        """K + 2 numbers a position go round, one more at another T, and one with a mean."""
        two = sums.at_1 is not sums.at_t
        own = [sums.label, sums.at_t, *([sums.at_1] if two else [])]
        if sums.mean is not None:
            own.append(sums.mean)
        together = self._ranks.total(torch.cat([sums.found, torch.stack(own, dim=1)], dim=1))
        k = sums.found.shape[1]
        label, at_t, *rest = together[:, k:].unbind(1)
        at_1 = rest[0] if two else at_t
        return Sums(together[:, :k], label, at_t, at_1, None if sums.mean is None else rest[-1])

    def total(self, d_hidden: Tensor) -> Tensor:
        """Added up in float32 at least."""
        wide = torch.promote_types(d_hidden.dtype, torch.float32)
        return self._ranks.total(d_hidden.to(wide)).to(d_hidden.dtype)
