"""What a subset is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from softlabels.core.settings import check_at_least
from softlabels.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SubsetConfig:
    """What stays of a store."""

    where: str | None = None
    """Rows for which this SQL expression is true, over the columns row, tokens, positions, soft_positions, segments,
    document, kept_ids, mean_entropy, mean_tail, mean_top and digest."""
    first: int | None = None
    """The first so many rows, of those for which --where holds."""
    sample: float | None = None
    """Each row, of those for which --where holds, with this probability."""
    seed: int = 0
    """Seed of --sample."""
    k: int | None = None
    """The likeliest so many ids of each position; the others' mass goes to the tail."""
    temperature: tuple[float, ...] = ()
    """Temperatures that stay in the grid."""
    drop_inputs: bool = False
    """Targets without their inputs, of which only digests stay: for whoever holds the text."""
    inputs_only: bool = False
    """Inputs without their targets."""

    def __post_init__(self) -> None:
        check_at_least(self, first=1, k=1, seed=0)
        if self.first is not None and self.sample is not None:
            raise ConfigError("--first and --sample exclude each other; take one after the other")
        if self.seed and self.sample is None:
            raise ConfigError("--seed belongs to --sample")
        if not self.parameters:
            raise ConfigError(
                "subset: say what stays: --where, --first, --sample, --k, --temperature, --drop-inputs or --inputs-only"
            )
        if self.inputs_only and (self.drop_inputs or self.k is not None or self.temperature):
            raise ConfigError(
                "--inputs-only leaves no targets; it excludes --drop-inputs, --k and --temperature"
            )

    @property
    def parameters(self) -> dict[str, str]:
        """What was asked for, as text."""
        asked = {
            "where": self.where,
            "first": self.first,
            "sample": self.sample,
            "seed": None if self.sample is None else self.seed,
            "k": self.k,
            "temperature": " ".join(f"{t:g}" for t in sorted(self.temperature)) or None,
            "drop_inputs": "true" if self.drop_inputs else None,
            "inputs_only": "true" if self.inputs_only else None,
        }
        return {name: str(value) for name, value in asked.items() if value is not None}
