"""What a distillation loss is asked for, and whether there can be such a one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from softlabels.core.settings import check_fits
from softlabels.errors import ConfigError
from trainers.data.batch import Batch
from trainers.loss.divergences import DIVERGENCES
from trainers.loss.position_weights import WEIGHTS

SAMPLED = "sampled_reverse_kl"
"""A loss beside `DIVERGENCES`, of the labels' log-probabilities alone (`sampled.py`)."""


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Of `alpha * T² * divergence + (1 - alpha) * hard part`."""

    divergence: str = "forward_kl"
    """A name in `DIVERGENCES`."""
    temperature: float = 1.0
    """T of the soft loss; the hard loss is always at T=1."""
    alpha: float = 0.5
    """Share of the soft loss, 0 to 1. At 0 the targets are not touched."""
    beta: float = 0.5
    """Of `jsd`: the teacher's share of the mixture."""
    skew: float = 0.1
    """Of the skewed divergences: the share mixed in."""
    weight: str = "even"
    """Of positions in the soft loss: a name in `WEIGHTS`."""
    label_smoothing: float = 0.0
    """e, 0 to below 1: the label counts 1 - e, and e is spread evenly over all V ids. Of the hard part."""
    cosine: float = 0.0
    """Times 1 - the cosine between the last hidden states of student and teacher, a mean over all positions; beside
    alpha, which does not weigh it (the third loss of DistilBERT, Sanh et al. 2019)."""
    z_loss: float = 0.0
    """Times the square of the log-sum-exp of the logits, at T=1. Of the hard part."""
    chunk_bytes: int | None = None
    """Budget of all that is V wide; None: 64 MiB on a CPU, 256 MiB on a GPU."""

    def __post_init__(self) -> None:
        for flag, name, known in (
            ("loss", self.divergence, [*DIVERGENCES.names(), SAMPLED]),
            ("weight", self.weight, sorted(WEIGHTS)),
        ):
            if name not in known:
                raise ConfigError(f"--{flag} {name!r}: known are {', '.join(known)}")
        inf = float("inf")
        check_fits(
            self,
            alpha=(0 <= self.alpha <= 1, "0 (hard labels only) to 1 (soft targets only)"),
            beta=(0 < self.beta < 1, "a share between 0 and 1, both excluded"),
            skew=(0 < self.skew < 1, "a share between 0 and 1, both excluded"),
            temperature=(0 < self.temperature < inf, "a finite number above 0"),
            label_smoothing=(0 <= self.label_smoothing < 1, "a share from 0 to below 1"),
            z_loss=(0 <= self.z_loss < inf, "a finite number, at least 0"),
            cosine=(0 <= self.cosine < inf, "a finite number, at least 0"),
        )
        given = (self.alpha, self.temperature, self.weight)
        if self.divergence == SAMPLED and given != (1.0, 1.0, "even"):
            raise ConfigError(
                f"--loss {SAMPLED}: its labels are the student's own words, at the temperature at which they are "
                "scored; give --alpha 1, and leave --temperature, --weight and schedules out"
            )

    def weights(self, batch: Batch, places: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
        """Weights of the batch's positions at `places`, which have a soft target."""
        labels = batch.labels.cpu().numpy()[places]
        return WEIGHTS[self.weight](batch.targets[places], labels, self.temperature)
