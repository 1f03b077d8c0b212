"""A student and the teacher at every position of a store: what each metric, group and table is made from.

Shapes: N positions, K kept ids, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from softlabels.core.bins import acceptance
from softlabels.core.devices import choose
from softlabels.core.rows import UNLABELLED, Row
from softlabels.core.targets import SoftTargets
from softlabels.errors import RunError
from softlabels.format.shard import StoredRow
from softlabels.store.reader import Store
from trainers.data.batch import Batch, collate
from trainers.data.full_teacher import FullTeacher
from trainers.evaluation.whole import compare_whole
from trainers.loss.divergences import Shape, forward_kl
from trainers.loss.head import Head, chunk_rows, head_logits
from trainers.loss.head_chunks import HeadChunks
from trainers.loss.topk_tail import topk_tail
from trainers.students import Student, check_vocab
from trainers.students.context import check_context

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """N positions at T=1. What is said of the teacher counts where `known` only."""

    row: Int64
    """`[N]`: row of the store."""
    token: Int64
    """`[N]`: of a causal LM, the token of the row which predicts the next; else the position's number in its row."""
    document: Int64
    """`[N]`: document of the corpus."""
    context: Int64
    """`[N]`: of a causal LM, how many tokens of the document the model saw, this one included; else the row's size."""
    label: Int64
    """`[N]`: what is true; `UNLABELLED` where that is not known."""
    nll: Float64
    """`[N]`: the student's -log p of it, nats; 0 without a label."""
    top: Int64
    """`[N]`: the student's first choice."""
    confidence: Float64
    """`[N]`: its probability."""
    soft: Bool
    """`[N]`: False where the position has no soft target."""
    binned: Bool
    """`[N]`: where the store determines `kl`: a soft target that is not a sample."""
    kl: Float64
    """`[N]`: KL(teacher || student) over kept ids and tail, nats: a lower bound of that over all ids."""
    whole: Bool
    """`[N]`: where all of the teacher's distribution is known: the store keeps it, or its states are given."""
    kl_dense: Float64
    """`[N]`: KL(teacher || student) over all ids, nats; where `whole`."""
    known: Bool
    """`[N]`: where what follows is determined: `binned`, or `whole`."""
    teacher_top: Int64
    """`[N]`: the teacher's first choice."""
    teacher_confidence: Float64
    """`[N]`: its probability."""
    rank: Int64
    """`[N]`: how many ids the student puts before the teacher's first choice."""
    accept_low: Float64
    """`[N]`: least that sum of min(p, q) over all ids can be; see `acceptance`."""
    accept_high: Float64
    """`[N]`: most that it can be."""

    @property
    def n(self) -> int:
        """N."""
        return len(self.label)

    @property
    def labelled(self) -> Bool:
        """`[N]`: whether what is true is known."""
        return np.asarray(self.label != UNLABELLED)

    @property
    def judged(self) -> Bool:
        """`[N]`: whether both teacher and truth are known."""
        return np.asarray(self.known & self.labelled)

    @property
    def divergence(self) -> Float64:
        """`[N]`: the most exact KL(teacher || student) where `known`: over all ids, else over kept ids and tail."""
        return np.where(self.whole, self.kl_dense, self.kl)

    @property
    def correct(self) -> Bool:
        """`[N]`: the student's first choice came."""
        return np.asarray(self.top == self.label)

    @property
    def teacher_correct(self) -> Bool:
        """`[N]`: the teacher's first choice came."""
        return np.asarray(self.teacher_top == self.label)

    @property
    def agree(self) -> Bool:
        """`[N]`: student and teacher have the same first choice."""
        return np.asarray(self.top == self.teacher_top)


@torch.no_grad()
def asked(
    student: Student, store: Store, *, device: str, batch_size: int
) -> Iterator[tuple[list[StoredRow], Batch, Tensor, Head]]:
    """A student, in evaluation mode, about a store's rows: these, their batch, and `[N, D]` float32 before its head."""
    where = choose(device, "float32").device
    student.eval().to(where)
    head = replace(student.head(), compute_dtype=None)
    for start in range(0, len(store), batch_size):
        rows = [store.row(i) for i in range(start, min(start + batch_size, len(store)))]
        batch = collate(rows).to(where)
        yield rows, batch, batch.at_positions(student.hidden(batch)).float(), head


@torch.no_grad()
def measure(
    student: Student,
    store: Store,
    *,
    device: str = "cpu",
    batch_size: int = 8,
    teacher: FullTeacher | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Measured:
    """Measure in float32 at every position of a store; against all of the teacher's distribution, if it is given.

    Raises:
        PairingError: the student's vocabulary is not the store's, or a row has no states.
        RunError: the store holds no position.
    """
    check_vocab(student, store, where=str(store.path))
    check_context(student, store, where="the student")
    was_training = student.training
    parts: list[dict[str, npt.NDArray[np.generic]]] = []
    for rows, batch, hidden, head in asked(student, store, device=device, batch_size=batch_size):
        if batch.positions:
            if teacher is not None:
                teacher = teacher.to(hidden.device)
                batch = replace(batch, teacher=teacher.at(rows)).to(hidden.device)
            found = _measure(hidden, head, batch)
            parts.append({name: t.cpu().numpy() for name, t in found.items()} | _places(rows))
        advance(len(rows))
    student.train(was_training)
    if not parts:
        raise RunError(f"{store.path}: holds no position to evaluate on")
    kinds = {f.name: str(f.type) for f in fields(Measured)}
    dtypes = {"Float64": np.float64, "Int64": np.int64, "Bool": np.bool_}
    return Measured(
        **{
            name: np.concatenate([p[name] for p in parts]).astype(dtypes[kind])
            for name, kind in kinds.items()
        }
    )


def _places(rows: Sequence[StoredRow]) -> dict[str, npt.NDArray[np.generic]]:
    """Where the N positions of some rows lie."""
    token, document, context = [], [], []
    for stored in rows:
        row, n = stored.row, stored.row.n
        if isinstance(row, Row):
            token.append(row.positions)
            document.append(np.repeat(row.documents, row.segment_lengths)[row.positions])
            context.append(row.position_ids[row.positions].astype(np.int64) + 1)
        else:
            token.append(np.arange(n))
            document.append(np.full(n, row.documents[0]))
            context.append(np.full(n, row.size))
    index = np.repeat([r.index for r in rows], [r.row.n for r in rows])
    named = {"token": token, "document": document, "context": context}
    return {"row": index} | {name: np.concatenate(parts) for name, parts in named.items()}


def _measure(hidden: Tensor, head: Head, batch: Batch) -> dict[str, Tensor]:
    device, targets = hidden.device, batch.targets
    binned = targets.soft if not targets.keeps.sample else np.zeros(targets.n, np.bool_)
    first, confidence = _first_choices(targets, binned)
    ids = torch.from_numpy(targets.ids.astype(np.int64)).to(device)
    kept = torch.from_numpy(targets.kept).to(device)
    out = topk_tail(HeadChunks(hidden, head, ids, kept, batch.labels.clamp(min=0)))
    places = np.flatnonzero(binned)
    names = ("kl", "accept_low", "accept_high")
    of_teacher = {name: torch.zeros(targets.n, device=device) for name in names}
    if len(places):
        at = torch.from_numpy(places).to(device)
        log_p = torch.from_numpy(targets[places].log_bins(1.0)).to(device, torch.float32)
        log_q = torch.log_softmax(out.columns.index_select(0, at), dim=1)
        outside = targets.vocab_size - kept.index_select(0, at).sum(dim=1)
        of_teacher["kl"][at] = forward_kl(log_p, log_q, Shape())
        low, high = acceptance(log_p, log_q, outside)
        of_teacher["accept_low"][at], of_teacher["accept_high"][at] = low, high
    whole = binned & (kept.sum(dim=1) == targets.vocab_size).cpu().numpy()
    known, kl_dense = binned, of_teacher["kl"]  # where a store keeps all ids, the bins are they
    teacher_first, sure = torch.from_numpy(first).to(device), torch.from_numpy(confidence)
    if batch.teacher is not None:
        known = whole = targets.soft
        dense = compare_whole(hidden, head, batch.teacher)
        kl_dense, teacher_first, sure = dense.kl, dense.top, dense.confidence
        of_teacher["accept_low"] = of_teacher["accept_high"] = dense.acceptance
    top, top_logit, rank = _choices(hidden, head, teacher_first)
    return {
        "label": batch.labels,
        "nll": torch.where(batch.labels != UNLABELLED, out.lse - out.label_logit, 0.0),
        "top": top,
        "confidence": (top_logit - out.lse).exp().clamp(max=1.0),
        "soft": torch.from_numpy(targets.soft),
        "binned": torch.from_numpy(binned),
        "whole": torch.from_numpy(whole),
        "kl_dense": kl_dense,
        "known": torch.from_numpy(known),
        "teacher_top": teacher_first,
        "teacher_confidence": sure,
        "rank": rank,
        **of_teacher,
    }


def _first_choices(targets: SoftTargets, known: Bool) -> tuple[Int64, Float64]:
    """The teacher's most probable kept id and its probability at T=1; 0 where not known."""
    first, confidence = np.zeros(targets.n, np.int64), np.zeros(targets.n)
    if known.any():
        slot = targets.gaps.argmin(axis=1)
        at = np.arange(targets.n)
        first = np.where(known, targets.ids[at, slot].astype(np.int64), 0)
        confidence = np.where(known, targets.probs(1.0)[at, slot].astype(np.float64), 0.0)
    return first, confidence


def _choices(hidden: Tensor, head: Head, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`[N]` each: the student's first choice, its logit, how many ids it puts before the teacher's `[N]`."""
    rows = chunk_rows(head, hidden.dtype, None, hidden.device)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for h, t in zip(torch.split(hidden, rows), torch.split(teacher, rows), strict=True):
        z = head_logits(h, head)
        best = z.max(dim=1)
        before = (z > z.gather(1, t[:, None])).sum(dim=1)
        parts.append((best.indices, best.values, before))
    top, logit, rank = (torch.cat(p) for p in zip(*parts, strict=True))
    return top, logit, rank
