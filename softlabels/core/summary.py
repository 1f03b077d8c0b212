"""The summary of a position: what the teacher's whole distribution says there, whatever ids are kept of it.

Three numbers, all at T=1 and over the teacher's whole vocabulary: the label's log-probability, the entropy, and the
likeliest id. Of a random sample they are what is known for certain; `inspect` and `report` show them first. What is
not known is NaN, or -1.

Shapes: N positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from softlabels.errors import TargetError

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]

UNKNOWN = -1
"""`top` where the likeliest id is not known."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Summary:
    """Of N positions."""

    label_logp: Float32
    """`[N] float32`, nats: of the label; NaN: not known, or there is no label; `-inf`: below what a store can hold."""
    entropy: Float32
    """`[N] float32`, nats; NaN: not known."""
    top: Int32
    """`[N] int32`: the id of the largest probability; -1: not known."""

    @property
    def n(self) -> int:
        """N."""
        return len(self.top)

    @staticmethod
    def empty() -> Summary:
        """Of no position."""
        nothing = np.zeros(0, np.float32)
        return Summary(label_logp=nothing, entropy=nothing, top=np.zeros(0, np.int32))

    def validate(self, vocab_size: int, *, where: str) -> None:
        """Refuse what no teacher says, by a `TargetError` that names `where` and the position."""
        for what, values, bad in (
            ("label_logp = {}", self.label_logp, self.label_logp > 0),
            ("entropy = {}", self.entropy, (self.entropy < 0) | np.isinf(self.entropy)),
            (
                f"the likeliest id {{}}, outside 0..{vocab_size - 1}",
                self.top,
                (self.top < UNKNOWN) | (self.top >= vocab_size),
            ),
        ):
            if bad.any():
                at = int(bad.argmax())
                raise TargetError(f"{where}: position {at} has {what.format(values[at])}")

    def without_labels(self) -> Summary:
        """The same, of positions whose label is nobody's business."""
        unknown = np.full(self.n, np.nan, np.float32)
        return Summary(label_logp=unknown, entropy=self.entropy, top=self.top)

    def __getitem__(self, index: slice | npt.NDArray[np.generic]) -> Summary:
        return Summary(
            label_logp=self.label_logp[index], entropy=self.entropy[index], top=self.top[index]
        )

    @staticmethod
    def concatenate(parts: Sequence[Summary]) -> Summary:
        """One after the other."""
        return Summary(
            label_logp=np.concatenate([p.label_logp for p in parts]),
            entropy=np.concatenate([p.entropy for p in parts]),
            top=np.concatenate([p.top for p in parts]),
        )
