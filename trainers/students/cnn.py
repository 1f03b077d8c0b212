"""`cnn:WIDTHxDEPTH`: a small convolutional network (`small_cnn.py`), its weights from the seed."""

from __future__ import annotations

import re

import torch

from softlabels.errors import ConfigError
from trainers.students.small_cnn import GROUPS, SmallCnn


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
