"""From a teacher's hidden states or logits to what a store keeps of them, where the teacher runs.

This is all that has to run beside a model, in an engine's worker for instance: it needs torch and the estimators, and
knows no rows, stores or engines. The pass that shows whether logits are numbers also finds what the estimator wants
first (`estimators/scan.py`).

A logit of `-inf` (or below -1e30, as masks are written) means probability 0 at every temperature: such an id is never
kept and adds nothing to the tail. NaN, `+inf`, and a position at which every id is impossible are refused.

Shapes: n positions of a chunk, N of all, K kept ids, G temperatures, D width of the body, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from softlabels.core.rows import UNLABELLED, InputRow
from softlabels.errors import NonFiniteError
from softlabels.estimators import Estimator
from softlabels.estimators.entropy import whole
from softlabels.estimators.scan import scan
from softlabels.estimators.vocab_parallel import VocabPart, summed, taken, vocab_size

if TYPE_CHECKING:
    from torch import Tensor

IMPOSSIBLE = -1e30
"""A logit at or below it is one of probability 0: its `exp` is 0 at any temperature below 1e28."""


class Job(NamedTuple):
    """What is wanted of each position."""

    estimator: Estimator
    summarise: bool = True
    """Whether the whole distribution is looked at, too: the label's log-probability, the entropy, the likeliest id."""


class Kept(NamedTuple):
    """What is kept of n positions, on the device of the logits."""

    ids: Tensor
    """`[n, K] int64`, unique in each row except where `logp` is `-inf`."""
    logp: Tensor
    """`[n, K] float32`, nats: as the estimator's `Selection` has it; `-inf`: not kept."""
    log_odds: Tensor
    """`[n, G] float32`: the tail's log-odds at each temperature of the grid; `-inf`: no other id has any mass."""
    label_logp: Tensor
    """`[n] float32`, nats, at T=1: `-inf` if it is impossible; NaN: there is no label, or the selection is at another
    temperature and nothing was summarised."""
    impossible: Tensor
    """`[n] int64`: ids of probability 0 at each position."""
    entropy: Tensor | None = None
    """`[n] float32`, nats, if it was asked for; NaN: not known."""
    top: Tensor | None = None
    """`[n] int64`, if it was asked for: the likeliest id."""


class BadLogitError(NonFiniteError):
    """A logit that is no number.

    Args:
        index: of the position, among those that were looked at.
        shown: what was found there.
    """

    def __init__(self, index: int, shown: str) -> None:
        super().__init__(f"position {index}: logit {shown}")
        self.index, self.shown = index, shown


def keep(
    hidden: Tensor,
    labels: Tensor,
    uniforms: Tensor | None,
    job: Job,
    to_logits: Callable[[Tensor], Tensor],
    *,
    head_bytes: int,
    vocab_size: int,
    part: VocabPart | None = None,
) -> Iterator[Kept]:
    """What is kept of N positions, as many at a time as `head_bytes` of logits hold.

    Args:
        hidden: `[N, D]`: what the model's head is given.
        labels: `[N] int64`; `UNLABELLED`: none.
        uniforms: `[N, U] float64` in [0, 1), or None if the estimator takes none.
        job: what is wanted.
        to_logits: the model's head, from `[n, D]` to `[n, V] float32`, which may be overwritten.
        head_bytes: of logits that exist at a time; one position at least.
        vocab_size: of `to_logits`.
        part: which ids `to_logits` gives, if not all: then every process finds the same.

    Raises:
        BadLogitError: a logit that is NaN or `+inf`.
    """
    each = max(1, head_bytes // (4 * vocab_size))
    chunks = (to_logits(part) for part in torch.split(hidden, each) if len(part))
    try:
        yield from keep_chunks(chunks, labels, uniforms, job, part)
    except BadLogitError:
        for _ in chunks:  # where a head is sharded, its other processes wait for these
            pass
        raise


def keep_chunks(
    chunks: Iterable[Tensor],
    labels: Tensor,
    uniforms: Tensor | None,
    job: Job,
    part: VocabPart | None = None,
) -> Iterator[Kept]:
    """What is kept of logits that come in chunks `[n, V] float32`, which are overwritten; the rest as in `keep`.

    Raises:
        BadLogitError: a logit that is NaN or `+inf`.
    """
    done = 0
    for logits in chunks:
        here = slice(done, done + len(logits))
        try:
            kept = keep_logits(
                logits, labels[here], None if uniforms is None else uniforms[here], job, part
            )
        except BadLogitError as e:
            raise BadLogitError(done + e.index, e.shown) from None
        yield kept
        done = here.stop
    assert done == len(labels), f"the teacher gave {done} positions for {len(labels)}"


def labels_of(rows: Sequence[InputRow]) -> Tensor:
    """`[N] int64`: of all positions, in order."""
    return torch.from_numpy(np.concatenate([r.labels for r in rows]).astype(np.int64))


def keep_logits(
    logits: Tensor,
    labels: Tensor,
    uniforms: Tensor | None,
    job: Job,
    part: VocabPart | None = None,
) -> Kept:
    """What is kept of `logits [n, V] float32`, which are overwritten; the rest as in `keep`.

    Raises:
        BadLogitError: a logit that is NaN or `+inf`.
    """
    sought = job.estimator.sought
    first = None if sought is None else scan(logits, sought, part)
    impossible = _exclude(logits, logits.sum(dim=1) if first is None else first.totals, part)
    if impossible is not None and sought is not None:
        first = scan(logits, sought, part)  # of what is now written there
    own = labels.to(logits.device)
    label_logits = taken(logits, own.clamp(min=0)[:, None], part)[:, 0]
    given = job.estimator.gives_whole
    seen = (
        whole(logits, part) if job.summarise and not given else None
    )  # before `select` overwrites them
    drawn = None if uniforms is None else uniforms.to(logits.device)
    more: dict[str, Any] = {} if part is None else {"part": part}
    if first is not None:
        more["first"] = first
    selection = job.estimator.select(logits, drawn, **more)
    seen = selection.whole if given else seen
    if seen is not None:
        label_logp = seen.logp(label_logits)
    elif selection.reference == 1.0:
        label_logp = label_logits - selection.log_norm
    else:
        label_logp = torch.full_like(label_logits, torch.nan)
    logp, log_odds = selection.logp, selection.log_odds
    if impossible is None:
        impossible = torch.zeros_like(own)
    else:
        logp = _zero_below(logp, selection.reference)
        columns = zip(log_odds.unbind(1), job.estimator.temperatures, strict=True)
        log_odds = torch.stack([_zero_below(odds, t) for odds, t in columns], dim=1)
        label_logp = _zero_below(label_logp, 1.0)
    kept = Kept(
        ids=selection.ids,
        logp=logp,
        log_odds=log_odds,
        label_logp=label_logp.masked_fill(own == UNLABELLED, torch.nan),
        impossible=impossible,
    )
    if seen is None or not job.summarise:
        return kept
    return kept._replace(entropy=seen.entropy.float(), top=seen.top)


def _exclude(logits: Tensor, totals: Tensor, part: VocabPart | None) -> Tensor | None:
    """Write `IMPOSSIBLE` for each logit at or below it, and count them, `[n]`; None: there are none.

    `totals [n]` tell: a sum is finite, and no lower than its lowest part, only if every logit is.
    """
    odd = ~(totals.isfinite() & (totals > IMPOSSIBLE))
    if not bool(summed(odd.any().long(), part)):
        return None
    low = logits <= IMPOSSIBLE
    kinds = (logits.isnan(), logits.isposinf(), low)
    # Where the vocabulary is dealt out, all processes refuse the same.
    nans, infinite, lows = summed(torch.stack([k.sum(dim=1) for k in kinds]), part).unbind()
    for bad in ((nans + infinite) > 0, lows == vocab_size(logits, part)):
        if bool(bad.any()):
            index = int(bad.nonzero()[0, 0])
            shown = "nan" if nans[index] else "inf" if infinite[index] else "-inf of every id"
            raise BadLogitError(index, shown)
    logits.masked_fill_(low, IMPOSSIBLE)
    over = summed((~logits.sum(dim=1).isfinite()).long(), part) > 0
    if bool(over.any()):
        raise BadLogitError(int(over.nonzero()[0, 0]), "and others, whose sum is beyond float32")
    return lows


def _zero_below(logp: Tensor, temperature: float) -> Tensor:
    """`-inf` for what an estimator made of `IMPOSSIBLE`."""
    return logp.masked_fill(logp < IMPOSSIBLE / (2 * temperature), -torch.inf)
