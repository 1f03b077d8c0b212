"""What an export is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from softlabels.core.settings import check_at_least, check_fits
from trainers.exports import FORMATS
from trainers.run.record import check_weights


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """One export."""

    format: str
    """`safetensors`, `onnx`, `onnx-int8`, `onnx-int8-static`, `torch-export`, or `compressed-tensors` of a student
    that learnt with `fake-quant`."""
    merge: bool = False
    """Add the adapter of a student to its base, and export that as one model."""
    heldout: str | None = None
    """Store of held-out rows to check it on; default: the run's own."""
    heldout_images: tuple[str, ...] = ()
    """Images of a held-out store of images, e.g. `arrays:FILE.npz`; default, for the run's own store: where they lay
    then."""
    weights: str = "student"
    """Weights of the run to export: the last (`student`), the averaged (`ema`), or the best on held-out rows
    (`best`)."""
    store: tuple[str, ...] = ()
    """Where the stores that the run was trained on lie now, as in `softtrain run`; default: where they lay then."""
    inputs: str | None = None
    """Store that holds the inputs of a training store without, for `onnx-int8-static`; default: where it lay then."""
    images: tuple[str, ...] = ()
    """Images of training stores of images, for `onnx-int8-static`; default: where they lay then."""
    vocab: str | None = None
    """Read the held-out store in the run's own vocabulary: `trim:N` or `map:FILE`."""
    rows: int = 128
    """Held-out rows to check on, evenly spread."""
    calibration_rows: int = 32
    """Training rows to measure activations on, evenly spread; for `onnx-int8-static`."""
    tolerance: float | None = None
    """Largest difference allowed: in log-probabilities (nats; default 0.001), or for int8 in the score (default
    0.01)."""

    def __post_init__(self) -> None:
        check_at_least(self, rows=1, calibration_rows=1)
        least, formats = self.tolerance or 0.0, FORMATS.names()
        check_fits(
            self,
            tolerance=(0 <= least < float("inf"), "a number, 0 or more"),
            format=(self.format in formats, f"one of {', '.join(formats)}"),
        )
        check_weights(self.weights)
