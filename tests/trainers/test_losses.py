"""Every loss against a dense float64 reference, value and gradients; every wrong pairing refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from softlabels.core.targets import SoftTargets, gaps_from_logp
from softlabels.errors import ConfigError, PairingError
from softlabels.estimators import make_estimator
from softlabels.format.identity import TargetRecord
from trainers.data.batch import Batch
from trainers.loss.divergences import DIVERGENCES
from trainers.loss.head import Head
from trainers.loss.losses import DistillLoss
from trainers.loss.totals import StepTotals

N, D, V = 12, 6, 40
GRID = (1.0, 2.0, 4.0)


def batch_of(logits, estimator, k, grid=GRID, seed=0):
    g = torch.Generator().manual_seed(seed)
    e = make_estimator(estimator, {"k": k, "temperatures": grid})
    u = torch.rand(len(logits), generator=g, dtype=torch.float64)
    s = e.select(logits.float().clone(), u)
    targets = SoftTargets(
        ids=s.ids.int().numpy(),
        gaps=gaps_from_logp(s.logp.numpy()),
        log_odds=s.log_odds.numpy(),
        temperatures=grid,
        vocab_size=logits.shape[1],
        estimator=estimator,
    )
    n = len(logits)
    return Batch(
        rows=(0,),
        inputs={},
        width=n,
        flat_positions=torch.arange(n),
        labels=torch.randint(logits.shape[1], (n,), generator=g),
        targets=targets,
    )


def student(seed=1, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=g, dtype=torch.float64) * scale
    return hidden.requires_grad_(), torch.randn(
        V, D, generator=g, dtype=torch.float64
    ).requires_grad_()


def bins(p, ids):
    """K+1 bins of a dense distribution."""
    head = p.gather(1, ids)
    return torch.cat([head, (p.sum(1) - head.sum(1))[:, None]], 1)


def kl(a, b):
    return a * (a.log() - b.log())


DENSE = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd": lambda p, q: 0.3 * kl(p, 0.3 * p + 0.7 * q) + 0.7 * kl(q, 0.3 * p + 0.7 * q),
    "tvd": lambda p, q: 0.5 * (p - q).abs(),
    "skewed_forward_kl": lambda p, q: kl(p, 0.2 * p + 0.8 * q),
    "skewed_reverse_kl": lambda p, q: kl(q, 0.2 * q + 0.8 * p),
}


def reference(name, teacher_logits, hidden, weight, batch, t, alpha):
    z = hidden @ weight.T
    ids = torch.from_numpy(batch.targets.ids).long()
    p, q = torch.softmax(teacher_logits / t, 1), torch.softmax(z / t, 1)
    if batch.targets.k < V:
        p, q = bins(p, ids), bins(q, ids)
    soft = DENSE[name](p, q).sum()
    hard = torch.nn.functional.cross_entropy(z, batch.labels, reduction="sum")
    return (alpha * t**2 * soft + (1 - alpha) * hard) / N


@pytest.mark.parametrize("name", DIVERGENCES.names())
@pytest.mark.parametrize("t", GRID)
@pytest.mark.parametrize("k", [1, 8, V - 1])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_value_and_gradients_equal_the_dense_reference(name, t, k, alpha):
    teacher = torch.randn(N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2
    batch = batch_of(teacher, "topk", k)
    hidden, weight = student()
    loss = DistillLoss(
        divergence=name, temperature=t, alpha=alpha, beta=0.3, skew=0.2, chunk_bytes=4 * V * 5
    )
    out = loss(hidden, Head(weight=weight), batch).loss
    expected = reference(name, teacher, hidden, weight, batch, t, alpha)
    # The targets are float32, so that is the precision that both can share.
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(out, (hidden, weight))
    wanted = torch.autograd.grad(expected, (hidden, weight))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES.names())
@pytest.mark.parametrize("t", GRID)
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(name, t):
    hidden, weight = student()
    batch = batch_of((hidden @ weight.T).detach(), "topk", 8)
    loss = DistillLoss(divergence=name, temperature=t, alpha=1.0)(
        hidden, Head(weight=weight), batch
    ).loss
    assert abs(loss.item()) < 1e-6
    if name != "tvd":  # which has a kink there: any gradient between the two slopes is right
        for g in torch.autograd.grad(loss, (hidden, weight)):
            assert float(g.abs().max()) < 1e-5


@pytest.mark.parametrize("t", GRID)
def test_t_squared_is_inside_what_is_differentiated(t):
    teacher = torch.randn(N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    batch = batch_of(teacher, "topk", 8)
    hidden, weight = student()
    head = Head(weight=weight)
    out = DistillLoss(temperature=t, alpha=1.0)(hidden, head, batch)
    step = 1e-5
    (g,) = torch.autograd.grad(out.loss, hidden)
    moved = DistillLoss(temperature=t, alpha=1.0)((hidden - step * g).detach(), head, batch)
    slope = (out.loss - moved.loss).item() / step
    assert slope == pytest.approx((g * g).sum().item(), rel=1e-3)


def test_the_hard_loss_reaches_the_gradient():
    teacher = torch.randn(N, V, dtype=torch.float64)
    batch = batch_of(teacher, "topk", 8)
    hidden, weight = student()
    hard = DistillLoss(alpha=0.0)(hidden, Head(weight=weight), batch)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, batch.labels)
    torch.testing.assert_close(hard.loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(hard.loss, hidden)[0],
        torch.autograd.grad(expected, hidden)[0],
        rtol=1e-9,
        atol=1e-12,
    )


def test_a_sampled_target_has_no_tail_and_the_gradient_of_its_weights():
    teacher = torch.randn(N, V, dtype=torch.float64) * 2
    batch = batch_of(teacher, "sampled", 6, grid=(2.0,))
    hidden, weight = student()
    out = DistillLoss(temperature=2.0, alpha=1.0)(hidden, Head(weight=weight), batch)
    w = torch.from_numpy(batch.targets.probs(2.0)).double()
    log_q = torch.log_softmax(hidden @ weight.T / 2, 1).gather(
        1, torch.from_numpy(batch.targets.ids).long()
    )
    expected = 4 * (w * (w.log() - log_q)).sum() / N
    torch.testing.assert_close(out.loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(out.loss, weight)[0],
        torch.autograd.grad(expected, weight)[0],
        rtol=1e-4,
        atol=1e-6,
    )
    assert out.teacher_tail == 0.0


def test_the_sampled_gradient_averages_to_the_dense_one():
    teacher = torch.randn(N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    hidden, weight = student()
    z = hidden @ weight.T
    p = torch.softmax(teacher, 1)
    (exact,) = torch.autograd.grad((p * (p.log() - torch.log_softmax(z, 1))).sum() / N, hidden)
    loss = DistillLoss(alpha=1.0)
    draws = torch.stack(
        [
            torch.autograd.grad(
                loss(
                    hidden,
                    Head(weight=weight),
                    batch_of(teacher, "sampled", 4, grid=(1.0,), seed=i),
                ).loss,
                hidden,
            )[0]
            for i in range(600)
        ]
    )
    deviation = (draws.mean(0) - exact).abs() / (draws.std(0) / 600**0.5 + 1e-12)
    assert float(deviation.max()) < 4.5


# -- hard-label-only positions --------------------------------------------------------------------

HARD_ONLY = np.isin(np.arange(N), [0, 3, 4, 11])


def hard_only(batch, where):
    return Batch(**{**vars(batch), "targets": batch.targets.hard_label_only(where)})


@pytest.mark.parametrize("name", DIVERGENCES.names())
@pytest.mark.parametrize("t", GRID)
@pytest.mark.parametrize("k", [1, 8, V])
@pytest.mark.parametrize("where", [HARD_ONLY, np.ones(N, bool)], ids=["some", "all"])
def test_positions_without_soft_target_count_in_the_hard_loss_alone(name, t, k, where):
    alpha = 0.3
    teacher = torch.randn(N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2
    full = batch_of(teacher, "topk", k)
    # Padding of a row that keeps nothing may be any id: here the label, the most harmful.
    ids = full.targets.ids.copy()
    ids[where] = full.labels.numpy()[where, None]
    full = Batch(**{**vars(full), "targets": replace(full.targets, ids=ids)})
    batch = hard_only(full, where)
    hidden, weight = student()
    loss = DistillLoss(
        divergence=name, temperature=t, alpha=alpha, beta=0.3, skew=0.2, chunk_bytes=4 * V * 5
    )
    out = loss(hidden, Head(weight=weight), batch)
    z = hidden @ weight.T
    soft = torch.from_numpy(~where)
    p, q = torch.softmax(teacher[soft] / t, 1), torch.softmax(z[soft] / t, 1)
    if k < V:
        kept = torch.from_numpy(batch.targets.ids).long()[soft]
        p, q = bins(p, kept), bins(q, kept)
    m = max(int(soft.sum()), 1)
    hard = torch.nn.functional.cross_entropy(z, batch.labels)
    expected = alpha * t**2 * DENSE[name](p, q).sum() / m + (1 - alpha) * hard
    torch.testing.assert_close(out.loss, expected, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(out.loss, (hidden, weight))
    wanted = torch.autograd.grad(expected, (hidden, weight))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    if k < V:
        assert out.teacher_tail == pytest.approx(p[:, -1].sum().item(), rel=1e-4)
        assert out.student_tail == pytest.approx(q[:, -1].sum().item(), rel=1e-4)


@pytest.mark.parametrize("t", [1.0, 2.0])
def test_where_nothing_is_kept_it_is_the_hard_loss_alone(t):
    """A kept set of width 0, as a shard without any soft position decodes to."""
    teacher = torch.randn(N, V, dtype=torch.float64)
    none = hard_only(batch_of(teacher, "topk", 8), np.ones(N, bool))
    narrow = replace(none.targets, ids=none.targets.ids[:, :0], gaps=none.targets.gaps[:, :0])
    none = Batch(**{**vars(none), "targets": narrow})
    hidden, weight = student()
    out = DistillLoss(temperature=t, alpha=0.25)(hidden, Head(weight=weight), none)
    expected = 0.75 * torch.nn.functional.cross_entropy(hidden @ weight.T, none.labels)
    torch.testing.assert_close(out.loss, expected, rtol=1e-9, atol=0)
    assert out.soft == out.teacher_tail == out.student_tail == 0
    a, b = (torch.autograd.grad(x, weight)[0] for x in (out.loss, expected))
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("t", GRID)
def test_where_all_are_soft_the_numbers_are_those_of_one_mean_to_the_bit(t):
    teacher = torch.randn(N, V, dtype=torch.float64)
    batch = batch_of(teacher, "topk", 8)
    hidden, weight = student()
    loss = DistillLoss(temperature=t, alpha=0.3)
    out = loss(hidden, Head(weight=weight), batch)
    assert out.loss.item() == (0.3 * t**2 * out.soft + 0.7 * out.hard) / N
    again = replace(loss, totals=loss.count(batch))(hidden, Head(weight=weight), batch)
    assert torch.equal(out.loss, again.loss)
    for a, b in zip(
        torch.autograd.grad(out.loss, (hidden, weight)),
        torch.autograd.grad(again.loss, (hidden, weight)),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_micro_batches_divide_by_the_whole_steps_soft_positions():
    teacher = torch.randn(N, V, dtype=torch.float64)
    batch = hard_only(batch_of(teacher, "topk", 8), HARD_ONLY)
    hidden, weight = student()
    loss = DistillLoss(temperature=2.0)
    whole = loss(hidden, Head(weight=weight), batch).loss
    parts = [
        (x, Batch(**{**vars(batch), "labels": batch.labels[x], "targets": batch.targets[x]}))
        for x in (slice(0, 5), slice(5, N))  # of 2 and 6 soft positions
    ]
    totals = StepTotals.over(loss.count(part) for _, part in parts)
    assert totals == loss.count(batch)
    step = replace(loss, totals=totals)
    total = sum(step(hidden[x], Head(weight=weight), part).loss for x, part in parts)
    torch.testing.assert_close(total, whole, rtol=1e-6, atol=0)


def test_a_short_row_does_not_cut_the_others():
    teacher = torch.randn(N, V, dtype=torch.float64) * 2
    full = batch_of(teacher, "topk", 8)
    t = full.targets
    gaps = t.gaps.copy()
    gaps[3, 2:] = np.inf  # row 3 keeps two ids; the rest of its mass is its tail
    p = torch.softmax(teacher[3], 0)
    kept = p[torch.from_numpy(t.ids[3, :2]).long()].sum()
    odds = t.log_odds.copy()
    odds[3, 0] = float(torch.log((1 - kept) / kept))
    ids = t.ids.copy()
    ids[3, 2:] = ids[3, 0]
    short = SoftTargets(
        ids=ids, gaps=gaps, log_odds=odds, temperatures=GRID, vocab_size=V, estimator="topk"
    )
    ragged = Batch(**{**vars(full), "targets": short})
    hidden, weight = student()
    head = Head(weight=weight)
    loss = DistillLoss(alpha=1.0)
    (g_full,) = torch.autograd.grad(loss(hidden, head, full).loss, hidden)
    (g_short,) = torch.autograd.grad(loss(hidden, head, ragged).loss, hidden)
    others = [i for i in range(N) if i != 3]
    assert torch.equal(g_full[others], g_short[others])
    assert not torch.allclose(g_full[3], g_short[3])


def test_only_the_batch_s_positions_are_taken_from_a_rectangle():
    teacher = torch.randn(N, V, dtype=torch.float64)
    batch = batch_of(teacher, "topk", 8)
    hidden, weight = student()
    wide = torch.full((2, 10, D), torch.nan, dtype=torch.float64)
    flat = torch.tensor([0, 1, 2, 3, 4, 7, 10, 11, 12, 15, 16, 18])
    wide.view(20, D)[flat] = hidden.detach()
    placed = Batch(**{**vars(batch), "flat_positions": flat})
    loss = DistillLoss(temperature=2.0)
    assert torch.equal(
        loss(wide, Head(weight=weight), placed).loss, loss(hidden, Head(weight=weight), batch).loss
    )


def record(estimator="topk", temperatures=(1.0, 2.0)):
    return TargetRecord(estimator=estimator, k=5, temperatures=list(temperatures), seed=0)


@pytest.mark.parametrize("name", sorted({*DIVERGENCES.names()} - {"forward_kl"}))
def test_only_forward_kl_takes_samples(name):
    with pytest.raises(PairingError, match=f"{name} does not go with a 'sampled' store"):
        DistillLoss(divergence=name, temperature=1.0).check(record("sampled", (1.0,)))


def test_wrong_pairings_are_refused_in_a_sentence():
    with pytest.raises(PairingError, match="reverse_kl does not go with a 'sampled' store"):
        DistillLoss(divergence="reverse_kl", temperature=1.0).check(record("sampled", (1.0,)))
    with pytest.raises(PairingError, match=r"not in the store's grid \(1, 2\).*--temperature 3"):
        DistillLoss(divergence="forward_kl", temperature=3.0).check(record())
    DistillLoss(divergence="forward_kl", temperature=1.0).check(record("sampled", (1.0,)))
    DistillLoss(alpha=0.0, temperature=3.0).check(
        record()
    )  # hard labels ask nothing of the targets
    with pytest.raises(PairingError, match="grid"):
        DistillLoss(alpha=0.5, temperature=3.0).check(record())


def test_draws_with_replacement_are_refused_like_any_sample():
    with pytest.raises(PairingError, match="'rs'"):
        DistillLoss(divergence="reverse_kl", temperature=1.0).check(record("rs", (1.0,)))


def test_targets_themselves_refuse_a_wrong_pairing():
    batch = batch_of(torch.randn(N, V), "sampled", 6, grid=(1.0,))
    hidden, weight = student()
    with pytest.raises(PairingError, match="sampled"):
        DistillLoss(divergence="reverse_kl")(hidden, Head(weight=weight), batch)
    with pytest.raises(PairingError, match="grid"):
        DistillLoss(temperature=2.0)(hidden, Head(weight=weight), batch)


@pytest.mark.parametrize(
    "bad",
    [
        {"alpha": 1.5},
        {"alpha": -0.1},
        {"temperature": 0.0},
        {"temperature": float("inf")},
        {"divergence": "x"},
    ],
)
def test_absurd_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        DistillLoss(**bad)
