"""What a corpus of a student's own making is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from softlabels.core.settings import check_at_least, check_fits
from trainers.run.record import check_weights


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample."""

    temperature: float = 1.0
    """Temperature of the sampling; 0: always the most probable token."""
    top_p: float = 1.0
    """Sample from the fewest of the most probable tokens that reach this mass."""
    max_new_tokens: int = 128
    """Most tokens to generate for a sequence."""
    seed: int = 0
    """Seed of the draws; with a sequence's number it decides that sequence's own."""

    def __post_init__(self) -> None:
        check_at_least(self, max_new_tokens=1, seed=0)
        check_fits(
            self,
            temperature=(0 <= self.temperature < float("inf"), "at least 0"),
            top_p=(0 < self.top_p <= 1, "above 0 and at most 1"),
        )


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Sampling):
    """One corpus of sequences that a finished run's student makes."""

    prompts: str
    """Text, a line each; `.jsonl` with prompt or messages; or a store, whose rows' beginnings are taken."""
    n: int = 1
    """Sequences for each prompt."""
    limit: int | None = None
    """Prompts to take; default all."""
    prompt_tokens: int = 16
    """Tokens of a store's text to prompt with; a conversation is taken up to where the assistant first speaks."""
    batch_size: int = 16
    """Sequences at a time."""
    device: str = "cpu"
    """Where to compute."""
    weights: str = "student"
    """Weights of the run: `student`, `ema` or `best`, as in `softtrain eval`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, n=1, limit=1, prompt_tokens=1, batch_size=1)
        check_weights(self.weights)
