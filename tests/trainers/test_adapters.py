"""Students that learn an adapter beside a frozen base: what learns, what is saved, and over which base."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("peft", reason="needs peft")

from softlabels.errors import ConfigError, IntegrityError, RunError
from softlabels.store.reader import open_store
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.students import LLAMA, evaluate_run, llama
from tests.trainers.exporting import fresh
from trainers.data.batch import collate
from trainers.data.tasks import Task
from trainers.exports.config import ExportConfig
from trainers.exports.student import export
from trainers.run.checkpoint import CHECKPOINTS
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import load_student, make_student
from trainers.testing import check_student

LORA = "lora=r:4,alpha:8,targets:all-linear"


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    build_tiny(folder / "store", write_corpus(folder / "corpus"))
    build_tiny(folder / "heldout", write_corpus(folder / "other", documents=3, repeat=1))
    (folder / "llama.json").write_text(json.dumps(LLAMA))
    (folder / "base").mkdir()
    make_student(f"hf-config:{folder}/llama.json", seed=0, task=Task()).save(folder / "base")
    (folder / "base" / "tokenizer.json").write_bytes(
        TinyTeacher().tokenizer.files()["tokenizer.json"]
    )
    return folder


def config_of(ground, **changes):
    values = {"steps": 6, "batch_size": 4, "lr": 1e-2, "dtype": "float32", "checkpoint_every": 3}
    values["student"] = f"hf:{ground}/base?{LORA}"
    return RunConfig(store=str(ground / "store"), **(values | changes))


def test_an_adapter_keeps_the_contract(ground):
    check_student(f"hf:{ground}/base?{LORA}", ground / "store")


def test_only_the_adapter_learns_and_it_begins_as_the_base(ground):
    student = make_student(f"hf:{ground}/base?{LORA}", seed=0, task=Task())
    base = make_student(f"hf:{ground}/base", seed=0, task=Task())
    learning = {n for n, p in student.named_parameters() if p.requires_grad}
    assert len(learning) == 4 * 7 * 2
    assert all(".lora_A." in n or ".lora_B." in n for n in learning)
    assert student.trained_count == sum(p.numel() for p in student.learnt().values())
    assert student.parameter_count == base.parameter_count + student.trained_count
    batch = collate([open_store(ground / "store").row(0)])
    assert torch.equal(student.hidden(batch), base.hidden(batch))
    other = make_student(f"hf:{ground}/base?{LORA}", seed=1, task=Task())
    name = min(n for n in learning if "lora_A" in n)
    assert not torch.equal(student.learnt()[name], other.learnt()[name])


def test_a_run_saves_the_adapter_alone_and_goes_on_to_the_bit(ground, tmp_path):
    run = tmp_path / "run"
    folder = train(config_of(ground), run)
    saved = load_file(folder / "adapter_model.safetensors")
    assert not (folder / "model.safetensors").exists()
    assert len(saved) == 4 * 7 * 2
    assert all(bool(t.any()) for t in saved.values())
    held = load_file(run / CHECKPOINTS / "step-00000006/model.safetensors")
    assert len(held) == len(saved)
    shutil.rmtree(folder)
    shutil.rmtree(run / CHECKPOINTS / "step-00000006")
    again = load_file(train(config_of(ground), run, resume=True) / "adapter_model.safetensors")
    assert saved.keys() == again.keys()
    assert all(torch.equal(again[name], t) for name, t in saved.items())
    summary = json.loads((run / "run.json").read_text())
    assert summary["trained"] == sum(t.numel() for t in saved.values())


@pytest.fixture(scope="module")
def run(ground):
    train(config_of(ground, ema=0.5), ground / "run")
    return ground / "run"


def test_the_averaged_adapter_is_saved_too(run):
    ema = load_file(run / "student-ema/adapter_model.safetensors")
    last = load_file(run / "student/adapter_model.safetensors")
    assert ema.keys() == last.keys()
    assert not any(torch.equal(ema[name], last[name]) for name in last)


def test_a_finished_adapter_is_evaluated_and_learns_on(ground, run, tmp_path):
    base = tmp_path / "base-run"
    train(config_of(ground, student=f"hf:{ground}/base", steps=1, lr=1e-12), base)
    nll = evaluate_run(run, ground / "store").nll
    assert nll < evaluate_run(base, ground / "store").nll
    config = config_of(ground, student=None, init=str(run), steps=20)
    train(config, tmp_path / "next")
    assert evaluate_run(tmp_path / "next", ground / "store").nll < nll


@pytest.mark.slow
def test_peft_and_transformers_load_it_without_this_project(ground, run):
    student = load_student(run / "student").eval()
    batch = collate([open_store(ground / "store").row(0)])
    ids = batch.inputs["input_ids"]
    with torch.no_grad():
        expected = student.model(input_ids=ids).logits
    code = """
import json, sys, torch, transformers, peft
ids = torch.tensor(json.loads(sys.argv[4]))
base = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[2])
one = peft.PeftModel.from_pretrained(base, sys.argv[3]).eval()
two = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[3]).eval()
with torch.no_grad():
    print(json.dumps([m(input_ids=ids).logits.flatten().tolist() for m in (one, two)]))
"""
    out = fresh(
        code,
        ground / "base",
        run / "student",
        json.dumps(ids.tolist()),
        without="softlabels,trainers",
    )
    for found in json.loads(out.strip().splitlines()[-1]):
        assert torch.equal(torch.tensor(found), expected.flatten())


def test_another_base_is_refused(ground, run, tmp_path):
    copied = tmp_path / "base"
    shutil.copytree(ground / "base", copied)
    spec = f"hf:{copied}?{LORA}"
    train(config_of(ground, student=spec), tmp_path / "run")
    other = make_student(f"hf-config:{ground}/llama.json", seed=5, task=Task())
    other.save(copied)
    with pytest.raises(IntegrityError, match="was learnt over a base whose weights have sha256"):
        load_student(tmp_path / "run/student")
    with pytest.raises(RunError, match="its adapter was begun over a base"):
        train(config_of(ground, student=spec), tmp_path / "run", resume=True)
    shutil.rmtree(copied)
    with pytest.raises(ConfigError, match=r"its base .*/base: no such folder"):
        load_student(tmp_path / "run/student")


def test_an_altered_adapter_is_refused(run, tmp_path):
    shutil.copytree(run / "student", tmp_path / "student")
    path = tmp_path / "student/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(IntegrityError, match="cannot be read"):
        load_student(tmp_path / "student")
    shutil.copy(run / "student/adapter_model.safetensors", path)
    config = tmp_path / "student/adapter_config.json"
    config.write_text(config.read_text().replace('"r": 4', '"r": 2'))
    with pytest.raises(IntegrityError, match=r"holds other weights than adapter_config\.json says"):
        load_student(tmp_path / "student")
    (tmp_path / "student/softlabels_base.json").write_text("{}")
    with pytest.raises(ConfigError, match="over which base it was learnt"):
        load_student(tmp_path / "student")


SETTINGS = {
    "a module to import": ({"megatron_core": "evil", "megatron_config": {"a": 1}}, ConfigError, 'megatron_co.* = '),
    "weights elsewhere": ({"modules_to_save": ["lm_head"]}, ConfigError, r'modules_to_save = \["lm_head"\]'),
    "another scale": ({"use_rslora": True}, ConfigError, "use_rslora = true"),
    "the first layer alone": ({"layers_to_transform": 0}, ConfigError, "layers_to_transform = 0"),
    "of a later PEFT": ({"use_novelty": True}, ConfigError, "use_novelty = true, .* merge it into its base"),
    "another kind": ({"peft_type": "IA3"}, ConfigError, 'peft_type = "IA3"'),
    "a pattern of layers": ({"target_modules": ".*_proj"}, IntegrityError, "cannot be"),
    "no rank": ({"r": -1}, IntegrityError, "cannot be"),
    "a rank that is none": ({"r": "4"}, IntegrityError, "no adapter's configuration|cannot be"),
    "an endless scale": ({"lora_alpha": float("inf")}, IntegrityError, "cannot be"),
    "no list": ({"target_modules": 3}, IntegrityError, "no adapter's configuration"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_are_not_ours_are_refused_unused(run, tmp_path, name):
    changes, kind, says = SETTINGS[name]
    shutil.copytree(run / "student", tmp_path / "student")
    config = tmp_path / "student/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(kind, match=says):
        load_student(tmp_path / "student")


def test_a_configuration_of_another_peft_is_read(run, tmp_path):
    """0.18 had fewer settings, and a later one may have more, which are off."""
    shutil.copytree(run / "student", tmp_path / "student")
    path = tmp_path / "student/adapter_config.json"
    config = json.loads(path.read_text())
    for name in ("velora_config", "lora_ga_config", "monteclora_config", "kasa_config"):
        config.pop(name, None)
    config |= {
        "use_novelty": False,
        "novelty_config": None,
        "use_bdlora": False,
        "arrow_config": {},
    }
    path.write_text(json.dumps(config | {"peft_version": "0.18.0"}))
    again = load_student(tmp_path / "student").learnt()
    assert all(torch.equal(again[n], t) for n, t in load_student(run / "student").learnt().items())


def test_what_is_saved_again_is_the_same_file(run, tmp_path):
    student = load_student(run / "student")
    student.save(tmp_path)
    config = "adapter_config.json"
    assert json.loads((tmp_path / config).read_text()) == json.loads(
        (run / "student" / config).read_text()
    )


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("lora=r:0", "is no adapter; expected lora=r:16"),
        ("lora=rank:4", "is no adapter"),
        ("lora=r:4,targets:nothing", "transformers cannot load it: Target modules"),
        ("lora=r:4,targets:lm_head", "targets name the head or the embeddings"),
        ("lora=r:4&fake-quant=int4", "an adapter learns beside a frozen base"),
        ("quant=nf4", "add lora=r:16 to learn an adapter"),
        ("lora=r:4&quant=int3", "quant='int3' is no format; expected nf4 or int8"),
    ],
)
def test_what_is_no_adapter_is_refused(ground, query, message):
    with pytest.raises(ConfigError, match=message):
        make_student(f"hf:{ground}/base?{query}", seed=0, task=Task())


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_an_adapter_learns_over_a_base_of_few_bits(ground, tmp_path, quant):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    student = f"hf:{ground}/base?{LORA}&quant={quant}"
    run = tmp_path / "run"
    folder = train(config_of(ground, student=student), run)
    saved = load_file(folder / "adapter_model.safetensors")
    assert all(bool(t.any()) for t in saved.values())
    shutil.rmtree(folder)
    shutil.rmtree(run / CHECKPOINTS / "step-00000006")
    train(config_of(ground, student=student), run, resume=True)
    again = load_file(folder / "adapter_model.safetensors")
    assert all(torch.equal(again[name], t) for name, t in saved.items())
    loaded = load_student(folder)
    plain = make_student(f"hf:{ground}/base", seed=0, task=Task())
    assert loaded.parameter_count == plain.parameter_count + loaded.trained_count


def test_what_is_frozen_does_not_learn(ground, tmp_path):
    config = LLAMA | {"tie_word_embeddings": False}
    (tmp_path / "untied.json").write_text(json.dumps(config))
    spec = f"hf-config:{tmp_path}/untied.json"
    begun = make_student(spec, seed=0, task=Task()).model.state_dict()
    for part, frozen in (("head", "lm_head"), ("embeddings", "model.embed_tokens")):
        folder = train(config_of(ground, student=spec, freeze=(part,), steps=2), tmp_path / part)
        saved = load_file(folder / "model.safetensors")
        same = {name for name, weight in saved.items() if torch.equal(weight, begun[name])}
        assert same == {f"{frozen}.weight"}


def test_a_part_that_cannot_be_frozen_is_refused(ground, tmp_path):
    with pytest.raises(ConfigError, match="--freeze body: expected head or embeddings"):
        config_of(ground, freeze=("body",))
    spec = f"hf:{ground}/base"
    with pytest.raises(ConfigError, match="tied to its embeddings; give --freeze head --freeze"):
        train(config_of(ground, student=spec, freeze=("head",)), tmp_path / "run")
    both = config_of(ground, student=spec, freeze=("head", "embeddings"), steps=1)
    folder = train(both, tmp_path / "run")
    begun = load_file(ground / "base/model.safetensors")
    table = "model.embed_tokens.weight"
    assert torch.equal(load_file(folder / "model.safetensors")[table], begun[table])


@pytest.mark.parametrize("quant", ["", "&quant=nf4"])
def test_merged_it_is_one_model_with_the_students_answers(ground, tmp_path, quant):
    if quant:
        pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    (tmp_path / "wide.json").write_text(json.dumps(llama(layers=2, width=32)))  # in blocks of 32
    (tmp_path / "wide").mkdir()
    make_student(f"hf-config:{tmp_path}/wide.json", seed=0, task=Task()).save(tmp_path / "wide")
    student = f"hf:{tmp_path}/wide?{LORA}{quant}"
    train(config_of(ground, student=student, steps=2, same_tokenizer=True), tmp_path / "run")
    settings = {"format": "safetensors", "heldout": str(ground / "heldout"), "tolerance": 1e-4}
    record = export(tmp_path / "run", tmp_path / "one", ExportConfig(merge=True, **settings))
    assert record.check.largest_difference <= 1e-4
    base = load_file(tmp_path / "wide/model.safetensors")
    merged = load_file(tmp_path / "one/model.safetensors")
    assert merged.keys() == base.keys()
    changed = {name for name in base if not torch.equal(merged[name], base[name])}
    assert changed == {name for name in base if "_proj" in name}
    assert all(t.dtype == torch.float32 for t in merged.values())
    assert not (tmp_path / "one/adapter_config.json").exists()
    assert "quantization_config" not in (tmp_path / "one/config.json").read_text()


def test_unmerged_it_is_exported_as_an_adapter_and_in_no_other_format(ground, run, tmp_path):
    heldout = str(ground / "heldout")
    export(run, tmp_path / "adapter", ExportConfig(format="safetensors", heldout=heldout))
    assert (tmp_path / "adapter/adapter_config.json").is_file()
    assert (tmp_path / "adapter/softlabels_base.json").is_file()
    with pytest.raises(ConfigError, match="give --merge, which exports both as one model"):
        export(run, tmp_path / "onnx", ExportConfig(format="torch-export", heldout=heldout))
    train(config_of(ground, student=f"hf:{ground}/base", steps=1), tmp_path / "run")
    config = ExportConfig(format="safetensors", heldout=heldout, merge=True)
    with pytest.raises(ConfigError, match="has no adapter; leave it out"):
        export(tmp_path / "run", tmp_path / "merged", config)
