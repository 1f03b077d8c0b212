"""Made-up identities, rows and targets, for tests that need no teacher."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from softlabels.codecs import make_codec
from softlabels.core.kept import BUILT_IN
from softlabels.core.records import canonical
from softlabels.core.rows import Row
from softlabels.core.targets import SoftTargets
from softlabels.format.identity import (
    CorpusRecord,
    EncodingRecord,
    Identity,
    TargetRecord,
    TeacherRecord,
    TokenizerRecord,
)
from softlabels.format.manifest import Statistics

SHA = "0123456789abcdef" * 4


def identity_of(
    *,
    vocab_size: int = 300,
    temperatures: tuple[float, ...] = (1.0,),
    values: str = "float16",
    estimator: str = "topk",
    profile: str = "open",
    container: str = "parquet",
    k: int = 16,
    seed: int = 0,
) -> Identity:
    codec = make_codec(values)
    return Identity(
        domain="causal-lm",
        label_shift=1,
        teacher=TeacherRecord(
            spec="fake:none",
            name="none",
            revision=None,
            weights_sha256=SHA,
            dtype="float32",
            device="cpu",
            engine="tests",
            vocab_size=vocab_size,
            parameters=0,
        ),
        tokenizer=TokenizerRecord(sha256=SHA, vocab_size=vocab_size, special_ids={}),
        corpus=CorpusRecord(
            specs=["text:none"],
            fingerprint=SHA,
            seq_len=64,
            documents=1,
            rows=1,
            tokens=1,
            positions=1,
            skipped_empty=0,
            skipped_short=0,
            limit_rows=None,
        ),
        targets=TargetRecord(estimator=estimator, k=k, temperatures=list(temperatures), seed=seed),
        encoding=EncodingRecord(
            profile=profile,
            container=container,
            values=values,
            relative_error=codec.relative_error,
            absolute_error=codec.absolute_error(sample=BUILT_IN[estimator].sample),
        ),
        licence="unknown",
    )


STATISTICS = Statistics(kept_ids=0, kept_mass=[0.0], teacher_nll=None)


def row_of(
    rng: np.random.Generator, segments: list[int], vocab_size: int, learn: float = 0.7
) -> Row:
    """A row of random ids in which about `learn` of the possible positions have a target."""
    mask = rng.random(sum(segments)) < learn
    mask[np.cumsum(segments) - 1] = False
    return Row(
        input_ids=rng.integers(0, vocab_size, sum(segments)).astype(np.int32),
        segment_lengths=np.array(segments, np.int32),
        documents=np.arange(5, 5 + len(segments), dtype=np.int64),
        label_mask=mask,
    )


def targets_of(
    rng: np.random.Generator, counts: list[int], identity: Identity, *, ids_from: int = 0
) -> SoftTargets:
    """Random targets with `counts[i]` kept ids at position i."""
    n, k = len(counts), max(counts, default=1)
    v, grid = identity.teacher.vocab_size, tuple(identity.targets.temperatures)
    ids = np.zeros((n, k), np.int32)
    gaps = np.full((n, k), np.inf, np.float32)
    for i, c in enumerate(counts):
        own: set[int] = set()
        while len(own) < c:
            own.add(int(rng.integers(ids_from, v)))
        some = rng.permutation(sorted(own))
        ids[i] = some[0]
        ids[i, :c] = some
        gaps[i, :c] = rng.gamma(1.0, 6.0, c)
        gaps[i, rng.integers(c)] = 0
    odds = rng.normal(0, 8, (n, len(grid))).astype(np.float32)
    odds[rng.random((n, len(grid))) < 0.1] = -np.inf
    return SoftTargets(
        ids=ids,
        gaps=gaps,
        log_odds=odds,
        temperatures=grid,
        vocab_size=v,
        estimator=identity.targets.estimator,
    )


def files_of(store: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    return {
        p.relative_to(store).as_posix(): p.read_bytes()
        for p in sorted(store.rglob("*"))
        if p.is_file()
    }


def held_by(store: Path) -> dict[str, bytes]:
    """Every file of a store but for what was moved aside."""
    return {n: d for n, d in files_of(store).items() if not n.startswith("quarantine/")}


def reseal(path: Path, **changes: Any) -> None:
    """Change fields of a record file (`shards__0__name` goes down) and give it its right digest."""
    raw = json.loads(path.read_bytes())
    for place, value in changes.items():
        at, *steps = raw, *place.split("__")
        for step in steps[:-1]:
            at = at[int(step) if step.isdigit() else step]
        last = steps[-1]
        at[int(last) if last.isdigit() else last] = value
    write_sealed(path, raw)


def write_sealed(path: Path, raw: dict[str, Any]) -> None:
    """Write any JSON object as a record file whose digests are right."""
    raw = {k: v for k, v in raw.items() if k != "digest"}
    if "content_digest" in raw:
        content = {
            "identity": raw["identity"],
            "shards": [[s["name"], s["sha256"]] for s in raw["shards"]],
        }
        raw["content_digest"] = hashlib.sha256(canonical(content)).hexdigest()
    raw["digest"] = hashlib.sha256(canonical(raw)).hexdigest()
    path.write_bytes(canonical(raw))
