"""Measuring a store: its teacher runs again on some of the rows, and each stored target is compared with what it says.

The flow:
 1. choose rows by the seed, as many as hold about the asked number of soft positions;
 2. load the teacher, and refuse another than the store's;
 3. some rows at a time: the teacher's dense logits, in float64, against the stored targets (`fidelity.py`);
 4. means over all positions, with intervals from resampling rows;
 5. unless told otherwise, put the record into the manifest, and into the card that is made from it.

The inputs of the rows are in the store, so no corpus is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import msgspec
import numpy as np
import torch

import softlabels
from softlabels.builder.config import MeasureConfig
from softlabels.builder.fidelity import Comparison, Resampling
from softlabels.capture import IMPOSSIBLE
from softlabels.core.progress import Reporter, Silent
from softlabels.core.targets import SoftTargets
from softlabels.errors import (
    FidelityError,
    NonFiniteError,
    PairingError,
    StoreError,
    TeacherError,
    TokenizerError,
)
from softlabels.format.certificate import Fidelity
from softlabels.format.identity import Identity
from softlabels.format.manifest import SIGNATURE
from softlabels.format.shard import StoredRow
from softlabels.making.amend import amend
from softlabels.store.demand import Demand
from softlabels.store.reader import Store, open_store
from softlabels.teachers import MIB, Teacher, TeacherOptions, open_teacher

BATCH_TOKENS = 2048
"""Of a forward pass of the teacher; a build's default, since other sums are rounded otherwise."""


def measure(
    path: Path | str,
    config: MeasureConfig,
    *,
    write: bool = True,
    reporter: Reporter | None = None,
    teacher: Teacher | None = None,
    demand: Demand | None = None,
) -> Fidelity:
    """Compare a sample of a store's targets with its teacher.

    Args:
        write: put the record into the manifest and the card.
        teacher: used instead of loading `config.teacher`.

    Raises:
        TeacherError, TokenizerError: not the teacher that made the store.
        StoreError: the store is damaged, or cannot be written to.
    """
    report = reporter or Silent()
    store = open_store(path, **asdict(demand or Demand()))
    if write and not os.access(store.folder, os.W_OK):
        raise StoreError(
            f"{store.path}: is not writable, so the record cannot be kept; use --no-write to measure only"
        )
    rows = _choose_rows(store, config)
    if teacher is None:
        teacher = open_teacher(config.teacher, _options(config, store, report))
    check_same_teacher(store.manifest.identity, teacher, report)
    fidelity = _compare(store, rows, teacher, config.seed, report)
    if write:
        amend(
            store.folder,
            lambda present: msgspec.structs.replace(present, fidelity=fidelity),
            content=store.manifest.content_digest,
        )
        if (store.folder / SIGNATURE).exists():
            report.notice(
                f"{store.path}: its signature is of the manifest as it was before, and must be renewed: "
                "`softlabels sign`"
            )
    return fidelity


def check_same_teacher(identity: Identity, teacher: Teacher, report: Reporter) -> None:
    """Refuse another model or tokenizer; mention another engine.

    Raises:
        TeacherError: other weights, or another vocabulary.
        TokenizerError: another tokenizer.
    """
    was, now = identity.teacher, teacher.record
    if now.weights_sha256 != was.weights_sha256 or now.vocab_size != was.vocab_size:
        raise TeacherError(
            f"{now.spec}: its weights are sha256 {now.weights_sha256[:12]}… with {now.vocab_size} ids; the store is of "
            f"{was.name}, {was.weights_sha256[:12]}… with {was.vocab_size}; give --teacher the model that made it"
        )
    if teacher.tokenizer.record.sha256 != identity.tokenizer.sha256:
        raise TokenizerError(
            f"{now.spec}: its tokenizer is sha256 {teacher.tokenizer.record.sha256[:12]}…, the store's is "
            f"{identity.tokenizer.sha256[:12]}…; give --teacher the folder with the tokenizer that made it"
        )
    for what in ("engine", "device", "dtype"):
        before, after = getattr(was, what), getattr(now, what)
        if before != after:
            report.notice(
                f"{what}: {after}, the store was made with {before}; part of the differences may come of that"
            )


def check_gate(fidelity: Fidelity, max_kl: float, *, where: str) -> None:
    """Refuse a store that is further from its teacher than `max_kl` nats, at any temperature.

    The figure is the upper end of the interval of KL(teacher‖stored), tail spread evenly. Of a random sample,
    of whose single positions no KL can be taken, it is the excess of `SampleCheck`, whichever way it errs.

    Raises:
        FidelityError: names the temperature, the figure and the bound.
    """
    for at in fidelity.temperatures:
        t = f"{where}: at T={at.temperature:g}"
        if at.sample is None:
            kl = at.kl
            assert kl is not None
            if kl.mean is None:
                raise FidelityError(
                    f"{t} KL(teacher‖stored) is infinite: the store gives no probability to ids that the teacher gives "
                    "some (a tail that was left out?); build it again with this softlabels"
                )
            name, bound = "KL(teacher‖stored)", kl.mean if kl.high is None else kl.high
            mean = kl.mean
        else:
            excess = at.sample.excess
            assert excess.mean is not None  # of finite weights and log-probabilities
            name, mean = (
                "the sample's excess of cross-entropy over the teacher's entropy",
                excess.mean,
            )
            bound = max(abs(v) for v in (excess.mean, excess.low, excess.high) if v is not None)
        if not bound <= max_kl:
            raise FidelityError(
                f"{t} {name} is {mean:.4g} nats, by resampling up to {bound:.4g}; --max-kl allows {max_kl:g}. Measure "
                "more --positions if only the interval is too wide; else build the store again (more --k, or the right "
                "teacher and tokenizer)"
            )


def _options(config: MeasureConfig, store: Store, report: Reporter) -> TeacherOptions:
    identity = store.manifest.identity
    record = identity.teacher
    return TeacherOptions(
        domain=identity.domain,
        device=config.device,
        dtype=record.dtype if config.dtype == "auto" else config.dtype,
        head_bytes=None if config.head_mib is None else config.head_mib * MIB,
        notice=report.notice,
    )


def _choose_rows(store: Store, config: MeasureConfig) -> list[int]:
    """Row numbers, ascending, so that each shard is decoded once."""
    manifest = store.manifest
    soft = manifest.statistics.soft_of(manifest.identity.corpus.positions)
    if soft == 0:
        raise PairingError(
            f"{store.path}: has no soft target at all (hard labels only); there is nothing to compare"
        )
    wanted = -(-config.positions * len(store) // soft)
    key = np.array([config.seed, len(store)], np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, 4]))
    some = rng.choice(len(store), size=min(len(store), max(2, wanted)), replace=False)
    return sorted(int(r) for r in some)


@torch.no_grad()
def _compare(
    store: Store, rows: list[int], teacher: Teacher, seed: int, report: Reporter
) -> Fidelity:
    identity = store.manifest.identity
    comparisons = [
        Comparison(t, identity.targets.keeps, identity.encoding, rows=len(rows))
        for t in identity.targets.temperatures
    ]
    counts: list[int] = []
    report.stage("measure", len(rows), "rows")
    for batch in _batches(store, rows):
        _compare_batch(batch, len(counts), teacher, seed, comparisons)
        counts += [int(stored.targets.soft.sum()) for stored in batch]
        report.advance(len(batch))
    positions = sum(counts)
    if positions == 0:
        raise PairingError(
            f"{store.path}: none of the {len(rows)} rows that were chosen has a soft target; give more --positions, or "
            "another --seed"
        )
    resampling = Resampling(np.array(counts, np.float64), seed)
    return Fidelity(
        measured_by=f"softlabels {softlabels.__version__}",
        engine=teacher.record.engine,
        device=teacher.record.device,
        dtype=teacher.record.dtype,
        seed=seed,
        rows=len(rows),
        positions=positions,
        temperatures=[c.result(resampling) for c in comparisons],
    )


def _batches(store: Store, rows: list[int]) -> Iterator[list[StoredRow]]:
    """Rows that go through the teacher together: at most `BATCH_TOKENS`, or one."""
    batch: list[StoredRow] = []
    size = 0
    for index in rows:
        stored = store.row(index)
        if batch and size + stored.row.size > BATCH_TOKENS:
            yield batch
            batch, size = [], 0
        batch.append(stored)
        size += stored.row.size
    yield batch


def _compare_batch(
    batch: list[StoredRow], first: int, teacher: Teacher, seed: int, comparisons: list[Comparison]
) -> None:
    """Add some rows to all comparisons; the first of them is the `first` that is measured."""
    targets = SoftTargets.concatenate([stored.targets for stored in batch])
    labels = np.concatenate([stored.row.labels for stored in batch]).astype(np.int64)
    place = np.repeat(np.arange(len(batch)), [stored.targets.n for stored in batch])
    noise = [
        np.random.Generator(
            np.random.Philox(key=np.array([seed, stored.index], np.uint64), counter=[0, 0, 0, 3])
        )
        for stored in batch
    ]
    done, soft = 0, targets.soft
    for chunk in teacher.logits([stored.row for stored in batch]):
        here = np.flatnonzero(soft[done : done + len(chunk)])
        where, done = here + done, done + len(chunk)
        if not len(here):
            continue
        home = torch.device("cpu") if chunk.device.type == "mps" else chunk.device  # has no float64
        logits = chunk.to(home)[torch.from_numpy(here).to(home)].double()
        low = logits <= IMPOSSIBLE  # probability 0, as the build takes it
        logits.masked_fill_(low, IMPOSSIBLE)
        if not bool(logits.isfinite().all()) or bool(low.all(dim=1).any()):
            rows = sorted({batch[i].index for i in place[where]})
            raise NonFiniteError(
                f"{teacher.record.spec}: a logit is NaN or +inf, or all are -inf, in one of the rows {rows[0]} to "
                f"{rows[-1]}; nothing can be compared with it. Try --dtype float32, and check the teacher's weights"
            )
        drawn = np.concatenate(  # `[n, V]`, by NumPy, so that figures do not depend on the device
            [
                noise[i].standard_normal((int(n), logits.shape[1]), np.float32)
                for i, n in zip(*np.unique(place[where], return_counts=True), strict=True)
            ]
        )
        for c in comparisons:
            c.add(
                logits,
                torch.from_numpy(drawn).to(home),
                targets[where],
                torch.from_numpy(labels[where]).to(home),
                first + place[where],
            )
    assert done == len(soft), f"the teacher gave {done} positions for {len(soft)}"
