"""Before an engine's first shard, of a build or an append: what it says of some rows against a second path to it.

An engine that is driven wrongly gives distributions that look like some: of zero states, of the layer before, without
the final norm, of the next position. So up to 64 rows are scored by transformers, too, and a store is begun only if
both say the same. If not, what each known fault would have said is compared with what was said, and the one that
agrees is named.

It costs those rows by transformers, once for a store, and the memory of the model beside the engine; where the weights
are more than half of the memory that is free it is left out, and that is said.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import islice

import torch

from softlabels.builder.teach import draw_uniforms, selected
from softlabels.capture import Job, Kept
from softlabels.core.progress import Reporter
from softlabels.core.rows import InputRow, Row
from softlabels.domains.causal_lm.suspects import CONSTANT, OTHER, ZERO, suspects_of
from softlabels.domains.causal_lm.teacher import HFTeacher
from softlabels.errors import TeacherError
from softlabels.estimators import Estimator
from softlabels.teachers import Teacher

ROWS, TOKENS = 64, 4096
"""That are scored by both, at most."""
CLOSE = 0.15
"""Nats: median difference of a label's log-probability. Bodies in bfloat16 differ by 0.04 on average."""
FLAT = 1e-3
"""Nats by which entropies of states that are all the same may differ."""
ALIKE = 0.9
"""Share of positions at which both name the same likeliest id, at least."""


def guard(
    teacher: Teacher, rows: Iterable[InputRow], estimator: Estimator, report: Reporter, *, seed: int
) -> int | None:
    """Refuse an engine that does not say what its weights do.

    Args:
        teacher: of the build.
        rows: the first of the corpus.
        estimator: of the build.
        report: told that it is done, or why it is not.
        seed: of the build.

    Returns:
        How many rows were compared: 0 if the weights are too large for it, None if the teacher has no second path.

    Raises:
        TeacherError: names the fault.
    """
    if teacher.second_path is None:
        return None
    spec, path = teacher.record.spec, teacher.second_path
    few: list[Row] = []
    for row in islice(rows, ROWS):
        assert isinstance(row, Row), "engines serve causal LMs"
        if few and sum(r.size for r in few) + row.size > TOKENS:
            break
        few.append(row)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 2 * path.weights_bytes > free:
        report.notice(
            f"{spec}: was not compared with transformers, since its weights are {path.weights_bytes / 1e9:.1f} GB and "
            f"{free / 1e9:.1f} GB of memory are free; where there is more, `softlabels measure --teacher hf:PATH` does"
        )
        return 0
    report.notice(f"{spec}: comparing {len(few)} rows with transformers, before the first shard")
    found = _said(teacher, few, estimator, seed)
    reference = path.load()
    assert isinstance(reference, HFTeacher)
    if (fault := fault_of(found, reference, few)) is not None:
        raise TeacherError(
            f"{spec}: does not say of {len(few)} rows what transformers say with the same weights; what it says is "
            f"that of {fault}. Nothing was stored; use hf:PATH, or another version of the engine"
        )
    return len(few)


def fault_of(found: Kept, reference: HFTeacher, rows: Sequence[Row]) -> str | None:
    """What is wrong with what was said at the positions of rows, in words; None: nothing is."""
    logp, top, entropy = found.label_logp.cpu(), found.top, found.entropy
    assert top is not None
    assert entropy is not None
    distances: list[tuple[float, str]] = []
    for suspect in suspects_of(reference, rows):
        apart = (suspect.label_logp - logp).abs().nan_to_num(nan=torch.inf)
        distance = float(apart.median())
        alike = float((suspect.top == top.cpu()).float().mean())
        if not distances and distance <= CLOSE and alike >= ALIKE:
            return None
        distances.append((distance, suspect.fault))
    (sound, _), *others = distances
    best, fault = min(others)
    if float(entropy.max() - entropy.min()) <= FLAT and fault != ZERO:  # False of NaN: not known
        return CONSTANT
    return fault if best <= CLOSE and best < sound else OTHER


def _said(teacher: Teacher, rows: Sequence[Row], estimator: Estimator, seed: int) -> Kept:
    u = estimator.uniforms
    drawn = [torch.from_numpy(draw_uniforms(seed, i, r.n * u)) for i, r in enumerate(rows)]
    uniforms = torch.cat(drawn).view(-1, u) if u else None
    parts = list(selected(teacher, rows, Job(estimator), uniforms, first=0))
    return parts[0]._replace(
        label_logp=torch.cat([p.label_logp for p in parts]),
        top=torch.cat([p.top for p in parts if p.top is not None]),
        entropy=torch.cat([p.entropy for p in parts if p.entropy is not None]),
    )
