"""What a student's states and head say is what its model's own forward says, whatever the family does in between."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from softlabels.errors import PairingError
from tests.fakes import build_tiny, write_corpus
from tests.output_families import FAMILIES, GQA, LAYERS, family
from trainers.data.tasks import Task
from trainers.loss.head import head_logits
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import Student, make_student
from trainers.students.own_logits import check_own_logits

transformers = pytest.importorskip("transformers", reason="needs the extra hf")


def fed_with(**inputs):
    """A batch of which only the inputs are looked at."""
    return SimpleNamespace(inputs=inputs)


def ids(rows=2, tokens=12):
    g = torch.Generator().manual_seed(1)
    return torch.randint(3, 300, (rows, tokens), generator=g)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_causal_lms(tmp_path, name):
    family(name).save_pretrained(tmp_path / "model")
    student = make_student(f"hf:{tmp_path / 'model'}", seed=0, task=Task()).eval()
    fed = {"input_ids": ids()}
    with torch.no_grad():
        expected = student.model(**fed, use_cache=False).logits.flatten(0, 1)
        found = head_logits(student.hidden(fed_with(**fed)).flatten(0, 1), student.head())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.manual_seed(2)
    head_logits(
        student.hidden(fed_with(**fed)).flatten(0, 1), student.head()
    ).square().sum().backward()
    mine = {n: p.grad for n, p in student.model.named_parameters()}
    student.model.zero_grad(set_to_none=True)
    student.model(**fed, use_cache=False).logits.square().sum().backward()
    for parameter_name, p in student.model.named_parameters():
        assert (mine[parameter_name] is None) == (p.grad is None), parameter_name
        if p.grad is not None:
            scale = float(p.grad.abs().max())
            torch.testing.assert_close(
                mine[parameter_name], p.grad, rtol=1e-3, atol=1e-4 * scale, msg=parameter_name
            )


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "plain (Llama)"])
@torch.no_grad()
def test_the_families_show_something(name):
    """Each does more than multiply last states, so that a student which did not know it would be another model."""
    model = family(name)
    logits = model(input_ids=ids(), use_cache=False).logits
    states = model.base_model(input_ids=ids(), use_cache=False).last_hidden_state
    plain = states @ model.get_output_embeddings().weight.T
    assert float((plain - logits).abs().max()) > 0.1 * float(logits.std())


SEQ2SEQ = {
    "T5": lambda: transformers.T5Config(
        vocab_size=300, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4,
        decoder_start_token_id=0,
    ),
    "a bias beside the head (Marian)": lambda: transformers.MarianConfig(
        vocab_size=300, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=48,
        decoder_ffn_dim=48, encoder_attention_heads=4, decoder_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        forced_eos_token_id=None,
    ),
    "cap in the decoder (T5Gemma)": lambda: transformers.T5GemmaConfig(
        encoder=t5gemma(), decoder=t5gemma(), vocab_size=300, decoder_start_token_id=0,
        tie_word_embeddings=False,
    ),
}  # fmt: skip


def t5gemma():
    return transformers.T5GemmaModuleConfig(**GQA, **LAYERS, final_logit_softcapping=3.0)


@pytest.mark.parametrize("name", SEQ2SEQ)
@torch.no_grad()
def test_encoders_with_a_decoder(tmp_path, name):
    torch.manual_seed(0)
    model = transformers.AutoModelForSeq2SeqLM.from_config(SEQ2SEQ[name]())
    if (bias := getattr(model, "final_logits_bias", None)) is not None:
        bias.normal_()
    head = model.get_output_embeddings()
    head.weight.mul_(4.0 / head.weight.std() / head.weight.shape[1] ** 0.5)
    model.save_pretrained(tmp_path / "model")
    task = Task(domain="seq2seq", vocab_size=300)
    student = make_student(f"hf:{tmp_path / 'model'}", seed=0, task=task).eval()
    fed = {
        "input_ids": ids(),
        "attention_mask": torch.ones_like(ids()),
        "decoder_input_ids": ids(tokens=7),
    }
    expected = student.model(**fed, use_cache=False).logits.flatten(0, 1)
    found = head_logits(student.hidden(fed_with(**fed)).flatten(0, 1), student.head())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if bias is not None:
        torch.testing.assert_close(student.model.final_logits_bias, bias, rtol=0, atol=0)


# -- refusals -------------------------------------------------------------------------------------


def changed(change):
    """A Llama whose forward does something to its logits."""
    model = family("plain (Llama)")
    before = model.forward

    def forward(*args, **kwargs):
        out = before(*args, **kwargs)
        out.logits = change(out.logits)
        return out

    model.forward = forward
    return Student(model)


def only_one_id(z):
    out = z.clone()
    out[..., 7] = -1e9
    return out


@pytest.mark.parametrize(
    "change",
    [lambda z: z * 0.7317, lambda z: z.sign() * z.abs().sqrt(), only_one_id],
    ids=["a scale that no configuration names", "a root", "an id that is left out"],
)
def test_what_is_not_understood_is_refused(change):
    with pytest.raises(PairingError, match=r"x: LlamaForCausalLM: what it does .* another family"):
        check_own_logits(changed(change), where="x")


def test_a_head_that_is_more_than_its_weight_is_refused():
    student = Student(family("plain (Llama)"))
    head = student.head_layer()
    plain = head.forward
    head.forward = lambda h: plain(torch.nn.functional.normalize(h, dim=-1))
    with pytest.raises(PairingError, match="x: the head of LlamaForCausalLM is not understood"):
        check_own_logits(student, where="x")


def test_a_forward_that_goes_round_its_head_is_refused():
    model = family("plain (Llama)")
    weight = model.lm_head.weight
    model.forward = lambda input_ids, **_: transformers.modeling_outputs.CausalLMOutput(
        logits=model.model(input_ids).last_hidden_state @ weight.T
    )
    with pytest.raises(PairingError, match="0 times, expected once"):
        check_own_logits(Student(model), where="x")


def test_looking_leaves_no_trace():
    """Neither the generator of random numbers nor which parts are in training."""
    student = Student(family("plain (Llama)")).train()
    student.model.model.layers[0].eval()
    training = {n: m.training for n, m in student.named_modules()}
    state = torch.get_rng_state()
    check_own_logits(student, where="x")
    assert torch.equal(state, torch.get_rng_state())
    assert training == {n: m.training for n, m in student.named_modules()}


# -- a run ----------------------------------------------------------------------------------------


def test_a_run_trains_what_lies_before_the_head(tmp_path):
    """What is published has learnt in every part of its forward, and is scored as it computes."""
    (tmp_path / "corpus").mkdir()
    build_tiny(tmp_path / "store", write_corpus(tmp_path / "corpus"), seq_len=32)
    name = "layers before the head (ModernBERT decoder)"
    family(name, initializer_range=0.1).save_pretrained(tmp_path / "model")
    config = RunConfig(
        store=(str(tmp_path / "store"),),
        student=f"hf:{tmp_path / 'model'}",
        same_tokenizer=True,
        steps=3,
        batch_size=2,
        lr=1e-2,
        warmup=0,
        log_every=1,
        dtype="float32",
    )
    folder = train(config, tmp_path / "run")
    before = load_file(tmp_path / "model" / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert [n for n in before if torch.equal(before[n], after[n])] == []
    logged = [
        json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    assert logged[-1]["loss"] < logged[0]["loss"]
