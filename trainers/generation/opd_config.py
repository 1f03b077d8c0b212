"""What rounds on a student's own text are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from softlabels.core.settings import Group, check_at_least, check_fits
from trainers.generation.config import GenerateConfig
from trainers.run.config import RunConfig

T = TypeVar("T")
Text = Annotated[T, Group("Text")]
Scoring = Annotated[T, Group("Scoring")]
Learning = Annotated[T, Group("Learning")]

MOST_ROUNDS = 1000
"""Seeds of the texts of two runs whose `--seed` differs never meet."""


@dataclass(frozen=True, kw_only=True)
class OpdConfig:
    """Rounds of: the student writes, its teacher scores that once, the student learns from it."""

    prompts: Text[str]
    """Text, a line each; `.jsonl` with prompt or messages; or a store, whose rows' beginnings are taken."""
    n: Text[int] = 1
    """Sequences for each prompt, in each round."""
    limit: Text[int | None] = None
    """Prompts to take; default all."""
    prompt_tokens: Text[int] = 16
    """Tokens of a store's text to prompt with; a conversation is taken up to where the assistant first speaks."""
    max_new_tokens: Text[int] = 128
    """Most tokens to generate for a sequence."""
    generate_batch_size: Text[int] = 16
    """Sequences to write at a time."""
    teacher: Scoring[str | None] = None
    """Teacher that taught the student, e.g. `hf:PATH`; scores in a process of its own. Without it the command ends
    with how to score the text, on any machine, and goes on once the store is there."""
    rounds: Learning[int] = 1
    """Rounds; each student writes anew."""
    judge: Learning[bool] = False
    """Let the last student write, too, and have that scored: it says what the last round was worth."""
    lr: Learning[float] = 1e-4
    """Peak learning rate of each round."""
    batch_size: Learning[int] = 8
    """Rows in an optimiser step."""
    epochs: Learning[float] = 1.0
    """Passes over the text of a round; the loss is unbiased for the student that wrote it only."""
    seed: int = 0
    """Seed of draws and order."""
    device: str = "auto"
    """Where student and teacher compute: `auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: Learning[str] = "auto"
    """`float32`, or `bfloat16` for mixed precision; auto takes bfloat16 where it was measured to pay."""

    def __post_init__(self) -> None:
        check_at_least(self, generate_batch_size=1)
        check_fits(
            self, rounds=(1 <= self.rounds < MOST_ROUNDS, f"at least 1 and below {MOST_ROUNDS}")
        )
        self.text_of(1)
        self.run_on(Path("store"), init=Path("run"))

    def text_of(self, number: int) -> GenerateConfig:
        """How the text of a round is written: by the student's own probabilities, or no loss would be unbiased."""
        return GenerateConfig(
            prompts=self.prompts,
            n=self.n,
            limit=self.limit,
            prompt_tokens=self.prompt_tokens,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.generate_batch_size,
            seed=self.seed * MOST_ROUNDS + number - 1,
            device=self.device,
        )

    def run_on(self, store: Path, *, init: Path) -> RunConfig:
        """How the student of a run learns from the store of its text."""
        from trainers.loss.settings import SAMPLED

        return RunConfig(
            store=str(store),
            init=str(init),
            loss=SAMPLED,
            alpha=1.0,
            lr=self.lr,
            batch_size=self.batch_size,
            epochs=self.epochs,
            seed=self.seed,
            device=self.device,
            dtype=self.dtype,
        )
