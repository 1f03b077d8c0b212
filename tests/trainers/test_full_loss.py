"""Full distillation, from states and heads: a dense float64 reference, the store that keeps all ids, flat memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from softlabels.core.rows import UNLABELLED
from softlabels.errors import ConfigError
from softlabels.format.identity import TargetRecord
from tests.trainers.test_losses import DENSE, GRID, batch_of
from trainers.data.batch import TeacherLogits
from trainers.data.microbatches import split_batch
from trainers.evaluation.whole import compare_whole
from trainers.loss import full
from trainers.loss.divergences import DIVERGENCES
from trainers.loss.head import Head
from trainers.loss.losses import DistillLoss
from trainers.loss.schedules import LossSchedule
from trainers.loss.totals import StepTotals
from trainers.run.config import RunConfig

N, D, W, V = 12, 6, 9, 40


def tensor(*shape, seed, dtype=torch.float64, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=g, dtype=torch.float64) * scale).to(dtype)


def capped(z, head):
    z = z * head.scale
    return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)


def dense_logits(h, head):
    bias = 0.0 if head.bias is None else head.bias.double()
    return capped(h.double() @ head.weight.double().T + bias, head)


def teacher_of(kind="plain", dtype=torch.float64):
    extra = {"plain": {}, "capped": {"scale": 0.5, "softcap": 4.0}}[kind]
    bias = None if kind == "plain" else tensor(V, seed=7, dtype=dtype)
    head = Head(weight=tensor(V, W, seed=5, dtype=dtype), bias=bias, **extra)
    return TeacherLogits(tensor(N, W, seed=6, dtype=dtype), head)


def student_of(kind="plain", dtype=torch.float64):
    extra = {"plain": {}, "capped": {"scale": 1.5, "softcap": 6.0}}[kind]
    leaves = [tensor(N, D, seed=1, dtype=dtype), tensor(V, D, seed=2, dtype=dtype)]
    leaves += [] if kind == "plain" else [tensor(V, seed=3, dtype=dtype)]
    leaves = [x.requires_grad_() for x in leaves]
    bias = leaves[2] if len(leaves) > 2 else None
    return leaves, Head(weight=leaves[1], bias=bias, **extra)


def a_batch(teacher, *, hard_only=(), unlabelled=(), estimator="topk", k=3):
    """Its stored targets are of few ids, which full distillation must not look at."""
    z = dense_logits(teacher.states, teacher.head)
    batch = batch_of(z, estimator, k, grid=(1.0,))
    where = np.isin(np.arange(N), hard_only)
    labels = batch.labels.clone()
    labels[list(unlabelled)] = UNLABELLED
    targets = batch.targets.hard_label_only(where) if where.any() else batch.targets
    return replace(batch, targets=targets, labels=labels, teacher=teacher)


def reference(loss, leaves, head, batch):
    """In float64, of whole N x V matrices."""
    t, a = loss.temperature, loss.alpha
    z = dense_logits(leaves[0], head)
    u = dense_logits(batch.teacher.states, batch.teacher.head)
    p, q = torch.softmax(u / t, 1), torch.softmax(z / t, 1)
    soft = torch.from_numpy(batch.targets.soft)
    soft_mean = DENSE[loss.divergence](p, q).sum(1)[soft].mean()
    known = batch.labels != UNLABELLED
    e, lse = loss.label_smoothing, torch.logsumexp(z, 1)
    label = z.gather(1, batch.labels.clamp(min=0)[:, None])[:, 0]
    hard = lse - (1 - e) * label - e * z.mean(1) + loss.z_loss * lse**2
    return a * t**2 * soft_mean + (1 - a) * hard[known].mean()


def check(loss, leaves, head, batch, *, rtol=1e-9, atol=1e-12):
    out = loss(leaves[0], head, batch)
    expected = reference(loss, leaves, head, batch)
    torch.testing.assert_close(out.loss.double(), expected.double(), rtol=rtol, atol=atol)
    found, wanted = torch.autograd.grad(out.loss, leaves), torch.autograd.grad(expected, leaves)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)
    return out


@pytest.mark.parametrize("name", DIVERGENCES.names())
@pytest.mark.parametrize("t", [0.7, 1.0, 2.0, 3.3])
@pytest.mark.parametrize("kind", ["plain", "capped"])
def test_value_and_gradients_equal_the_dense_reference(name, t, kind):
    """At temperatures that no store has; in chunks of one, of five, and of all positions."""
    teacher = teacher_of(kind)
    batch = a_batch(teacher, hard_only=(0, 4, 5, 11), unlabelled=(2, 5))
    leaves, head = student_of(kind)
    for rows in (1, 5, N):
        loss = DistillLoss(
            divergence=name,
            temperature=t,
            alpha=0.6,
            beta=0.3,
            skew=0.2,
            label_smoothing=0.1,
            z_loss=1e-2,
            chunk_bytes=full.WIDE * V * 8 * rows,
        )
        check(loss, leaves, head, batch)


@pytest.mark.parametrize("name", DIVERGENCES.names())
def test_in_float32_and_from_a_teacher_in_fewer_bits(name, monkeypatch):
    monkeypatch.setattr(full, "SLICE", 7)  # its head is widened a few ids at a time
    teacher = teacher_of("capped", torch.bfloat16)
    leaves, head = student_of("capped", torch.float32)
    loss = DistillLoss(divergence=name, temperature=2.0, alpha=0.6, beta=0.3, skew=0.2)
    check(loss, leaves, head, a_batch(teacher), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES.names())
@pytest.mark.parametrize("t", GRID)
def test_it_equals_a_store_that_keeps_all_ids(name, t):
    """Whose targets are float32."""
    teacher = teacher_of()
    z = dense_logits(teacher.states, teacher.head)
    stored = batch_of(z, "dense", V)
    leaves, head = student_of()
    loss = DistillLoss(divergence=name, temperature=t, alpha=0.7, beta=0.3, skew=0.2)
    outs = [loss(leaves[0], head, b) for b in (stored, replace(stored, teacher=teacher))]
    for field in ("loss", "soft", "hard", "agreement", "soft_weighted", "hard_part"):
        mine, theirs = (float(torch.as_tensor(getattr(o, field)).detach()) for o in outs)
        assert mine == pytest.approx(theirs, rel=2e-6, abs=1e-9), field
    a, b = (torch.autograd.grad(o.loss, leaves) for o in outs)
    for mine, theirs in zip(a, b, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


def test_what_a_store_refuses_is_served(monkeypatch):
    """A sample takes no other loss than forward KL, and a store no temperature outside of its grid."""
    batch = a_batch(teacher_of(), estimator="sampled", k=4)
    leaves, head = student_of()
    check(DistillLoss(divergence="reverse_kl", temperature=2.5, alpha=1.0), leaves, head, batch)
    record = TargetRecord(estimator="sampled", k=4, temperatures=[1.0], seed=0)
    loss = DistillLoss(divergence="jsd", temperature=3.0)
    schedule = LossSchedule.parse(loss, 5, None, "linear:1").on(record, whole=True)
    assert [schedule.at(i).temperature for i in range(5)] == [3.0, 2.5, 2.0, 1.5, 1.0]
    assert schedule.notices(record) == []


def test_micro_batches_add_up():
    teacher = teacher_of()
    batch = a_batch(teacher, hard_only=(3, 8), unlabelled=(1,))
    batch = replace(
        batch,
        rows=tuple(range(4)),
        inputs={"input_ids": torch.zeros(4, 3, dtype=torch.int64)},
        width=3,
    )
    leaves, head = student_of()
    loss = DistillLoss(temperature=2.0, alpha=0.7)
    whole = loss(leaves[0], head, batch)
    parts = list(split_batch(batch, 2))
    assert torch.equal(torch.cat([p.teacher.states for p in parts]), teacher.states)
    loss = replace(loss, totals=StepTotals.over(loss.count(p) for p in parts))
    halves = [loss(h, head, p) for h, p in zip(leaves[0].split(6), parts, strict=True)]
    torch.testing.assert_close(halves[0].loss + halves[1].loss, whole.loss)


@pytest.mark.parametrize("name", DIVERGENCES.names())
@pytest.mark.parametrize("t", [1.0, 2.0])
def test_memory_is_a_budget_whatever_the_vocabulary(name, t):
    """Beside the gradients themselves: what PyTorch allocated, at its peak."""
    budget = 4 * 2**20
    for v in (2_000, 32_000):
        hidden = tensor(64, 4, seed=1, dtype=torch.float32).requires_grad_()
        weight = tensor(v, 4, seed=2, dtype=torch.float32).requires_grad_()
        teacher = TeacherLogits(
            tensor(64, 4, seed=3, dtype=torch.float32), Head(weight=weight.detach().bfloat16())
        )
        batch = replace(a_batch(teacher_of()), teacher=teacher, labels=torch.zeros(64).long())
        batch = replace(batch, targets=batch.targets[np.zeros(64, np.int64)])
        loss = DistillLoss(divergence=name, temperature=t, alpha=0.7, chunk_bytes=budget)
        with torch.profiler.profile(profile_memory=True) as profile:
            loss(hidden, Head(weight=weight), batch).loss.backward()
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        events.sort(key=lambda e: e.start_ns())
        peak = int(np.cumsum([e.nbytes() for e in events]).max())
        assert 0.3 * budget < peak - weight.nbytes < budget, (v, peak / budget)


def test_a_student_against_all_of_its_teacher():
    teacher = teacher_of("capped")
    leaves, head = student_of("capped")
    found = compare_whole(leaves[0].detach(), head, teacher)
    p = torch.softmax(dense_logits(teacher.states, teacher.head), 1)
    q = torch.softmax(dense_logits(leaves[0].detach(), head), 1)
    torch.testing.assert_close(found.kl, DENSE["forward_kl"](p, q).sum(1))
    torch.testing.assert_close(found.acceptance, torch.minimum(p, q).sum(1))
    assert torch.equal(found.top, p.argmax(1))
    torch.testing.assert_close(found.confidence, p.amax(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": "hard"}, r"--weight hard: is read from the store's targets, which --teacher-"),
        ({"store": ("a", "b")}, "--teacher-states x: goes with one --store, not with 2"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig(**({"store": "s", "student": "new:1M", "teacher_states": "x"} | changes))
