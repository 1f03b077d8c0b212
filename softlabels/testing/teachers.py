"""The contract of `softlabels.teachers.Teacher`: logits of each position, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softlabels.core.rows import InputRow, Row
from softlabels.corpora import Corpus, Document
from softlabels.corpora.packing import pack
from softlabels.teachers import Teacher, TeacherOptions, open_teacher
from softlabels.teachers.listing import ListingTeacher

TEXTS = (
    "It is a truth universally acknowledged.",
    "A short one.",
    "However little known the feelings or views of such a man may be on his first entering a neighbourhood.",
)
CLOSE = 1e-3
"""Of logits, as a share of their spread: whatever else is in a batch, in float32."""


def check_teacher(
    spec: str,
    *,
    rows: Sequence[InputRow] | None = None,
    seq_len: int = 64,
    options: TeacherOptions | None = None,
) -> None:
    """Check a registered teacher.

    Args:
        spec: as `--teacher` takes it, `NAME:ARGUMENT`.
        rows: of its domain; None: of a causal LM, made from some texts by its own tokenizer.
        seq_len: tokens of such a row, at most.
        options: how to run it.

    Raises:
        AssertionError: says which part of the contract is broken.
        ConfigError, TeacherError: it cannot be opened.
    """
    teacher = open_teacher(spec, options or TeacherOptions())
    v = teacher.record.vocab_size
    assert spec.startswith(teacher.record.spec.partition(":")[0]), (
        f"{spec}: records that it is {teacher.record.spec!r}"
    )
    if rows is None:
        assert teacher.tokenizer.files(), f"{spec}: its tokenizer has no files for the store"
        rows = _rows(teacher, seq_len)
    if teacher.listing is not None:
        _check_lists(spec, teacher.listing, rows)
        return
    together = _logits(spec, teacher, rows)
    n = sum(r.n for r in rows)
    assert together.shape == (n, v), f"{spec}: gives {tuple(together.shape)}, expected {(n, v)}"
    assert bool(together.isfinite().all()), f"{spec}: gives logits that are not finite"
    again = _logits(spec, teacher, rows)
    assert torch.equal(together, again), f"{spec}: gives other logits the second time"
    alone = torch.cat([_logits(spec, teacher, [row]) for row in rows])
    _close(spec, alone, together, "a row alone and beside others")
    if all(isinstance(r, Row) for r in rows):
        apart = [part for row in rows for part in _documents(row) if part.n]
        of_documents = torch.cat([_logits(spec, teacher, [row]) for row in apart])
        _close(spec, of_documents, together, "a document alone and in a row with others")


class _Texts(Corpus):
    spec = "text:made-up"

    def documents(self) -> Iterator[Document]:
        """The texts."""
        return (Document(where=f"text {i}", text=t) for i, t in enumerate(TEXTS))


def _rows(teacher: Teacher, seq_len: int) -> list[Row]:
    v = teacher.record.vocab_size
    placed = pack([_Texts()], teacher.tokenizer, seq_len=seq_len, vocab_size=v)
    return [row for _, row in placed]


def _logits(spec: str, teacher: Teacher, rows: Sequence[InputRow]) -> Tensor:
    """All chunks; each is overwritten as soon as it was copied, as an estimator may."""
    parts = []
    for chunk in teacher.logits(rows):
        assert chunk.dtype == torch.float32, f"{spec}: gives {chunk.dtype}, expected float32"
        assert chunk.dim() == 2, f"{spec}: gives chunks with {chunk.dim()} axes, expected [n, V]"
        assert not chunk.requires_grad, f"{spec}: gives logits with gradients; use torch.no_grad"
        parts.append(chunk.cpu().clone())
        chunk.fill_(torch.nan)
    return torch.cat(parts) if parts else torch.zeros(0, teacher.record.vocab_size)


def _documents(row: Any) -> list[Row]:
    """Each document's piece of a row, as a row of its own."""
    ends = np.cumsum(row.segment_lengths)
    return [
        Row(
            input_ids=row.input_ids[end - length : end],
            segment_lengths=np.array([length], np.int32),
            documents=row.documents[i : i + 1],
            label_mask=row.label_mask[end - length : end],
        )
        for i, (length, end) in enumerate(zip(row.segment_lengths, ends, strict=True))
    ]


def _check_lists(spec: str, teacher: ListingTeacher, rows: Sequence[InputRow]) -> None:
    k = 4
    teacher.check_k(k)
    ids, logp, label_logp = (np.concatenate(x) for x in zip(*teacher.listed(rows, k), strict=True))
    n, v = sum(r.n for r in rows), teacher.record.vocab_size
    assert ids.shape == logp.shape == (n, k), f"{spec}: lists {ids.shape}, expected {(n, k)}"
    assert label_logp.shape == (n,), f"{spec}: gives {label_logp.shape} labels, expected {(n,)}"
    assert 0 <= ids.min() <= ids.max() < v, f"{spec}: lists an id outside 0..{v - 1}"
    assert (np.diff(logp, axis=1) <= 0).all(), f"{spec}: does not list the most probable id first"
    labels = np.concatenate([r.labels for r in rows])
    where = ids == labels[:, None]
    assert np.allclose(logp[where], label_logp[where.any(axis=1)], atol=1e-4), (
        f"{spec}: a label's log-probability is not the one that is listed"
    )


def _close(spec: str, found: Tensor, expected: Tensor, what: str) -> None:
    slack = CLOSE * float(expected.std())
    error = float((found - expected).abs().max()) if len(found) else 0.0
    assert error <= slack, (
        f"{spec}: {what} have logits that differ by {error:.4g}, more than {slack:.4g}"
    )
