"""The learning rate over the steps of a run."""

from __future__ import annotations

import math

from trainers.run.config import RunConfig


def learning_rate(step: int, config: RunConfig) -> float:
    """Of the step numbered from 0: linear warm-up, then a cosine down to `min_lr` of the peak."""
    warmup = config.warmup_steps
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    low = config.min_lr
    return config.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))
