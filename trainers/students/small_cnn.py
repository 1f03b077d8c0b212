"""A small convolutional network, for images of any size. Part of softlabels, Apache-2.0; needs PyTorch alone.

DEPTH stages of two 3x3 convolutions; each stage after the first halves the sides and doubles the channels, beginning
with WIDTH. Group normalisation, so that what is computed of an image depends neither on others nor on batch size,
number of processes or micro-batches.

`softtrain export` puts this file beside such a student's weights: `small_cnn.load(FOLDER)` makes it again.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

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


def load(folder: str | Path) -> SmallCnn:
    """The network of a folder with `config.json` and `model.safetensors`, in evaluation mode."""
    from safetensors.torch import load_file

    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    width, depth = config["softlabels_student"].removeprefix("cnn:").split("x")
    with torch.device("meta"):
        model = SmallCnn(int(width), int(depth), len(config["classes"]))
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"), assign=True)
    return model.eval()
