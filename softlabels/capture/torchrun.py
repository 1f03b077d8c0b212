"""The processes that torchrun started, over which a teacher is dealt out."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from softlabels.errors import ConfigError

PATIENCE = timedelta(hours=6)
"""How long a process waits for another: for the first to read the corpus, or to come back from a full disk."""


def join(device: torch.device) -> None:
    """Join the processes that torchrun started.

    Raises:
        ConfigError: it started none.
    """
    if "RANK" not in os.environ or not dist.is_available():
        raise ConfigError(
            "--teacher hf:PATH?tp=auto: runs in the processes that torchrun starts, one a device: torchrun "
            "--nproc-per-node DEVICES -m softlabels build …; in a single process use ?device_map=auto"
        )
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)


def agreed(own: Any) -> Any:
    """What the first process says, in all of them."""
    found = [own]
    dist.broadcast_object_list(found)
    return found[0]
