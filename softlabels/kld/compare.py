"""The pass: every row of a reference through one candidate, which is given the reference's own ids.

The flow, for each shard of the store (each is read, checked to the byte, and let go):
 1. rows in batches through the candidate, whose logits come in chunks of a byte budget;
 2. a chunk through the reference's bins (`bins.py`): 10 numbers a position, and the logits are forgotten;
 3. where the row is in the wide store, the same chunk through that one's bins, too.

No reference model is run, and nothing of size V outlives a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softlabels.capture import IMPOSSIBLE
from softlabels.core.rows import UNLABELLED, InputRow
from softlabels.core.targets import SoftTargets
from softlabels.errors import NonFiniteError, PairingError
from softlabels.format.identity import EncodingRecord
from softlabels.format.shard import StoredRow
from softlabels.kld import bins
from softlabels.kld.positions import Answered, Bool, Float64, Int64, Said
from softlabels.kld.said import label_logp, places, rounding, slack, tail_entropy, tops
from softlabels.kld.tails import features, within
from softlabels.kld.work import Pending, Work, joined_pairs
from softlabels.store.reader import Store
from softlabels.teachers import Teacher
from softlabels.teachers.listing import Listed


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """A candidate on a reference."""

    said: Said
    answered: Answered
    beyond: int
    """Kept ids that the candidate's head lacks, beyond the tokenizer's: they count as tail."""


class Wide:
    """Rows of a reference with more ids, found by their digest."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._place: dict[bytes, int] = {}
        for i, shard in enumerate(store.manifest.shards):
            rows = store.read_shard(i, targets=False).rows
            self._place |= {row.digest(): shard.start_row + r for r, row in enumerate(rows)}

    def targets(self, row: InputRow) -> SoftTargets | None:
        """Of a row; None: it is not among them."""
        place = self._place.get(row.digest())
        return None if place is None else self.store.row(place).targets


def check_reference(store: Store) -> None:
    """Refuse a store that cannot be compared with.

    Raises:
        PairingError: says why.
    """
    identity = store.manifest.identity
    store.need_inputs()
    if identity.targets.keeps.sample:
        raise PairingError(
            f"{store.path}: holds samples (`{identity.targets.estimator}`), of which no divergence of a position can "
            "be taken; make a reference with `softlabels reference`, or build one with --estimator topk"
        )
    if store.manifest.statistics.soft_of(identity.corpus.positions) == 0:
        raise PairingError(f"{store.path}: has no soft target at all; nothing can be compared")


@torch.no_grad()
def compare(
    store: Store,
    teacher: Teacher,
    *,
    wide: Wide | None = None,
    limit_rows: int | None = None,
    batch_tokens: int = 2048,
    list_k: int | None = None,
    work: Work | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Compared:
    """Compare one candidate with a reference.

    Args:
        store: the reference, checked by `check_reference`.
        teacher: the candidate, checked by `check_same_ids`.
        wide: rows with more ids.
        limit_rows: the first so many only.
        batch_tokens: tokens of a forward pass, padding included.
        list_k: ids to ask of a candidate that lists.
        work: where what is finished is kept, opened; rows that it holds are not compared again.
        advance: told of the number of rows that were done.

    Raises:
        NonFiniteError: a logit is NaN or infinite; names the row.
        PairingError: none of the rows has a soft target.
    """
    run = _Pass(store, teacher, wide, list_k or store.manifest.identity.targets.k)
    rows, begin = min(len(store), limit_rows or len(store)), 0 if work is None else work.end
    pending, before = Pending(work), 0 if work is None else sum(p.beyond for p in work.parts)
    if begin:
        advance(begin)
    for batch in _batches(store, begin, rows, batch_tokens):
        end = batch[-1].index + 1
        found = list(run.batch(batch))
        pending.finished(found, end=end, beyond=run.beyond, last=end == rows)
        advance(len(batch))
    said, answered = joined_pairs(pending.all())
    if said is None or answered is None:
        raise PairingError(
            f"{store.path}: none of the rows that were compared has a soft target; give more --limit-rows"
        )
    return Compared(said=said, answered=answered, beyond=before + run.beyond)


def _batches(store: Store, begin: int, end: int, tokens: int) -> Iterator[list[StoredRow]]:
    batch: list[StoredRow] = []
    width = 0
    for index in range(begin, end):
        stored = store.row(index)
        wider = max(width, stored.row.size)
        if batch and wider * (len(batch) + 1) > tokens:
            yield batch
            batch, wider = [], stored.row.size
        batch.append(stored)
        width = wider
    if batch:
        yield batch


class _Batch:
    """Some rows, their positions in order, and which of these are in a wide row."""

    def __init__(self, rows: Sequence[StoredRow], wide: Wide | None) -> None:
        self.rows = [stored.row for stored in rows]
        self.indices = np.repeat([s.index for s in rows], [s.row.n for s in rows])
        self.targets = SoftTargets.concatenate([stored.targets for stored in rows])
        self.labels = np.concatenate([row.labels for row in self.rows]).astype(np.int64)
        self.document, self.context = places(self.rows)
        found = [None if wide is None else wide.targets(row) for row in self.rows]
        self.wide = SoftTargets.concatenate(known) if (known := [w for w in found if w]) else None
        at, done = [], 0
        for row, targets in zip(self.rows, found, strict=True):
            at.append(np.full(row.n, -1) if targets is None else np.arange(done, done + row.n))
            done += 0 if targets is None else row.n
        self.wide_place = np.concatenate(at).astype(np.int64)
        """`[N]`: of each position its place in `wide`; -1: none."""


class _Pass:
    """One candidate on one reference."""

    def __init__(self, store: Store, teacher: Teacher, wide: Wide | None, list_k: int) -> None:
        self._teacher, self._wide, self._list_k = teacher, wide, list_k
        self._identity, self._where = store.manifest.identity, str(store.path)
        self._wide_encoding = None if wide is None else wide.store.manifest.identity.encoding
        self.beyond = 0
        if teacher.listing is not None:
            teacher.listing.check_k(list_k)
            self._wide = None  # of a list's tail nothing is known

    def batch(self, rows: Sequence[StoredRow]) -> Iterator[tuple[Said, Answered]]:
        """What both say at the soft positions of some rows, a chunk at a time."""
        batch = _Batch(rows, self._wide)
        soft, done = batch.targets.soft, 0
        listing = self._teacher.listing
        if listing is not None:
            for listed in listing.listed(batch.rows, self._list_k):
                here = np.flatnonzero(soft[done : done + len(listed.ids)])
                if len(here):
                    chosen = Listed(listed.ids[here], listed.logp[here], listed.label_logp[here])
                    reference = self._reference(
                        batch.targets[here + done], batch.labels[here + done]
                    )
                    yield self._judge(batch, here + done, *bins.see_listed(chosen, reference))
                done += len(listed.ids)
        else:
            for logits in self._teacher.logits(batch.rows):
                here = np.flatnonzero(soft[done : done + len(logits)])
                if len(here):
                    whole = len(here) == len(logits)
                    picked = logits if whole else logits[torch.from_numpy(here).to(logits.device)]
                    yield self._dense(batch, here + done, picked)
                done += len(logits)
        assert done == batch.targets.n, f"{done} positions of {batch.targets.n}"

    def _dense(self, batch: _Batch, at: Int64, logits: Tensor) -> tuple[Said, Answered]:
        """One chunk of logits `[n, V]`, at the positions `at [n]` of the batch."""
        impossible = self._check(batch, at, logits)
        home = logits.device
        wide = None
        in_wide = np.flatnonzero(batch.wide_place[at] >= 0)
        if len(in_wide) and batch.wide is not None:
            targets = batch.wide[batch.wide_place[at][in_wide]]
            also = self._reference(targets, batch.labels[at][in_wide], home, self._wide_encoding)
            seen = bins.see(logits[torch.from_numpy(in_wide).to(home)], also)
            measured = within(also.log_p, seen.log_q, also.rounding, batch.targets.k)
            wide = (in_wide, _array(measured))
        reference = self._reference(batch.targets[at], batch.labels[at], home)
        seen = bins.see(logits, reference)
        return self._judge(batch, at, seen, reference, impossible=impossible, wide=wide)

    def _reference(
        self,
        targets: SoftTargets,
        labels: Int64,
        device: torch.device | None = None,
        encoding: EncodingRecord | None = None,
    ) -> bins.Reference:
        """What the reference says, in ids that the candidate has."""
        encoding = encoding or self._identity.encoding
        off = slack(targets, encoding)
        log_p, top, width = targets.log_bins(1.0), tops(targets), self._teacher.record.vocab_size
        top = np.where(top < width, top, -1)
        ids, kept = targets.ids.astype(np.int64), targets.kept
        lacks = kept & (ids >= width)
        if lacks.any():  # padding of a head, which no text holds
            self.beyond += int(lacks.sum())
            lost = np.logaddexp.reduce(np.where(lacks, log_p[:, :-1], -np.inf), axis=1)
            log_p[:, -1] = np.logaddexp(log_p[:, -1], lost)
            log_p[:, :-1][lacks] = -np.inf
            off[:, -1] = np.maximum(off[:, -1], np.where(lacks, off[:, :-1], 0.0).max(1))
            kept = kept & ~lacks
            first = ids[np.arange(len(ids)), kept.argmax(1)]
            ids = np.where(kept, ids, first[:, None])
        held = {
            "ids": ids,
            "kept": kept,
            "log_p": log_p,
            "slack": off,
            "rounding": rounding(targets, encoding),
            "label": np.maximum(labels, 0),
            "top": top,
        }
        home = device or "cpu"
        return bins.Reference(
            **{n: torch.from_numpy(np.ascontiguousarray(a)).to(home) for n, a in held.items()}
        )

    def _judge(
        self,
        batch: _Batch,
        at: Int64,
        seen: bins.Seen,
        reference: bins.Reference,
        impossible: Bool | None = None,
        wide: tuple[Int64, Float64] | None = None,
    ) -> tuple[Said, Answered]:
        targets, labels = batch.targets[at], batch.labels[at]
        log_p, log_q = reference.log_p, seen.log_q
        vocab = max(self._identity.teacher.vocab_size, self._teacher.record.vocab_size)
        low, high = bins.accepted(reference, log_q, vocab)
        measured = np.full(len(at), np.nan)
        if wide is not None:
            measured[wide[0]] = wide[1]
        known = labels != UNLABELLED
        said = Said(
            row=batch.indices[at].astype(np.int64),
            document=batch.document[at],
            context=batch.context[at],
            label=labels,
            label_logp=label_logp(targets, labels),
            right=known & (tops(targets) == labels),
            tail=np.exp(_array(log_p[:, -1])),
        )
        least, most = bins.rounded(log_p, log_q, reference.slack)
        excess = bins.expected_excess(log_p, reference.rounding)
        answered = Answered(
            bins=_array(bins.divergence(log_p, log_q) - excess),
            least=_array(least),
            most=_array(most) + _hidden(reference, seen, targets),
            seen=_array(features(log_p, log_q)),
            within=measured,
            label_logp=np.where(known, _array(seen.label_logp), np.nan),
            same_top=_array(seen.same_top).astype(np.bool_),
            right=known & _array(seen.right).astype(np.bool_),
            impossible=np.zeros(len(at), np.bool_) if impossible is None else impossible,
            accept_low=_array(low),
            accept_high=_array(high),
        )
        return said, answered

    def _check(self, batch: _Batch, at: Int64, logits: Tensor) -> Bool:
        """Which positions have ids of probability 0; the same pass finds what is no number."""
        lowest, highest = logits.aminmax(dim=1)
        good = highest.isfinite() & ~lowest.isnan() & (highest > IMPOSSIBLE)
        if not bool(good.all()):
            row = int(batch.indices[at][int(good.int().argmin())])
            raise NonFiniteError(
                f"{self._teacher.record.spec}: a logit is NaN or infinite in row {row} of {self._where}; nothing can "
                "be said of such a model. Try --dtype float32, and check its weights"
            )
        return np.asarray((lowest <= IMPOSSIBLE).cpu().numpy())


def _array(values: Tensor) -> Float64:
    return np.asarray(values.cpu().numpy())


def _hidden(reference: bins.Reference, seen: bins.Seen, targets: SoftTargets) -> Float64:
    """`[n]`: what the gap is at most (`bins.py`), whatever the tail is and was rounded to."""
    log_p, off = _array(reference.log_p), _array(reference.slack)
    tail = np.minimum(np.exp(log_p[:, -1] + off[:, -1]), 1.0)
    apart = _array(seen.spread) - 2 * tail_entropy(log_p, off, targets)
    with np.errstate(invalid="ignore"):
        return np.where(tail > 0, tail * np.maximum(apart, 0.0), 0.0)
