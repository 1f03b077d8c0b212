"""What all teachers of transformers have in common: where they are from, and how texts are given to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softlabels.core.local_model import LocalModel, loading
from softlabels.core.rows import PaddedRows
from softlabels.domains.text import TextRow
from softlabels.errors import TeacherError
from softlabels.format.identity import TeacherRecord

__all__ = ["PROBE_IDS", "HFSource", "check_head", "load_whole", "pad_texts"]

PROBE_IDS = 8
"""Ids on which a head is checked."""


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


def load_whole(loader: Any, found: LocalModel, spec: str, **settings: Any) -> Any:
    """Load a model of a folder that must hold all of its weights.

    Raises:
        TeacherError: it cannot be loaded, or its head is not in the folder.
    """
    with loading(spec, TeacherError):
        model, info = loader.from_pretrained(found.folder, output_loading_info=True, **settings)
    if info["missing_keys"]:
        raise TeacherError(
            f"{spec}: the folder has no weights for {sorted(info['missing_keys'])[0]}, so a {type(model).__name__} "
            "would guess at random; fine-tune it first, and give the folder of that model"
        )
    return model


def check_head(model: Any, found: Tensor, expected: Tensor, *, spec: str) -> None:
    """Compare logits `[n, V]` of a head that is applied in chunks with the model's own.

    Raises:
        TeacherError: they differ.
    """
    worst = (found - expected).abs().max().item()
    step = 1e-4 if model.dtype == torch.float32 else 2.0**-6
    if not worst <= step * max(1.0, expected.abs().max().item()):
        raise TeacherError(
            f"{spec}: the head of {type(model).__name__} is not understood: logits computed in chunks differ from the "
            f"model's own by {worst:g}; a causal LM can be a `py:` teacher, which returns logits itself"
        )


def pad_texts(rows: Sequence[TextRow], device: torch.device) -> tuple[PaddedRows, Tensor, Tensor]:
    """Rows side by side, their ids `[B, S] int64` and their attention mask `[B, S] int64`."""
    padded = TextRow.pad(rows)
    assert padded.lengths is not None
    ids = torch.from_numpy(padded.input_ids).to(device)
    lengths = torch.from_numpy(padded.lengths).to(device)
    mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
    return padded, ids, mask.long()
