"""The loss on stored targets against dense float64 softmax over all of V: value and all three gradients.

Everything that the loss is given (targets, labels, weights) is what the reference is given, so the only difference
is arithmetic: 1e-10 is asked of float64 inputs and 1e-6 of float32 ones, relative to the largest entry.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from softlabels.core.targets import SoftTargets
from softlabels.errors import ConfigError, PairingError
from softlabels.format.identity import TargetRecord
from trainers.data.batch import Batch
from trainers.loss.divergences import DIVERGENCES
from trainers.loss.head import Head
from trainers.loss.head_chunks import HeadChunks
from trainers.loss.losses import DistillLoss, LossOutput
from trainers.loss.position_weights import WEIGHTS
from trainers.loss.schedules import LossSchedule
from trainers.loss.topk_tail import topk_tail
from trainers.loss.totals import StepTotals

N, D, V = 9, 6, 40
GRID = (1.0, 2.0, 4.0)
F64 = torch.float64


def kl(a, b):
    return torch.where(a > 0, a * (a.log() - b.log()), 0.0)


DENSE = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd": lambda p, q: 0.3 * kl(p, 0.3 * p + 0.7 * q) + 0.7 * kl(q, 0.3 * p + 0.7 * q),
    "tvd": lambda p, q: 0.5 * (p - q).abs(),
    "skewed_forward_kl": lambda p, q: kl(p, 0.2 * p + 0.8 * q),
    "skewed_reverse_kl": lambda p, q: kl(q, 0.2 * q + 0.8 * p),
}


def targets_of(z, k, *, ragged=False):
    """Of teacher logits `[N, V]`, as a build makes them but without a codec; and how many each row keeps."""
    z = z.to(F64)
    top = torch.topk(z, k)
    counts = torch.full((len(z),), k)
    if ragged:
        counts = 1 + torch.arange(len(z)) % k
    slot = torch.arange(k)
    kept = slot[None] < counts[:, None]
    ids = torch.where(kept, top.indices, top.indices[:, :1])
    gaps = (top.values[:, :1] - top.values).masked_fill(~kept, torch.inf)
    inside = torch.zeros_like(z, dtype=torch.bool).scatter_(1, ids, True)
    odds = torch.stack(
        [
            torch.logsumexp((z / t).masked_fill(inside, -torch.inf), 1)
            - torch.logsumexp((z / t).masked_fill(~inside, -torch.inf), 1)
            for t in GRID
        ],
        1,
    )
    return SoftTargets(
        ids=ids.int().numpy(),
        gaps=gaps.float().numpy(),
        log_odds=odds.float().numpy(),
        temperatures=GRID,
        vocab_size=z.shape[1],
        estimator="topk",
    )


def batch_of(targets, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(targets.vocab_size, (targets.n,), generator=g)
    labels[::2] = torch.from_numpy(targets.ids[::2, 0]).long()  # inside and outside the kept set
    return Batch(
        rows=(0,),
        inputs={},
        width=targets.n,
        flat_positions=torch.arange(targets.n),
        labels=labels,
        targets=targets,
    )


def teacher_of(targets, t):
    """Bins `[N, K+1]` in float64, from the definition: kept and tail share by the tail's odds."""
    odds = torch.from_numpy(targets.log_odds[:, targets.grid_index(t)]).to(F64)
    head = torch.softmax(-torch.from_numpy(targets.gaps).to(F64) / t, 1)
    return torch.cat([head * torch.sigmoid(-odds)[:, None], torch.sigmoid(odds)[:, None]], 1), head


def dense(loss, hidden, weight, bias, batch, *, softcap=None):
    """The whole loss, with nothing spared."""
    z = hidden @ weight.T + (0 if bias is None else bias)
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    targets, t = batch.targets, loss.temperature
    p, _ = teacher_of(targets, t)
    q_all = torch.softmax(z / t, 1)
    kept = torch.from_numpy(targets.kept)
    ids = torch.from_numpy(targets.ids).long()
    head = q_all.gather(1, ids).masked_fill(~kept, 0.0)
    inside = torch.zeros_like(z, dtype=torch.bool).scatter_(1, ids, True)
    tail = q_all.masked_fill(inside, 0.0).sum(1, keepdim=True)
    real = torch.cat([kept, torch.ones(len(z), 1, dtype=torch.bool)], 1)
    q = torch.cat([head, tail], 1)
    # Bins that nobody has are left out by giving both the same.
    p, q = torch.where(real, p, 1.0), torch.where(real, q, 1.0)
    each = DENSE[loss.divergence](p, q)
    soft = torch.where(real, each, 0.0).sum(1)
    labels = batch.labels.numpy()
    w = torch.from_numpy(WEIGHTS[loss.weight](targets, labels, t))
    hard = torch.nn.functional.cross_entropy(z, batch.labels, label_smoothing=loss.label_smoothing)
    hard = hard + loss.z_loss * (torch.logsumexp(z, 1) ** 2).mean()
    return loss.alpha * t**2 * (w * soft).sum() / w.sum() + (1 - loss.alpha) * hard


def close(found, wanted, tolerance):
    for a, b in zip(found, wanted, strict=True):
        a, b = a.detach().to(F64), b.detach()
        error = float((a - b).abs().max() / b.abs().max())
        assert error <= tolerance, f"{error:.2e}"


def compare(loss, dtype, tolerance, *, k, ragged=False, tied=False, bias=True, softcap=None):
    g = torch.Generator().manual_seed(k)
    teacher = torch.randn(N, V, generator=g, dtype=F64) * 2
    batch = batch_of(targets_of(teacher, k, ragged=ragged))
    weight = torch.randn(V, D, generator=g).to(dtype)
    free = torch.randn(N, D, generator=g).to(dtype)
    b = torch.randn(V, generator=g).to(dtype) if bias else None
    inputs = torch.randint(V, (N,), generator=g)
    leaves = [weight, *([] if tied else [free]), *([b] if bias else [])]

    def value(cast, f):
        xs = [x.detach().to(cast).requires_grad_() for x in leaves]
        w = xs[0]
        h = w[inputs] if tied else xs[1]
        out = f(h, w, xs[-1] if bias else None)
        return [out, *torch.autograd.grad(out, xs)]

    found = value(
        dtype, lambda h, w, c: loss(h, Head(weight=w, bias=c, softcap=softcap), batch).loss
    )
    close(
        found, value(F64, lambda h, w, c: dense(loss, h, w, c, batch, softcap=softcap)), tolerance
    )


PRECISION = [(torch.float32, 1e-6), (F64, 1e-10)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION, ids=["fp32", "fp64"])
@pytest.mark.parametrize("tied", [False, True], ids=["free", "tied"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("k", [1, 8, V - 1])
@pytest.mark.parametrize("t", GRID)
@pytest.mark.parametrize("name", DIVERGENCES.names())
def test_value_and_gradients_equal_the_dense_reference(name, t, k, ragged, tied, dtype, tolerance):
    loss = DistillLoss(
        divergence=name, temperature=t, alpha=0.6, beta=0.3, skew=0.2, chunk_bytes=8 * V * 8
    )
    compare(loss, dtype, tolerance, k=k, ragged=ragged, tied=tied)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION, ids=["fp32", "fp64"])
@pytest.mark.parametrize("t", [1.0, 2.0])
@pytest.mark.parametrize(
    "more",
    [
        {"weight": "entropy"},
        {"weight": "hard"},
        {"label_smoothing": 0.1},
        {"z_loss": 1e-2},
        {"weight": "entropy", "label_smoothing": 0.2, "z_loss": 1e-3},
    ],
    ids=str,
)
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_weights_smoothing_z_loss_and_cap_equal_the_dense_reference(
    t, more, softcap, dtype, tolerance
):
    loss = DistillLoss(temperature=t, alpha=0.6, chunk_bytes=8 * V * 8, **more)
    compare(loss, dtype, tolerance, k=8, ragged=True, softcap=softcap)


def test_ignored_positions_change_nothing_and_get_no_gradient():
    g = torch.Generator().manual_seed(0)
    batch = batch_of(targets_of(torch.randn(N, V, generator=g), 8))
    flat = torch.arange(N) * 2 + 1
    wide = torch.full((1, 2 * N + 3, D), torch.nan, dtype=F64)
    hidden = torch.randn(N, D, generator=g, dtype=F64)
    wide[0, flat] = hidden
    wide.requires_grad_(), hidden.requires_grad_()
    head = Head(weight=torch.randn(V, D, generator=g, dtype=F64))
    loss = DistillLoss(temperature=2.0)
    placed = Batch(**{**vars(batch), "flat_positions": flat})
    (found,) = torch.autograd.grad(loss(wide, head, placed).loss, wide)
    (wanted,) = torch.autograd.grad(loss(hidden, head, batch).loss, hidden)
    assert torch.equal(found[0, flat], wanted)
    assert int((found != 0).any(-1).sum()) == N


@pytest.mark.parametrize("name", DIVERGENCES.names())
@pytest.mark.parametrize("t", GRID)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peaked_teachers_and_students_stay_finite(name, t, dtype):
    """Gaps of 200 nats on either side, agreeing or not; a kept mass of 1 - 1e-8."""
    z = torch.zeros(4, V, dtype=F64)
    z[:, 1:4] = torch.linspace(0, 1, 3, dtype=F64)
    z[0, 0] = z[1, 0] = 200.0
    z[2, 0] = z[3, 0] = float(np.log(1e8 * V))
    batch = batch_of(targets_of(z, 4))
    size = torch.tensor([200.0, -200.0, 200.0, -20.0])
    hidden = torch.stack([size, torch.ones(4)], 1).to(dtype).requires_grad_()
    weight = torch.zeros(V, 2)
    weight[0, 0], weight[:, 1] = 1.0, torch.linspace(-1, 1, V)
    weight = weight.to(dtype).requires_grad_()
    out = DistillLoss(divergence=name, temperature=t, alpha=0.9)(hidden, Head(weight=weight), batch)
    assert out.loss.isfinite()
    for gradient in torch.autograd.grad(out.loss, (hidden, weight)):
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("with_mean", [False, True])
@pytest.mark.parametrize("t", [0.1, 1.0, 3.0])
def test_both_forms_of_the_primitive_give_the_same_numbers(t, with_mean):
    g = torch.Generator().manual_seed(0)
    batch = batch_of(targets_of(torch.randn(N, V, generator=g), 5))
    ids, kept = torch.from_numpy(batch.targets.ids).long(), torch.from_numpy(batch.targets.kept)
    hidden = torch.randn(N, D, generator=g, dtype=F64)
    weight = torch.randn(V, D, generator=g, dtype=F64)
    out = topk_tail(
        HeadChunks(
            hidden, Head(weight=weight), ids, kept, batch.labels, temperature=t, with_mean=with_mean
        )
    )
    z = hidden @ weight.T
    wanted = z.mean(1) if with_mean else torch.zeros(N, dtype=F64)
    torch.testing.assert_close(out.mean_logit, wanted)
    inside = torch.zeros(N, V, dtype=torch.bool).scatter_(1, ids, True)
    outside = z.masked_fill(inside, -torch.inf)
    torch.testing.assert_close(out.tail_top, outside.amax(1).detach() / t)
    torch.testing.assert_close(out.columns[:, -1], torch.logsumexp(outside / t, 1))
    torch.testing.assert_close(out.lse, torch.logsumexp(z, 1))


def test_the_loss_times_a_number_has_its_gradient_times_that_number():
    batch = batch_of(targets_of(torch.randn(N, V), 5))
    hidden = torch.randn(N, D, requires_grad=True)
    weight = torch.randn(V, D, requires_grad=True)
    loss = DistillLoss()
    one = torch.autograd.grad(loss(hidden, Head(weight=weight), batch).loss, (hidden, weight))
    three = torch.autograd.grad(3 * loss(hidden, Head(weight=weight), batch).loss, (hidden, weight))
    for a, b in zip(one, three, strict=True):
        torch.testing.assert_close(3 * a, b)
    with torch.no_grad():
        value = loss(hidden, Head(weight=weight), batch).loss
    assert not value.requires_grad
    torch.testing.assert_close(value, loss(hidden, Head(weight=weight), batch).loss.detach())


def test_agreement_counts_the_students_best_of_all_v():
    teacher = torch.randn(N, V, dtype=F64, generator=torch.Generator().manual_seed(0))
    batch = batch_of(targets_of(teacher, 3, ragged=True))
    weight = torch.eye(V, dtype=F64)
    same = DistillLoss(temperature=4.0)(teacher.clone(), Head(weight=weight), batch)
    assert same.agreement == N
    other = teacher.clone()
    other[:4, 0] = 100.0  # outside of the kept ids of most
    out = DistillLoss(temperature=4.0)(other, Head(weight=weight), batch)
    assert out.agreement == int((other.argmax(1) == teacher.argmax(1)).sum()) < N


@pytest.mark.parametrize("weight", ["entropy", "hard"])
def test_weights_have_a_mean_of_1_over_the_whole_step(weight):
    """Micro-batches divide by the step's sum; if all positions lose alike, weights change nothing."""
    teacher = torch.randn(N, V, dtype=F64, generator=torch.Generator().manual_seed(5)) * 2
    batch = batch_of(targets_of(teacher, 8))
    hidden = torch.randn(N, D, dtype=F64, generator=torch.Generator().manual_seed(6))
    head = Head(weight=torch.randn(V, D, dtype=F64, generator=torch.Generator().manual_seed(7)))
    loss = DistillLoss(weight=weight, temperature=2.0, alpha=0.7)
    whole = loss(hidden, head, batch)
    parts = [
        Batch(**{**vars(batch), "labels": batch.labels[s], "targets": batch.targets[s]})
        for s in (slice(0, 2), slice(2, N))
    ]
    totals = StepTotals.over(loss.count(part) for part in parts)
    outs = [
        replace(loss, totals=totals)(hidden[s], head, part)
        for s, part in zip((slice(0, 2), slice(2, N)), parts, strict=True)
    ]
    torch.testing.assert_close(sum(o.loss for o in outs), whole.loss, rtol=1e-12, atol=0)
    step = LossOutput.over([o.loss.item(), *o[1:]] for o in outs).means(totals)
    for name, mean in whole.means(loss.count(batch)).items():
        assert step[name] == pytest.approx(mean, rel=1e-12), name
    even = DistillLoss(temperature=2.0, alpha=0.7)(hidden, head, batch)
    assert even.soft == pytest.approx(whole.soft)
    assert step["soft_weighted"] != pytest.approx(step["soft"], rel=1e-3)


def test_a_certain_teacher_makes_weights_even():
    z = torch.zeros(N, V, dtype=F64)
    z[:, 0] = 500.0
    targets = targets_of(z, 2)
    for weight in ("entropy", "hard"):
        w = WEIGHTS[weight](targets, np.zeros(N, np.int64), 1.0)
        np.testing.assert_allclose(w, w[0])
        assert w[0] > 0


def test_a_head_without_tail_is_refused_where_the_loss_needs_one():
    full = targets_of(torch.randn(N, V, dtype=F64), 8)
    cut = SoftTargets(**{**vars(full), "log_odds": np.full_like(full.log_odds, -np.inf)})
    hidden, head = torch.randn(N, D), Head(weight=torch.randn(V, D))
    with pytest.raises(PairingError, match="needs the teacher's tail"):
        DistillLoss(divergence="reverse_kl")(hidden, head, batch_of(cut))
    DistillLoss()(hidden, head, batch_of(cut))


# -- schedules ------------------------------------------------------------------------------------

RECORD = TargetRecord(estimator="topk", k=5, temperatures=[1.0, 2.0, 4.0], seed=0)


def schedule(of_alpha=None, of_temperature=None, steps=11, **loss):
    return LossSchedule.parse(DistillLoss(**loss), steps, of_alpha, of_temperature)


def test_alpha_goes_from_its_start_to_its_end():
    linear = schedule("linear:0.5", alpha=0.9).on(RECORD)
    assert [round(linear.at(i).alpha, 9) for i in (0, 5, 10)] == [0.9, 0.7, 0.5]
    cosine = schedule("cosine:0", alpha=1.0).on(RECORD)
    assert [round(cosine.at(i).alpha, 9) for i in (0, 5, 10)] == [1.0, 0.5, 0.0]
    assert cosine.at(1).alpha > 0.95
    assert schedule("constant").at(7).alpha == 0.5
    assert schedule("linear:0", steps=1, alpha=1.0).on(RECORD).at(0).alpha == 1.0


def test_temperature_takes_the_stairs_of_the_grid():
    stairs = schedule(None, "linear:1", temperature=4.0).on(RECORD)
    assert [stairs.at(i).temperature for i in range(11)] == [4.0] * 4 + [2.0] * 5 + [1.0] * 2
    with pytest.raises(PairingError, match=r"end 3 is not in the store's grid \(1, 2, 4\)"):
        schedule(None, "linear:3", temperature=4.0).on(RECORD)
    with pytest.raises(PairingError, match="--temperature 3 is not"):
        schedule(None, "linear:1", temperature=3.0).on(RECORD)


@pytest.mark.parametrize("text", ["linear", "linear:x", "linear:nan", "step:1", "constant:1", ""])
def test_what_is_no_schedule_is_refused(text):
    if text:
        with pytest.raises(ConfigError, match="--alpha-schedule"):
            schedule(text)
    else:
        assert schedule(text).at(3).alpha == 0.5


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: schedule("linear:1.5"), "--alpha-schedule"),
        (lambda: schedule(None, "linear:0"), "--temperature-schedule"),
        (lambda: schedule(alpha=1.0, label_smoothing=0.1), "--label-smoothing.*--alpha 1"),
        (lambda: schedule(alpha=1.0, z_loss=0.1), "--z-loss.*--alpha 1"),
        (lambda: schedule(alpha=0.0, weight="hard"), "--weight hard.*--alpha 0"),
        (lambda: DistillLoss(label_smoothing=1.0), "--label-smoothing"),
        (lambda: DistillLoss(z_loss=-1.0), "--z-loss"),
        (lambda: DistillLoss(weight="none"), "--weight"),
    ],
)
def test_settings_that_would_never_count_are_refused(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


def test_weights_on_samples_are_told_and_a_late_soft_loss_is_checked_at_once():
    sampled = TargetRecord(estimator="sampled", k=5, temperatures=[1.0], seed=0)
    (said,) = schedule(weight="entropy").notices(sampled)
    assert "no longer unbiased" in said
    assert schedule(weight="entropy").notices(RECORD) == schedule().notices(sampled) == []
    late = schedule("linear:1", alpha=0.0, divergence="reverse_kl")
    with pytest.raises(PairingError, match="reverse_kl"):
        late.on(sampled)
    assert late.on(RECORD).at(0).alpha == 0.0


# -- Must show 6 ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_sampled_gradient_averages_to_the_dense_one_over_10_000_stores():
    """Each position drawn 10,000 times, as so many positions of one batch: its gradient is its draw's."""
    from softlabels.estimators import make_estimator

    draws, n = 10_000, 4
    g = torch.Generator().manual_seed(0)
    teacher = torch.randn(n, V, generator=g) * 2
    hidden = torch.randn(n, D, generator=g, dtype=F64)
    weight = torch.randn(V, D, generator=g, dtype=F64)
    estimator = make_estimator("sampled", {"k": 4, "temperatures": (1.0,)})
    for i in range(n):
        found = estimator.select(
            teacher[i].repeat(draws, 1), torch.rand(draws, generator=g, dtype=F64)
        )
        logp = found.logp.numpy()
        targets = SoftTargets(
            ids=found.ids.int().numpy(),
            gaps=(logp.max(1, keepdims=True) - logp).astype(np.float32),
            log_odds=found.log_odds.numpy(),
            temperatures=(1.0,),
            vocab_size=V,
            estimator="sampled",
        )
        h = hidden[i].repeat(draws, 1).requires_grad_()
        out = DistillLoss(alpha=1.0)(h, Head(weight=weight), batch_of(targets))
        (each,) = torch.autograd.grad(out.loss * draws, h)
        exact = (
            torch.softmax(hidden[i] @ weight.T, 0) - torch.softmax(teacher[i].double(), 0)
        ) @ weight
        deviation = (each.mean(0) - exact).abs() / (each.std(0) / draws**0.5)
        assert float(deviation.max()) < 3.0
