"""Selection where the vocabulary is dealt out: each process has the logits of its own ids, and all find the same.

A head that is sharded over the vocabulary gives each of W processes V/W logits a position. Instead of bringing them
together (4 V bytes a position), each process sends what the others have to know: its largest logits and their ids, its
sums, and which ids its share of the draws fell on. Estimators are written once: where they look at all ids they call
these functions, which do nothing more than the plain operation if there is no `part`.

Kept ids, weights and log-odds are those of the undealt logits, up to the rounding of sums that are added in another
order.

Shapes: n positions, W processes, V ids of the vocabulary, of which this process has v.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from softlabels.estimators.largest import largest

if TYPE_CHECKING:
    from torch import Tensor


class VocabPart(Protocol):
    """Which ids a process has, and how it hears from the others. All call `gather` in the same order."""

    @property
    def rank(self) -> int:
        """Which of the W processes this is; of the first are the lowest ids."""

    @property
    def first(self) -> int:
        """Its lowest id; it has the v from there on."""

    @property
    def vocab_size(self) -> int:
        """V, of all processes."""

    def gather(self, own: Tensor) -> Tensor:
        """`[W, …]`: what each process gave, of one shape and dtype."""


def summed(own: Tensor, part: VocabPart | None) -> Tensor:
    """The sum over all processes."""
    return own if part is None else part.gather(own).sum(0)


def vocab_size(logits: Tensor, part: VocabPart | None) -> int:
    """V."""
    return logits.shape[1] if part is None else part.vocab_size


def largest_of(logits: Tensor, k: int, part: VocabPart | None) -> tuple[Tensor, Tensor]:
    """The `min(k, V)` largest of `logits [n, v]` and their ids, `[n, k]` and `[n, k] int64`, in descending order."""
    return merged(*largest(logits, min(k, logits.shape[1])), k, part)


def merged(top: Tensor, ids: Tensor, k: int, part: VocabPart | None) -> tuple[Tensor, Tensor]:
    """The same, of the `min(k, v)` largest of this process's logits."""
    if part is None:
        return top, ids
    short = k - top.shape[1]
    top = torch.nn.functional.pad(top, (0, short), value=-torch.inf)  # never among the largest
    ids = torch.nn.functional.pad(ids, (0, short)) + part.first
    tops = part.gather(top).movedim(0, 1).flatten(1)
    theirs = part.gather(ids.int()).movedim(0, 1).flatten(1).long()
    best, place = tops.topk(min(k, part.vocab_size), dim=1)
    return best, theirs.gather(1, place)


def put(values: Tensor, ids: Tensor, new: Tensor | float, part: VocabPart | None) -> None:
    """Write `new`, a number or `[n, K]`, into `values [n, v]` at `ids [n, K]`, where this process has them."""
    if part is None:
        values.scatter_(1, ids, new)
        return
    rows, places = _own(ids, values.shape[1], part)
    written = new if isinstance(new, float) else new[rows, places]
    values[rows, ids[rows, places] - part.first] = written


def taken(values: Tensor, ids: Tensor, part: VocabPart | None) -> Tensor:
    """`[n, K]`: the numbers of `values [n, v]`, none infinite, at `ids [n, K]`, whoever has them."""
    if part is None:
        return values.gather(1, ids)
    rows, places = _own(ids, values.shape[1], part)
    found = values.new_zeros(ids.shape)
    found[rows, places] = values[rows, ids[rows, places] - part.first]
    return summed(found, part)


def _own(ids: Tensor, size: int, part: VocabPart) -> tuple[Tensor, Tensor]:
    """Rows and places of those `ids [n, K]` that this process has."""
    rows, places = ((ids >= part.first) & (ids < part.first + size)).nonzero(as_tuple=True)
    return rows, places
