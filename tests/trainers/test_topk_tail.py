"""The primitive against a dense float64 reference: value and every gradient."""

import pytest
import torch

from trainers.loss.head import Head
from trainers.loss.head_chunks import HeadChunks
from trainers.loss.topk_tail import topk_tail, topk_tail_loss


def dense(hidden, weight, bias, ids, kept, labels, t, softcap, scale):
    z = hidden @ weight.T + (0 if bias is None else bias)
    z = z * scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    outside = torch.ones_like(z, dtype=torch.bool)
    for n in range(len(ids)):
        outside[n, ids[n][kept[n]]] = False
    s = (z.gather(1, ids) / t).masked_fill(~kept, -torch.inf)
    tail = torch.logsumexp((z / t).masked_fill(~outside, -torch.inf), dim=1, keepdim=True)
    return torch.cat([s, tail], 1), z.gather(1, labels[:, None])[:, 0], torch.logsumexp(z, 1)


def problem(n, d, v, k, *, ragged=False, bias=False, dtype=torch.float64, scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=g, dtype=dtype) * scale
    weight = torch.randn(v, d, generator=g, dtype=dtype)
    b = torch.randn(v, generator=g, dtype=dtype) if bias else None
    ids = torch.stack([torch.randperm(v, generator=g)[:k] for _ in range(n)])
    kept = torch.ones(n, k, dtype=torch.bool)
    if ragged:
        for i in range(n):
            kept[i, 1 + i % k :] = False
        ids = torch.where(kept, ids, ids[:, :1])
    labels = torch.randint(v, (n,), generator=g)
    labels[: n // 2] = (
        ids[: n // 2, 0] if k else labels[: n // 2]
    )  # labels inside and outside the kept set
    return hidden, weight, b, ids, kept, labels


def mixed(columns, label, lse, mix):
    """A scalar that all columns have a part in."""
    finite = columns > -torch.inf
    total = (columns.masked_fill(~finite, 0.0) * mix[0]).sum()
    return total + (label * mix[1]).sum() + (lse * mix[2]).sum()


@pytest.mark.parametrize("t", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(
    ("k", "ragged"), [(0, False), (1, False), (8, False), (39, False), (8, True), (39, True)]
)
@pytest.mark.parametrize(
    ("bias", "softcap", "logit_scale"), [(False, None, 1.0), (True, None, 1.0), (True, 5.0, 0.5)]
)
def test_value_and_gradients_equal_the_dense_reference(t, k, ragged, bias, softcap, logit_scale):
    n, d, v = 11, 6, 40
    hidden, weight, b, ids, kept, labels = problem(n, d, v, k, ragged=ragged, bias=bias)
    g = torch.Generator().manual_seed(9)
    mix = [torch.randn(s, generator=g, dtype=torch.float64) for s in ((n, k + 1), (n,), (n,))]

    leaves = [x.requires_grad_() for x in (hidden, weight, *([b] if bias else []))]
    head = Head(weight=weight, bias=b, softcap=softcap, scale=logit_scale)
    options = {"temperature": t, "chunk_bytes": 4 * v * 3}
    expected = dense(hidden, weight, b, ids, kept, labels, t, softcap, logit_scale)
    found = topk_tail(HeadChunks(hidden, head, ids, kept, labels, **options))[:3]
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-12)

    def part_of(out, part):
        return mixed(*out[:3], [m[part] for m in mix])

    total = topk_tail_loss(HeadChunks(hidden, head, ids, kept, labels, **options), part_of)
    torch.testing.assert_close(total, mixed(*expected, mix), rtol=1e-10, atol=1e-12)
    found = torch.autograd.grad(total, leaves)
    for a, e in zip(found, torch.autograd.grad(mixed(*expected, mix), leaves), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-12)


def test_nothing_outside_the_kept_set():
    n, v = 5, 12
    hidden, weight, _, ids, kept, labels = problem(n, 4, v, v)
    h = hidden.clone().requires_grad_()
    out = topk_tail(HeadChunks(h, Head(weight=weight), ids, kept, labels))
    assert bool((out.columns[:, -1] == -torch.inf).all())
    assert not out.columns.requires_grad

    def kept_ones(out, part):
        return torch.log_softmax(out.columns, 1)[:, :-1].sum()

    topk_tail_loss(HeadChunks(h, Head(weight=weight), ids, kept, labels), kept_ones).backward()
    assert bool(h.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("t", [1.0, 2.0])
def test_peaked_students_stay_finite(dtype, t):
    hidden, weight, _, ids, kept, labels = problem(8, 16, 50, 4, dtype=torch.float32, scale=200.0)
    hidden = hidden.to(dtype).requires_grad_()
    head = Head(weight=weight.requires_grad_(), compute_dtype=dtype)
    out = topk_tail(HeadChunks(hidden, head, ids, kept, labels, temperature=t))

    def both(out, part):
        return torch.log_softmax(out.columns, 1).sum() + (out.lse - out.label_logit).sum()

    topk_tail_loss(HeadChunks(hidden, head, ids, kept, labels, temperature=t), both).backward()
    for x in (*out[:3], hidden.grad, weight.grad):
        assert bool(x.isfinite().all())


def test_float32_is_within_1e_6_of_float64_and_a_tiny_tail_keeps_its_digits():
    hidden, weight, _, ids, kept, labels = problem(16, 32, 500, 8)
    # Head far above the tail: 1 - sum would be 0 in float32.
    weight = weight * 0.1
    weight[ids[0]] += hidden[0] * 2
    exact = topk_tail(HeadChunks(hidden, Head(weight=weight), ids, kept, labels))
    single = topk_tail(HeadChunks(hidden.float(), Head(weight=weight.float()), ids, kept, labels))
    torch.testing.assert_close(single.columns.double(), exact.columns, rtol=1e-6, atol=1e-5)
    assert (
        exact.columns[0, -1] - exact.lse[0] < -17
    )  # the tail's share is below float32's resolution of 1


def test_a_tied_weight_gets_both_gradients():
    v, d = 30, 5
    g = torch.Generator().manual_seed(0)
    table = torch.randn(v, d, generator=g, dtype=torch.float64)
    inputs, labels = torch.randint(v, (9,), generator=g), torch.randint(v, (9,), generator=g)
    ids = torch.stack([torch.randperm(v, generator=g)[:3] for _ in range(9)])
    kept = torch.ones_like(ids, dtype=torch.bool)

    def loss(columns, label, lse):
        return torch.log_softmax(columns, 1)[:, 0].sum() + (lse - label).sum()

    w = table.clone().requires_grad_()
    topk_tail_loss(
        HeadChunks(w[inputs], Head(weight=w), ids, kept, labels), lambda out, _: loss(*out[:3])
    ).backward()
    r = table.clone().requires_grad_()
    loss(*dense(r[inputs], r, None, ids, kept, labels, 1.0, None, 1.0)).backward()
    torch.testing.assert_close(w.grad, r.grad, rtol=1e-10, atol=1e-12)


def test_chunks_do_not_change_the_numbers():
    hidden, weight, _, ids, kept, labels = problem(50, 8, 64, 5)
    whole = topk_tail(HeadChunks(hidden, Head(weight=weight), ids, kept, labels, chunk_bytes=10**9))
    rows = topk_tail(HeadChunks(hidden, Head(weight=weight), ids, kept, labels, chunk_bytes=1))
    for a, b in zip(whole, rows, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_autocast_outside_does_not_change_the_precision():
    hidden, weight, _, ids, kept, labels = problem(10, 8, 64, 5, dtype=torch.float32)
    plain = topk_tail(HeadChunks(hidden, Head(weight=weight), ids, kept, labels))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = topk_tail(HeadChunks(hidden, Head(weight=weight), ids, kept, labels))
    assert torch.equal(plain.columns, cast.columns)
