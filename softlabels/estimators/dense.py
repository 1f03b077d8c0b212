"""`dense`: every class, exactly. For small C, where nothing needs to be left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from softlabels.core.kept import BUILT_IN, KeptSet
from softlabels.errors import ConfigError
from softlabels.estimators import Estimator, Selection
from softlabels.estimators.entropy import whole

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Dense(Estimator):
    """Keep all V ids of each position, in order of id; there is no tail at any temperature."""

    keeps: ClassVar[KeptSet] = BUILT_IN["dense"]
    gives_whole: ClassVar[bool] = True

    k: int
    """V: said once more, so that a store and its teacher cannot disagree."""
    temperatures: tuple[float, ...] = (1.0,)
    """The grid. 1 must be in it."""

    def check_vocab(self, vocab_size: int) -> None:
        """Refuse another number than all."""
        if self.k != vocab_size:
            raise ConfigError(
                f"--k {self.k}: a dense store keeps all {vocab_size} ids; give --k {vocab_size}, or use "
                "--estimator topk"
            )

    def select(self, logits: Tensor, uniforms: Tensor | None = None) -> Selection:
        """Keep `logits [n, V] float32` as log-probabilities."""
        ids = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
        log_norm = torch.logsumexp(logits, dim=1)
        no_tail = logits.new_full((len(logits), len(self.temperatures)), -torch.inf)
        return Selection(ids, logits - log_norm[:, None], no_tail, log_norm, 1.0, whole(logits))
