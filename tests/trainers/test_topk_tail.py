"""The primitive against a dense float64 reference: value and every gradient."""

import pytest
import torch

from trainers.loss.topk_tail import Head, topk_tail


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


def gradients(f, hidden, weight, bias, mix):
    leaves = [
        x.clone().requires_grad_() for x in (hidden, weight, *([bias] if bias is not None else []))
    ]
    columns, label, lse = f(*leaves, *([] if bias is not None else [None]))[:3]
    finite = columns > -torch.inf
    total = (
        (columns.masked_fill(~finite, 0.0) * mix[0]).sum()
        + (label * mix[1]).sum()
        + (lse * mix[2]).sum()
    )
    return (columns, label, lse), torch.autograd.grad(total, leaves)


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

    def ours(h, w, bb):
        head = Head(weight=w, bias=bb, softcap=softcap, scale=logit_scale)
        return topk_tail(h, head, ids, kept, labels, temperature=t, chunk_bytes=4 * v * 3)

    def reference(h, w, bb):
        return dense(h, w, bb, ids, kept, labels, t, softcap, logit_scale)

    found, found_grads = gradients(ours, hidden, weight, b, mix)
    expected, expected_grads = gradients(reference, hidden, weight, b, mix)
    for a, e in zip((*found, *found_grads), (*expected, *expected_grads), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-12)


def test_nothing_outside_the_kept_set():
    n, v = 5, 12
    hidden, weight, _, ids, kept, labels = problem(n, 4, v, v)
    h = hidden.clone().requires_grad_()
    out = topk_tail(h, Head(weight=weight), ids, kept, labels)
    assert bool((out.columns[:, -1] == -torch.inf).all())
    torch.log_softmax(out.columns, 1)[:, :-1].sum().backward()
    assert bool(h.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("t", [1.0, 2.0])
def test_peaked_students_stay_finite(dtype, t):
    hidden, weight, _, ids, kept, labels = problem(8, 16, 50, 4, dtype=torch.float32, scale=200.0)
    hidden = hidden.to(dtype).requires_grad_()
    head = Head(weight=weight.requires_grad_(), compute_dtype=dtype)
    out = topk_tail(hidden, head, ids, kept, labels, temperature=t)
    (torch.log_softmax(out.columns, 1).sum() + (out.lse - out.label_logit).sum()).backward()
    for x in (*out[:3], hidden.grad, weight.grad):
        assert bool(x.isfinite().all())


def test_float32_is_within_1e_6_of_float64_and_a_tiny_tail_keeps_its_digits():
    hidden, weight, _, ids, kept, labels = problem(16, 32, 500, 8)
    # Head far above the tail: 1 - sum would be 0 in float32.
    weight = weight * 0.1
    weight[ids[0]] += hidden[0] * 2
    exact = topk_tail(hidden, Head(weight=weight), ids, kept, labels)
    single = topk_tail(hidden.float(), Head(weight=weight.float()), ids, kept, labels)
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
    loss(*topk_tail(w[inputs], Head(weight=w), ids, kept, labels)[:3]).backward()
    r = table.clone().requires_grad_()
    loss(*dense(r[inputs], r, None, ids, kept, labels, 1.0, None, 1.0)).backward()
    torch.testing.assert_close(w.grad, r.grad, rtol=1e-10, atol=1e-12)


def test_chunks_do_not_change_the_numbers():
    hidden, weight, _, ids, kept, labels = problem(50, 8, 64, 5)
    whole = topk_tail(hidden, Head(weight=weight), ids, kept, labels, chunk_bytes=10**9)
    rows = topk_tail(hidden, Head(weight=weight), ids, kept, labels, chunk_bytes=1)
    for a, b in zip(whole, rows, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_autocast_outside_does_not_change_the_precision():
    hidden, weight, _, ids, kept, labels = problem(10, 8, 64, 5, dtype=torch.float32)
    plain = topk_tail(hidden, Head(weight=weight), ids, kept, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = topk_tail(hidden, Head(weight=weight), ids, kept, labels)
    assert torch.equal(plain.columns, cast.columns)
