"""`cnn:WIDTHxDEPTH`: a small convolutional network, for images of any size.

DEPTH stages of two 3x3 convolutions; each stage after the first halves the sides and doubles the channels, beginning
with WIDTH. Group normalisation, so that what is computed of an image depends neither on others nor on batch size,
number of processes or micro-batches.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from softlabels.errors import ConfigError

__all__ = ["SmallCnn", "make_cnn"]

GROUPS = 8


class SmallCnn(nn.Module):
    """Stages, the mean over places, a linear head."""

    def __init__(self, width: int, depth: int, classes: int) -> None:
        super().__init__()
        stages, channels = [], 3
        for stage in range(depth):
            wider = width * 2**stage
            stages.append(
                nn.Sequential(
                    nn.MaxPool2d(2) if stage else nn.Identity(),
                    *_convolution(channels, wider),
                    *_convolution(wider, wider),
                )
            )
            channels = wider
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(channels, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """`[B, 3, S, S]` to logits `[B, C]`."""
        for stage in self.stages:
            pixels = stage(pixels)
        logits: Tensor = self.head(pixels.mean(dim=(2, 3)))
        return logits


def _convolution(inward: int, outward: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inward, outward, 3, padding=1, bias=False),
        nn.GroupNorm(GROUPS, outward),
        nn.ReLU(),
    )


def make_cnn(argument: str, *, seed: int, classes: int) -> SmallCnn:
    """The network of `WIDTHxDEPTH`, weights from the seed.

    Raises:
        ConfigError: a malformed argument, or a width that the groups do not divide.
    """
    found = re.fullmatch(r"(\d{1,4})x(\d{1,2})", argument)
    width, depth = (int(found[1]), int(found[2])) if found else (0, 0)
    if width < GROUPS or width % GROUPS or not 1 <= depth <= 8:
        raise ConfigError(
            f"--student cnn:{argument}: expected cnn:WIDTHxDEPTH, WIDTH a multiple of {GROUPS}, DEPTH 1 to 8, e.g. "
            "cnn:16x3"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallCnn(width, depth, classes)
