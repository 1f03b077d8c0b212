"""`distil_loss` on models as others have them, against a dense float64 softmax over all of V: value and gradients."""

from __future__ import annotations

import copy
import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from softlabels.errors import ConfigError, PairingError
from tests.fakes import build_tiny, write_corpus
from tests.students import llama
from trainers import DistillLoss, SoftTargetStream, StepTotals, distil_loss
from trainers.data.microbatches import split_batch
from trainers.data.packing import collate_packed, flattened

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
T, ALPHA = 2.0, 0.7
LOSS = DistillLoss(temperature=T, alpha=ALPHA, chunk_bytes=40_000)  # a few rows in a chunk
SMALL = llama(layers=2, width=16)
needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="needs the extra trl, for PEFT"
)


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Rows of several documents, of which some positions are soft."""
    folder = tmp_path_factory.mktemp("distil")
    (folder / "corpus").mkdir()
    corpus = write_corpus(folder / "corpus", documents=1, repeat=1)
    for i in range(12):
        (folder / "corpus" / f"short{i}.txt").write_text("A document. "[: 3 + i % 9] * 4)
    build_tiny(folder / "store", corpus, temperature=(1.0, T), positions="entropy:0.5")
    made = SoftTargetStream(folder / "store", batch_size=4, prefetch=0).batch_at(0)
    assert "position_ids" in made.inputs
    assert 0 < made.soft_positions < made.positions
    return made


def dense(model, batch):
    """The loss as a sum over all V of float64 logits, differentiable."""
    z = batch.at_positions(model(**batch.inputs, use_cache=False).logits)  # a cache mixes documents
    targets, where = batch.targets, torch.from_numpy(np.flatnonzero(batch.targets.soft))
    hard = nn.functional.cross_entropy(z, batch.labels)
    z, ids = z[where] / T, torch.from_numpy(targets.ids.astype(np.int64))[where]
    kept = torch.from_numpy(targets.kept)[where]
    log_q = torch.log_softmax(z, dim=1)
    outside = log_q.scatter(1, torch.where(kept, ids, ids[:, :1]), -torch.inf)
    bins = log_q.gather(1, ids).masked_fill(~kept, -torch.inf)
    bins = torch.cat([bins, torch.logsumexp(outside, dim=1, keepdim=True)], dim=1)
    log_p = torch.from_numpy(targets.log_bins(T)).double()[where]
    p = log_p.exp()
    kl = torch.where(p > 0, p * (log_p - bins), 0.0).sum(dim=1).mean()
    return ALPHA * T**2 * kl + (1 - ALPHA) * hard


def check(model, batch):
    """Value and every gradient are those of the dense loss."""
    model = model.double().train()
    other = copy.deepcopy(model)
    expected = dense(other, batch)
    expected.backward()
    found = distil_loss(model, batch, LOSS)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-9)
    trained = 0
    for (name, mine), (_, theirs) in zip(
        model.named_parameters(), other.named_parameters(), strict=True
    ):
        assert (mine.grad is None) == (theirs.grad is None), name
        if theirs.grad is None:
            continue
        trained += 1
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-7, atol=1e-8 * scale, msg=name)
    assert trained
    head = model.get_output_embeddings()
    assert "forward" not in vars(head)  # given back


def plain(kind=None, **changes):
    torch.manual_seed(0)
    values = {k: v for k, v in SMALL.items() if k not in ("model_type", "architectures")}
    config = transformers.AutoConfig.for_model(kind or "llama", **(values | changes))
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8.0)  # so that caps and tails bite
    return model


FAMILIES = {
    "tied": ("llama", {}),
    "untied": ("llama", {"tie_word_embeddings": False}),
    "soft cap (Gemma 2)": ("gemma2", {"final_logit_softcapping": 3.0}),
    "logit scale (Cohere)": ("cohere", {"logit_scale": 0.25, "pad_token_id": 0}),
    "logits scaling (Granite)": ("granite", {"logits_scaling": 6.0}),
    "scaling that multiplies (HyperCLOVA X)": ("hyperclovax", {"logits_scaling": 0.5}),
    "learnt bias (Phi)": ("phi", {"tie_word_embeddings": False}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_heads(batch, family):
    kind, changes = FAMILIES[family]
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    check(plain(kind, **changes), batch)


@needs_peft
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "adapter",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 65, 100]},
    ],
    ids=["body", "head", "DoRA", "saved head", "tokens"],
)
@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")  # its advice on tied weights
def test_adapters(batch, adapter, tied):
    import peft

    model = plain("gemma2", final_logit_softcapping=3.0, tie_word_embeddings=tied)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **adapter))
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)  # zeros would leave lora_A without gradient
    check(model, batch)


class Int8Linear(nn.Module):
    """A quantised layer, as libraries make them: not `nn.Linear`, its weight no parameter."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        scale = layer.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("packed", (layer.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.out_features = layer.out_features

    def forward(self, x):
        return x @ (self.packed.to(x.dtype) * self.scale).T


@pytest.mark.parametrize("head", [False, True])
def test_a_quantised_base(batch, head):
    model = plain(tie_word_embeddings=False)
    for layer in model.model.layers:
        layer.mlp.up_proj = Int8Linear(layer.mlp.up_proj)
    if head:
        model.lm_head = Int8Linear(model.lm_head)
    check(model, batch)


def test_micro_batches_and_the_layout_of_rows_change_nothing(batch):
    model = plain().double()
    whole = distil_loss(model, batch, LOSS).loss.item()
    parts = list(split_batch(batch, 4))
    totals = StepTotals.over(LOSS.count(p) for p in parts)
    shares = [distil_loss(model, p, LOSS, totals=totals).loss.item() for p in parts]
    assert sum(shares) == pytest.approx(whole, rel=1e-9)
    flat = flattened(batch)
    assert flat.inputs["input_ids"].shape[0] == 1
    assert distil_loss(model, flat, LOSS).loss.item() == pytest.approx(whole, rel=1e-9)


def test_nothing_of_positions_times_vocabulary_is_made(batch):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, torch.Tensor) and x.dim() > 1 and x.shape[-1] == 300:
                    self.size = max(self.size, x.numel() // 300)
            return out

    model = plain()
    with Largest() as seen:
        distil_loss(model, batch, LOSS).loss.backward()
    assert 1 < seen.size < batch.positions / 4  # the rows of a chunk


# -- refusals -------------------------------------------------------------------------------------


def test_another_vocabulary_is_refused(batch):
    with pytest.raises(PairingError, match="its head has 310 ids, the targets 300"):
        distil_loss(plain(vocab_size=310), batch, LOSS)


def test_a_model_without_a_head_is_refused(batch):
    with pytest.raises(ConfigError, match="no head over a vocabulary"):
        distil_loss(plain().model, batch, LOSS)


def test_a_forward_that_does_something_else_with_logits_is_refused(batch):
    model = plain()
    model.lm_head.register_forward_hook(lambda _m, _a, out: out.sign() * out.abs().sqrt())
    with pytest.raises(ConfigError, match="neither a scale nor a soft cap"):
        distil_loss(model, batch, LOSS)


def test_a_scale_that_no_configuration_names_is_refused(batch):
    """It may be a parameter, which would get no gradient."""
    model = plain()
    model.lm_head.register_forward_hook(lambda _m, _a, out: out * 0.7317)
    with pytest.raises(ConfigError, match="neither a scale nor a soft cap"):
        distil_loss(model, batch, LOSS)


def test_a_forward_that_goes_round_its_head_is_refused(batch):
    model = plain()
    head = model.lm_head
    distil_loss(model, batch, LOSS)  # what it does with its output is known by now
    model.forward = lambda input_ids, **_: transformers.modeling_outputs.CausalLMOutput(
        logits=model.model(input_ids).last_hidden_state @ head.weight.T
    )
    with pytest.raises(ConfigError, match="does not call its head"):
        distil_loss(model, batch, LOSS)


@needs_peft
def test_virtual_tokens_are_refused(batch):
    import peft

    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(plain(), config)
    with pytest.raises(ConfigError, match="PROMPT_TUNING puts states before"):
        distil_loss(model, batch, LOSS)


# -- packing --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(batch, tmp_path_factory):
    from trainers.integrations.rows import StoreRows

    folder = tmp_path_factory.mktemp("packing")
    (folder / "corpus").mkdir()
    for i in range(30):
        (folder / "corpus" / f"short{i}.txt").write_text("A document. "[: 3 + i % 9] * (1 + i % 4))
    build_tiny(
        folder / "store",
        f"text:{folder / 'corpus'}/*.txt",
        temperature=(1.0, T),
        seq_len=24,
    )
    store = StoreRows(folder / "store")
    return [store[i] for i in range(min(9, len(store)))]


@pytest.mark.parametrize("most", [None, 24, 40, 64])
def test_packed_rows_have_the_loss_of_padded_ones(rows, most):
    from trainers.data.batch import collate

    model = plain().double()
    packed, padded = collate_packed(rows, most=most), collate(rows)
    assert packed.width <= (most or 10**9)
    assert packed.positions == padded.positions
    assert sorted(packed.flat_positions.tolist()) == sorted(set(packed.flat_positions.tolist()))
    found, expected = (distil_loss(model, b, LOSS) for b in (packed, padded))
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-9)
    places = packed.inputs["input_ids"].numel()
    if most is None:
        assert places == sum(r.row.size for r in rows)
    else:
        assert places <= padded.inputs["input_ids"].numel() or most > 24


def test_a_row_that_does_not_fit_is_refused_and_never_cut(rows):
    longest = max(r.row.size for r in rows)
    with pytest.raises(ConfigError, match=f"more than the {longest - 1} of a packed row"):
        collate_packed(rows, most=longest - 1)
