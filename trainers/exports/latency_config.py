"""What a measurement of cost is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from softlabels.core.settings import check_at_least
from softlabels.errors import ConfigError
from trainers.run.record import check_weights

ENGINES = ("torch", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """What is measured, and how often."""

    store: str
    """Store whose rows to run on, as they are."""
    teacher: str | None = None
    """Its teacher, to compare with, measured last: `hf:PATH`."""
    engine: tuple[str, ...] = ENGINES
    """Engine in which runs and models are measured, `torch` or `onnxruntime`; repeatable. For the latter they are
    converted, unchecked. An export has its own."""
    weights: str = "student"
    """Weights of a run: `student`, `ema` or `best`."""
    batch_size: int = 8
    """Rows of a batch when throughput is measured."""
    repeats: int = 20
    """Calls of one row in a round."""
    rounds: int = 3
    """How often all of them are measured, in turn."""
    threads: int = 1
    """CPU threads of the engine."""
    vocab: str | None = None
    """Read the store in another vocabulary: `trim:N` or `map:FILE`."""
    images: tuple[str, ...] = ()
    """Images of a store of images, as it was built from them, e.g. `arrays:FILE.npz`."""

    def __post_init__(self) -> None:
        check_at_least(self, batch_size=1, repeats=1, rounds=1, threads=1)
        check_weights(self.weights)
        if self.teacher is not None and not self.teacher.startswith("hf:"):
            raise ConfigError(f"--teacher {self.teacher}: expected hf:PATH")
        unknown = sorted(set(self.engine) - set(ENGINES))
        if unknown or not self.engine:
            raise ConfigError(f"--engine {' '.join(unknown)}: expected {' or '.join(ENGINES)}")
