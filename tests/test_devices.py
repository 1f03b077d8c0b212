"""What `auto` measures does not depend on what else the machine does."""

from __future__ import annotations

import time

import torch

from softlabels.core.devices import bfloat16_speed_up


def test_a_core_that_others_take_meanwhile_does_not_count(monkeypatch):
    """Waiting is not work: by the clock, float32 would look hundreds of times as slow here."""
    product = torch.mm

    def interrupted(a, b):
        if a.dtype == torch.float32:
            time.sleep(0.03)
        return product(a, b)

    quiet = bfloat16_speed_up(size=256, repeats=5)
    monkeypatch.setattr(torch, "mm", interrupted)
    assert bfloat16_speed_up(size=256, repeats=5) < 3 * quiet
