"""How good a student is on rows that a store holds, against the labels and against the teacher."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from softlabels.errors import RunError, TokenizerError
from softlabels.rows import UNLABELLED
from softlabels.store.reader import Store, open_store
from softlabels.targets import UNBIASED
from trainers.losses import teacher_bins
from trainers.stream import Batch, collate
from trainers.students import Student, check_vocab, load_student
from trainers.tasks import Task, check_pixels
from trainers.topk_tail import Head, chunk_rows, head_logits, topk_tail
from trainers.vocabulary import check_numbering

__all__ = ["WEIGHTS", "Evaluation", "evaluate", "evaluate_run", "expected_calibration_error"]

BINS = 15
WEIGHTS = {
    "student": ("student", ""),
    "ema": ("student-ema", "--ema"),
    "best": ("best", "--heldout"),
}
"""Which weights of a run: the folder they are in, and the flag that makes it."""


class Evaluation(NamedTuple):
    """Means over the positions of a store, at T=1; `kl` and `agreement` over the soft ones."""

    positions: int
    soft_positions: int
    """Those that have a soft target."""
    nll: float
    """-log p of the token that came, nats."""
    perplexity: float
    accuracy: float
    """Share of positions whose most probable token came."""
    ece: float
    """Expected calibration error of the most probable token, 15 bins of equal width (Guo et al. 2017)."""
    kl: float | None
    """KL(teacher || student) over kept ids and tail, nats; None for a sampled store, which does not determine it,
    and where no position has a soft target."""
    agreement: float | None
    """Share of soft positions where student and teacher agree on the most probable token; None likewise."""
    teacher_nll: float | None
    """The teacher's own, where the store knows it; None in a view, whose conditional distribution is another."""
    dropped: dict[str, Any] | None = None
    """What the view dropped of the teacher's mass (`softlabels.views.Dropped`); None without one."""


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Of `[N]` confidences in [0, 1] and `[N]` outcomes; bins of equal width, `(low, high]`."""
    which = torch.ceil(confidence.double() * bins).long().sub_(1).clamp_(0, bins - 1)
    n = torch.bincount(which, minlength=bins).double()
    total = torch.bincount(which, weights=confidence.double(), minlength=bins)
    right = torch.bincount(which, weights=correct.double(), minlength=bins)
    return float((total - right).abs().sum() / n.sum())


@torch.no_grad()
def evaluate(
    student: Student,
    store: Store,
    *,
    device: str = "cpu",
    batch_size: int = 8,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Evaluate in float32 on every row of a store.

    Raises:
        PairingError: the student's vocabulary is not the store's.
    """
    check_vocab(student, store, where=str(store.path))
    where = torch.device(device)
    was_training = student.training
    student.eval().to(where)
    head = replace(student.head(), compute_dtype=None)
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(store), batch_size):
        batch = collate(
            [store.row(i) for i in range(start, min(start + batch_size, len(store)))]
        ).to(where)
        if batch.positions:
            parts.append(_measure(student.hidden(batch), head, batch))
        advance(len(batch.rows))
    student.train(was_training)
    if not parts:
        raise RunError(f"{store.path}: holds no position to evaluate on")
    of = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
    n = len(of["nll"])
    if n == 0:
        raise RunError(f"{store.path}: none of its positions has a label to evaluate against")
    knows = "kl" in of and len(of["kl"]) > 0
    statistics = store.manifest.statistics
    nll = float(of["nll"].double().mean())
    return Evaluation(
        positions=len(of["soft"]),
        soft_positions=int(of["soft"].sum()),
        nll=nll,
        perplexity=float(np.exp(nll)),
        accuracy=float(of["correct"].double().mean()),
        ece=expected_calibration_error(of["confidence"], of["correct"]),
        kl=float(of["kl"].double().mean()) if knows else None,
        agreement=float(of["agree"].double().mean()) if knows else None,
        teacher_nll=None
        if statistics.teacher_nll is None or store.view is not None
        else statistics.teacher_nll / n,
        dropped=None if store.dropped is None else store.dropped.to_dict(),
    )


def _measure(hidden: Tensor, head: Head, batch: Batch) -> dict[str, Tensor]:
    hidden = batch.at_positions(hidden).float()
    targets = batch.targets
    ids = torch.from_numpy(targets.ids.astype(np.int64)).to(hidden.device)
    kept = torch.from_numpy(targets.kept).to(hidden.device)
    labelled = batch.labels != UNLABELLED
    out = topk_tail(hidden, head, ids, kept, batch.labels.clamp(min=0))
    rows = chunk_rows(head, hidden.dtype, None, hidden.device)
    best = [head_logits(h, head).max(dim=1) for h in torch.split(hidden, rows)]
    top = torch.cat([b.indices for b in best])
    top_logit = torch.cat([b.values for b in best])
    measured = {
        "nll": (out.lse - out.label_logit)[labelled],
        "correct": (top == batch.labels)[labelled],
        "confidence": (top_logit - out.lse).exp().clamp(max=1.0)[labelled],
        "soft": torch.from_numpy(targets.soft),
    }
    if targets.estimator not in UNBIASED:
        places = np.flatnonzero(targets.soft)
        soft = torch.from_numpy(places).to(hidden.device)
        targets = targets[places]
        log_p = teacher_bins(targets, 1.0, hidden.device)
        log_q = torch.log_softmax(out.columns.index_select(0, soft), dim=1)
        p = log_p.exp()
        measured["kl"] = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dim=1)
        first = targets.ids[np.arange(targets.n), targets.gaps.argmin(axis=1)] if targets.n else []
        best_of_teacher = torch.as_tensor(first, dtype=torch.int64, device=hidden.device)
        measured["agree"] = top.index_select(0, soft) == best_of_teacher
    return measured


def evaluate_run(
    run: Path,
    store: Path | str,
    *,
    device: str = "cpu",
    batch_size: int = 8,
    vocab: str | None = None,
    images: Sequence[str] = (),
    weights: str = "student",
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Evaluate a finished run's student, on a store read in the vocabulary `vocab` (as in `RunConfig`).

    Args:
        run: its folder.
        store: of held-out rows.
        device: where to compute.
        batch_size: rows at a time.
        vocab: view to read the store in.
        images: of a store of images, where they lie.
        weights: a key of `WEIGHTS`: the last, the averaged ones (`--ema`), or the best on the run's held-out store.
        advance: told of rows done.

    Raises:
        RunError: not a run, not finished, or it has no such weights.
        PairingError: the run numbered its ids otherwise.
        TokenizerError: the store was tokenised differently from what the student was trained on.
    """
    opened = open_store(store, view=vocab, images=images)
    check_pixels(opened)
    try:
        facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise RunError(
            f"{run}: not a run ({e}); give a folder that `softtrain run --out` made"
        ) from e
    if not (run / "student" / "config.json").is_file():
        raise RunError(f"{run}: the run has not finished; `softtrain run --resume` goes on with it")
    folder, flag = WEIGHTS[weights]
    if not (run / folder / "config.json").is_file():
        raise RunError(
            f"{run}: has no {folder}, for it was made without {flag}; use --weights student"
        )
    found, expected = opened.manifest.identity.tokenizer.sha256, facts["tokenizer_sha256"]
    if found != expected:
        raise TokenizerError(
            f"{opened.path}: its tokenizer (sha256 {found[:12]}…) is not the one that {run} was trained with (sha256 "
            f"{expected[:12]}…), so the same id means another token; build a store of that text with the run's teacher"
        )
    check_numbering(facts, opened, run)
    student = load_student(run / folder, Task.of(opened))
    return evaluate(student, opened, device=device, batch_size=batch_size, advance=advance)
