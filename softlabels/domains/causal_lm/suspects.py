"""What a faulty engine would say of rows, computed from the same weights: so a fault is told by its name.

Each suspect gives a label's log-probability at every position. The one that agrees with what an engine said, where the
sound one does not, names what is wrong with it.

Shapes: N positions, D width of the body.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softlabels.core.rows import Row
from softlabels.domains.causal_lm.final_norm import through_norm
from softlabels.domains.causal_lm.teacher import HFTeacher
from softlabels.errors import TeacherError
from softlabels.teachers.hf_source import padded_on

SOUND = "nothing"
ZERO = "states that are all zero"
CONSTANT = "states that are the same at every position"
OTHER = "another model's head, or of other weights"


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """One explanation."""

    fault: str
    label_logp: Tensor
    """`[N] float32`, nats, on the CPU."""
    top: Tensor
    """`[N] int64`: the likeliest id."""


def suspects_of(teacher: HFTeacher, rows: Sequence[Row]) -> Iterator[Suspect]:
    """The sound one first.

    Raises:
        TeacherError: the body has no norm at its end, so nothing can be told from another path.
    """
    states = _states(teacher, rows)
    labels = torch.from_numpy(_joined([r.labels for r in rows])).long()
    following = torch.from_numpy(_joined([[*r.labels[1:].tolist(), 0] for r in rows])).long()
    itself = torch.from_numpy(_joined([r.input_ids[r.positions] for r in rows])).long()
    for fault, (hidden, ids) in {
        SOUND: (states["last"], labels),
        "labels that are shifted: of each the token itself": (states["last"], itself),
        "labels that are shifted: of each the token after the next": (states["last"], following),
        "a position off by one: states of the token before": (states["before"], labels),
        "a position off by one: states of the token after": (states["after"], labels),
        "a missing final norm": (states["unnormed"], labels),
        "a final norm that is applied twice": (states["twice"], labels),
        "a layer off by one: states of the last but one": (states["layer before"], labels),
        ZERO: (torch.zeros_like(states["last"]), labels),
    }.items():
        yield Suspect(fault=fault, **_said(teacher, hidden, ids))


def _said(teacher: HFTeacher, hidden: Tensor, ids: Tensor) -> dict[str, Tensor]:
    logp, top = [], []
    for chunk, own in zip(torch.split(hidden, 64), torch.split(ids, 64), strict=True):
        said = torch.log_softmax(teacher.to_logits(chunk), dim=1).cpu()
        logp.append(said.gather(1, own[:, None])[:, 0])
        top.append(said.argmax(dim=1))
    return {"label_logp": torch.cat(logp), "top": torch.cat(top)}


@torch.no_grad()
def _states(teacher: HFTeacher, rows: Sequence[Row]) -> dict[str, Tensor]:
    """`[N, D]` of each kind, at the rows' positions."""
    body = teacher.model.base_model
    alone = [document for row in rows for document in row.alone()]
    fed, flat = padded_on(Row.pad(alone), teacher.device)
    norm, unnormed, out = through_norm(body, fed, use_cache=False, output_hidden_states=True)
    last = out.last_hidden_state
    if norm is None or out.hidden_states is None or len(out.hidden_states) < 2:
        raise TeacherError(
            f"{teacher.record.spec}: {type(body).__name__} has no norm after its last layer, so an engine's faults "
            "cannot be told apart by it"
        )

    def at(states: Tensor, moved: int = 0) -> Tensor:
        return states.flatten(0, 1).index_select(0, (flat + moved).clamp(min=0))

    return {
        "last": at(last),
        "before": at(last, -1),
        "after": at(last, 1),
        "unnormed": at(unnormed),
        "twice": at(norm(last)),
        "layer before": at(norm(out.hidden_states[-2])),
    }


def _joined(parts: Sequence[Any]) -> Any:
    import numpy as np

    return np.concatenate([np.asarray(p, np.int64) for p in parts])
