"""What an evaluation is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from softlabels.core.settings import check_at_least
from trainers.run.record import check_weights


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """One evaluation of a finished run's student."""

    store: str
    """Store of held-out rows, a path or an address."""
    batch_size: int = 8
    """Rows at a time."""
    vocab: str | None = None
    """Read the store in another vocabulary, the run's own: `trim:N` or `map:FILE`."""
    inputs: str | None = None
    """Store that holds the inputs of a store without (`softlabels subset --drop-inputs`); joined by digest."""
    images: tuple[str, ...] = ()
    """Images of a store of images, as it was built from them, e.g. `arrays:FILE.npz`."""
    teacher_states: str | None = None
    """Folder of the teacher's states on these rows (`softlabels states`): then what compares with the teacher is exact,
    over all ids, whatever the store keeps."""
    device: str = "cpu"
    """Where to compute."""
    weights: str = "student"
    """Weights of the run to evaluate: the last (`student`), the averaged ones of a run with --ema (`ema`), or the best
    of one with --heldout (`best`)."""
    bootstrap: int = 1000
    """Replicates, of whole rows, for the 95 % intervals; 0 leaves them out."""
    seed: int = 0
    """Seed of the resamplings."""

    def __post_init__(self) -> None:
        check_at_least(self, batch_size=1, bootstrap=0, seed=0)
        check_weights(self.weights)
