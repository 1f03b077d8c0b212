"""`diff`: what two stores have in common, and how far apart their targets are there.

Rows are the same if their inputs are (`input_digest`), wherever they stand. At the positions of rows that both
have, targets are compared at every temperature that both are exact at:

- the divergence KL(A || B), of the ids that both keep and of everything else as one outcome: what the two files
  say, hence at most the divergence of the two teachers;
- whether the likeliest id is the same;
- the largest difference of a log-probability of an id that both keep.

A random sample is no distribution, so it has no divergence: only rows and likeliest ids count.

Memory: 16 bytes and a number for each row of B, one shard of A, and one of B at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.algebra.sources import checked_shards
from softlabels.core.progress import Reporter, Silent
from softlabels.core.targets import SoftTargets
from softlabels.errors import PairingError
from softlabels.format.shard import StoredRow
from softlabels.store.reader import Store, open_store

Float64 = npt.NDArray[np.float64]


@dataclass(kw_only=True)
class Difference:
    """What `diff` found."""

    rows: tuple[int, int]
    """Of A and of B."""
    common: int = 0
    """Rows of A that B has, too."""
    positions: int = 0
    """Of the common rows, with a soft target in both."""
    only_soft: tuple[int, int] = (0, 0)
    """Positions of the common rows with a soft target in A only, in B only."""
    top1: int = 0
    """Positions at which the likeliest id is the same."""
    temperatures: list[float] = field(default_factory=list)
    """At which both are exact."""
    kl: list[float] = field(default_factory=list)
    """Sum over positions of KL(A || B), at each; empty if one is a sample; infinite where A gives mass to what B
    says has none."""
    largest: list[float] = field(default_factory=list)
    """Largest difference of log-probability, at each."""
    same_content: bool = False
    """Whether the content digests are equal: the same bytes, hence the same targets."""

    def to_dict(self) -> dict[str, Any]:
        """Means over positions, for JSON."""
        n = max(self.positions, 1)
        return {
            "rows_a": self.rows[0],
            "rows_b": self.rows[1],
            "rows_common": self.common,
            "rows_only_a": self.rows[0] - self.common,
            "positions": self.positions,
            "positions_soft_only_a": self.only_soft[0],
            "positions_soft_only_b": self.only_soft[1],
            "top1_agreement": self.top1 / n if self.positions else None,
            "temperatures": self.temperatures,
            "kl": [_mean(x, n) for x in self.kl] if self.positions and self.kl else None,
            "largest_logp_difference": self.largest if self.positions else None,
            "same_content": self.same_content,
        }


def diff(a: Path | str, b: Path | str, *, reporter: Reporter | None = None) -> Difference:
    """Compare two stores.

    Raises:
        PairingError: they are of different tokenizers, so equal ids mean nothing.
        StoreError: one is damaged.
    """
    report = reporter or Silent()
    first, second = open_store(a, cached_shards=1), open_store(b, cached_shards=1)
    identities = [s.manifest.identity for s in (first, second)]
    if identities[0].tokenizer.sha256 != identities[1].tokenizer.sha256:
        raise PairingError(
            f"{first.path} and {second.path} are of different tokenizers, so the same id means another token; compare "
            "stores of one tokenizer"
        )
    grids = [set(i.targets.temperatures) for i in identities]
    grid = sorted(grids[0] & grids[1])
    samples = any(i.targets.keeps.sample for i in identities)
    found = Difference(
        rows=(len(first), len(second)),
        temperatures=grid,
        kl=[] if samples else [0.0] * len(grid),
        largest=[] if samples else [0.0] * len(grid),
        same_content=first.digest == second.digest,
    )
    report.stage("check", len(second.manifest.shards), "shards")
    digests, order = _index(second, report)
    report.stage("compare", len(first.manifest.shards), "shards")
    for i in range(len(first.manifest.shards)):
        for mine, theirs in _pairs(first, i, second, digests, order):
            found.common += 1
            _compare(found, mine.targets, theirs.targets)
        report.advance(1)
    return found


def _index(store: Store, report: Reporter) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.int64]]:
    """The rows' digests, ascending, and the numbers of those rows."""
    data = b"".join(shard.digests for shard in checked_shards(store, report))
    digests = np.frombuffer(data, np.dtype("S16"))
    order = np.argsort(digests, kind="stable")
    return digests[order], order


def _pairs(
    a: Store, index: int, b: Store, digests: npt.NDArray[np.bytes_], order: npt.NDArray[np.int64]
) -> Iterator[tuple[StoredRow, StoredRow]]:
    """Rows of a shard of A with the first row of B that has the same inputs, in the order of B."""
    shard = a.read_shard(index)
    mine = np.frombuffer(b"".join(r.digest() for r in shard.rows), np.dtype("S16"))
    at = np.searchsorted(digests, mine)
    inside = np.minimum(at, len(digests) - 1)
    there = np.flatnonzero(digests[inside] == mine)
    rows = order[inside[there]]
    for place in np.argsort(rows, kind="stable"):
        yield shard.row(int(there[place])), b.row(int(rows[place]))


def _compare(found: Difference, a: SoftTargets, b: SoftTargets) -> None:
    soft = a.soft & b.soft
    found.only_soft = (
        found.only_soft[0] + int((a.soft & ~b.soft).sum()),
        found.only_soft[1] + int((b.soft & ~a.soft).sum()),
    )
    if not soft.any():
        return
    a, b = a[soft], b[soft]
    found.positions += a.n
    top = [np.take_along_axis(t.ids, t.gaps.argmin(axis=1)[:, None], axis=1) for t in (a, b)]
    found.top1 += int((top[0] == top[1]).sum())
    if not found.kl and not found.largest:
        return
    (keys_a, slots_a), (keys_b, slots_b) = _keys(a), _keys(b)
    _, at_a, at_b = np.intersect1d(keys_a, keys_b, assume_unique=True, return_indices=True)
    (n, i), (_, j) = slots_a[:, at_a], slots_b[:, at_b]
    for g, temperature in enumerate(found.temperatures):
        p = a.log_probs(temperature)[n, i].astype(np.float64)
        q = b.log_probs(temperature)[n, j].astype(np.float64)
        found.kl[g] += _kl(p, q, _elsewhere(a, n, i, temperature), _elsewhere(b, n, j, temperature))
        found.largest[g] = max(found.largest[g], float(np.abs(p - q).max(initial=0.0)))


def _mean(total: float, count: int) -> float | None:
    """Of a sum that is not below 0 but for rounding; JSON has no infinity."""
    return max(0.0, total) / count if math.isfinite(total) else None


def _keys(t: SoftTargets) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """A number for each kept id of each position, `[L]`, and where it is, `[2, L]`."""
    at = np.array(np.nonzero(t.kept))
    return at[0] * np.int64(2**31) + t.ids[at[0], at[1]], at


def _elsewhere(
    t: SoftTargets, at: npt.NDArray[np.int64], slots: npt.NDArray[np.int64], temperature: float
) -> Float64:
    """Mass `[N]` that is not on these slots: of the tail, and of ids that only one store keeps."""
    alone = t.kept.copy()
    alone[at, slots] = False
    kept = np.where(alone, t.probs(temperature).astype(np.float64), 0.0).sum(axis=1)
    return np.asarray(kept + t.tail(temperature))


def _kl(p: Float64, q: Float64, rest_a: Float64, rest_b: Float64) -> float:
    """Sum of KL over positions, of common ids and the rest as one outcome."""
    common = float((np.exp(p) * (p - q)).sum())
    some = rest_a > 0  # nothing in A, nothing to compare
    with np.errstate(divide="ignore"):
        rest = rest_a[some] * (np.log(rest_a[some]) - np.log(rest_b[some]))
    return common + float(rest.sum())
