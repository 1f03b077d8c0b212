"""What a measurement is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from softlabels.core.settings import check_at_least


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """One measurement."""

    teacher: str
    """`hf:PATH`, the teacher that made the store."""
    positions: int = 4096
    """Positions with a soft target to compare, about: whole rows are taken."""
    seed: int = 0
    """Seed of the choice of rows."""
    device: str = "auto"
    """Where the teacher runs."""
    dtype: str = "auto"
    """Number type in which the teacher's body computes; `auto`: the one that it had for the store."""
    head_mib: int | None = None
    """MiB of logits that exist at a time; default 16 on a CPU, 256 on a GPU. The comparison takes ten times that."""

    def __post_init__(self) -> None:
        check_at_least(self, positions=1, seed=0, head_mib=1)
