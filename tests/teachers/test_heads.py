"""What a teacher of transformers shows of its head: states and head give its logits, whatever its family does."""

import json
from dataclasses import replace

import pytest
import torch

from softlabels.builder.build import build
from softlabels.builder.config import StatesConfig
from softlabels.builder.states import write_states
from softlabels.domains.causal_lm.teacher import HFTeacher
from softlabels.store.reader import open_store
from softlabels.teachers import TeacherOptions, open_teacher
from tests.domains import models
from tests.domains.test_masked_lm import config, run_config
from tests.output_families import FAMILIES, family
from tests.teachers.test_tokenizer import make
from tests.teachers.tiny import VOCAB, rows_of, write_model, write_texts
from trainers.run.setup import train


def check(teacher, rows):
    weight, bias, scale, cap = teacher.head
    states = teacher.states(rows)
    z = states.float() @ weight.float().T
    z = scale * (z if bias is None else z + bias.float())
    z = z if cap is None else cap * torch.tanh(z / cap)
    expected = torch.cat([c.clone() for c in teacher.logits(rows)])
    assert states.dtype == weight.dtype
    torch.testing.assert_close(z, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_causal_lms(tmp_path, name):
    model = family(name, vocab_size=VOCAB)
    model.save_pretrained(tmp_path / "model")
    make().save_pretrained(tmp_path / "model")
    teacher = open_teacher(f"hf:{tmp_path / 'model'}", TeacherOptions(dtype="float32"))
    assert isinstance(teacher, HFTeacher)
    rows = rows_of(teacher, write_texts(tmp_path / "texts"))[:5]
    check(teacher, rows)
    alone = rows[0]
    with torch.no_grad():
        ids = torch.from_numpy(alone.input_ids).long()[None, : int(alone.segment_lengths[0])]
        expected = model(input_ids=ids, use_cache=False).logits[0, : ids.shape[1] - 1]
    found = torch.cat([c.clone() for c in teacher.logits([alone])])[: ids.shape[1] - 1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_the_dtype_of_the_body(tmp_path, dtype):
    write_model(tmp_path / "model")
    teacher = open_teacher(f"hf:{tmp_path / 'model'}", TeacherOptions(dtype=dtype))
    assert teacher.head.weight.dtype == getattr(torch, dtype)
    check(teacher, rows_of(teacher, write_texts(tmp_path / "texts"))[:5])


def test_a_masked_language_model_and_a_student_of_its_states(tmp_path):
    """Its head, with a bias, is given what lies between the last layer and it."""
    models.save_masked_lm(tmp_path / "teacher")
    models.write_corpus(tmp_path / "train.jsonl", labelled=False)
    models.config(layers=1, initializer_range=0.05).to_json_file(tmp_path / "student.json")
    build(config(tmp_path), tmp_path / "store")
    spec = f"hf:{tmp_path / 'teacher'}"
    teacher = open_teacher(spec, TeacherOptions(domain="masked-lm", dtype="float32"))
    check(teacher, [row.row for row in open_store(tmp_path / "store")][:5])
    write_states(tmp_path / "store", StatesConfig(teacher=spec), tmp_path / "states")
    run = run_config(tmp_path, tmp_path / "store", steps=5, log_every=1, dtype="float32")
    train(run, tmp_path / "dense")
    train(replace(run, teacher_states=str(tmp_path / "states")), tmp_path / "full")
    losses = [
        [
            json.loads(line)["loss"]
            for line in (tmp_path / r / "metrics.jsonl").read_text().splitlines()
        ]
        for r in ("dense", "full")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # the store keeps all ids
