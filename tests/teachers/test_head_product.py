"""A head's product from 16-bit numbers, summed in float32: the rule, and why it is exact. CUDA is in tests/gpu."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlabels.teachers import TeacherOptions, head_product, open_teacher
from softlabels.teachers.head_product import HALVES, HeadProduct, has_out_dtype, in_halves
from tests.teachers.tiny import write_model


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_only_16_bit_weights_on_cuda_stay_as_they_are(device, dtype):
    assert in_halves(device, dtype) == (device == "cuda" and dtype != torch.float32)


@given(
    seed=st.integers(0, 2**32), dtype=st.sampled_from(HALVES), scale=st.sampled_from([1e-2, 1, 60])
)
def test_a_product_of_16_bit_numbers_is_a_float32_number(seed, dtype, scale):
    """So nothing is lost before the sum, which is in float32 either way."""
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(2, 500, generator=g) * scale).to(dtype)
    assert torch.equal((a.float() * b.float()).double(), a.double() * b.double())


@pytest.fixture
def as_cuda(monkeypatch):
    """The rule of a CUDA device on this one, whose own product of this kind torch does not have."""
    asked = []

    def mm(states, weight, *, out_dtype):
        of = torch.backends.cuda.matmul
        asked.append((states.dtype, weight.dtype, out_dtype))
        assert not of.allow_bf16_reduced_precision_reduction
        assert not of.allow_fp16_reduced_precision_reduction
        return states.float() @ weight.float()

    monkeypatch.setattr(head_product, "in_halves", lambda _, dtype: in_halves("cuda", dtype))
    monkeypatch.setattr(head_product.torch, "mm", mm)
    return asked


@pytest.mark.parametrize("dtype", HALVES)
def test_it_equals_the_product_of_float32_numbers(as_cuda, monkeypatch, dtype):
    monkeypatch.setattr(head_product, "has_out_dtype", lambda: True)
    before = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    weight, bias = torch.randn(40, 16).to(dtype), torch.randn(40)
    states = torch.randn(5, 16).to(dtype)
    own, wide = HeadProduct.of(weight, bias), HeadProduct(weight.float(), bias, halves=False)
    assert own.halves
    assert own.weight is weight, "no float32 copy of it is made"
    assert own(states).dtype == torch.float32
    torch.testing.assert_close(own(states), wide(states), rtol=1e-6, atol=1e-6)
    assert as_cuda == [(dtype, dtype, torch.float32)] * 2
    torch.testing.assert_close(own(states.float()), wide(states), rtol=1e-6, atol=1e-6)
    assert len(as_cuda) == 2, "float32 states are not rounded to the weights' dtype"
    assert torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction == before


def test_an_older_torch_multiplies_float32_numbers(as_cuda, monkeypatch):
    monkeypatch.setattr(head_product, "has_out_dtype", lambda: False)
    own = HeadProduct.of(torch.randn(40, 16).bfloat16(), None)
    assert not own.halves
    assert own.weight.dtype == torch.float32


def test_this_torch_is_asked_whether_it_can():
    newer = tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 8)
    assert has_out_dtype() == newer


def test_a_teacher_in_bfloat16_gives_the_same_logits(as_cuda, monkeypatch, tmp_path):
    monkeypatch.setattr(head_product, "has_out_dtype", lambda: True)
    path = write_model(tmp_path / "model")
    own = open_teacher(f"hf:{path}", TeacherOptions(device="cpu", dtype="bfloat16"))
    assert as_cuda, "the check of the head went this way, too"
    states = torch.randn(6, own.head.weight.shape[1]).bfloat16()
    expected = states.float() @ own.head.weight.float().T
    torch.testing.assert_close(own.to_logits(states), expected, rtol=1e-6, atol=1e-6)
