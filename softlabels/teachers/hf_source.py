"""What all teachers of transformers have in common: where they are from, and how texts are given to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softlabels.core.rows import PaddedRows
from softlabels.domains.text import TextRow
from softlabels.format.identity import TeacherRecord

__all__ = ["HFSource", "pad_texts"]


@dataclass(frozen=True, kw_only=True)
class HFSource:
    """What a model was loaded from."""

    spec: str
    """As the user named it, without the folder that it lies in."""
    name: str
    weights_sha256: str
    engine: str
    """Library and version that runs it."""

    def record(self, model: Any, *, vocab_size: int) -> TeacherRecord:
        """What a manifest says of the model; `vocab_size` is the width of its head."""
        return TeacherRecord(
            spec=self.spec,
            name=self.name,
            revision=getattr(model.config, "_commit_hash", None),
            weights_sha256=self.weights_sha256,
            dtype=str(model.dtype).removeprefix("torch."),
            device=model.device.type,
            engine=self.engine,
            vocab_size=vocab_size,
            parameters=sum(p.numel() for p in model.parameters()),
        )


def pad_texts(rows: Sequence[TextRow], device: torch.device) -> tuple[PaddedRows, Tensor, Tensor]:
    """Rows side by side, their ids `[B, S] int64` and their attention mask `[B, S] int64`."""
    padded = TextRow.pad(rows)
    assert padded.lengths is not None
    ids = torch.from_numpy(padded.input_ids).to(device)
    lengths = torch.from_numpy(padded.lengths).to(device)
    mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
    return padded, ids, mask.long()
