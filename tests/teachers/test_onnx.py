"""`onnx:`: an exported graph gives the targets of the model that it was exported from."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import onnx
import torch
import transformers
from onnx import TensorProto, helper

from softlabels.errors import ConfigError, TeacherError
from softlabels.teachers import TeacherOptions, open_teacher
from tests.teachers.tiny import VOCAB, log_probs, rows_of, write_model, write_texts

TOLERANCE = 1e-4
"""Nats of a log-probability, between onnxruntime and torch on the same float32 weights."""


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return out.logits


def export(folder, file, *, external: bool) -> None:
    """As docs/teachers.md says."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.zeros((2, 7), dtype=torch.int64)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            Logits(model),
            (ids, torch.ones_like(ids)),
            file,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
            external_data=external,
            dynamo=True,
            verbose=False,
        )


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    write_model(folder / "model")
    write_texts(folder / "corpus")
    export(folder / "model", folder / "model" / "model.onnx", external=True)
    return folder


@pytest.fixture(scope="module")
def teacher(ground):
    return open_teacher(f"onnx:{ground}/model/model.onnx", TeacherOptions())


def test_it_agrees_with_hf_in_packed_and_cut_rows(ground, teacher):
    hf = open_teacher(f"hf:{ground}/model", TeacherOptions(dtype="float32"))
    rows = rows_of(hf, f"text:{ground}/corpus/*.txt")
    assert max(len(r.segment_lengths) for r in rows) > 1
    a, b = log_probs(hf.logits(rows)), log_probs(teacher.logits(rows))
    assert a.shape == b.shape
    assert np.abs(a - b).max() < TOLERANCE


def test_the_record_covers_the_external_weights(ground, teacher, tmp_path):
    record = teacher.record
    assert (record.spec, record.name) == ("onnx:model.onnx", "model")
    assert (record.vocab_size, record.dtype, record.device) == (VOCAB, "float32", "cpu")
    assert 20_000 < record.parameters < 60_000
    copy = shutil.copytree(ground / "model", tmp_path / "copy")
    assert open_teacher(f"onnx:{copy}/model.onnx", TeacherOptions()).record == record
    data = bytearray((copy / "model.onnx.data").read_bytes())
    data[-3] ^= 1
    (copy / "model.onnx.data").write_bytes(data)
    changed = open_teacher(f"onnx:{copy}/model.onnx", TeacherOptions()).record
    assert changed.weights_sha256 != record.weights_sha256


def graph(folder, inputs, *, output: str = "logits"):
    """A graph that looks up a row of logits for each id, and asks for other inputs besides."""
    table = np.random.default_rng(0).normal(size=(VOCAB, VOCAB)).astype(np.float32)
    declared = [
        helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()
    ]
    made = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], [output])],
        "lookup",
        declared,
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["b", "s", VOCAB])],
        [onnx.numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    write_model(folder)
    onnx.save(model, folder / "g.onnx")
    return table


IDS = (TensorProto.INT64, ["b", "s"])


def test_a_graph_with_a_cache_and_positions_is_fed(tmp_path):
    table = graph(
        tmp_path,
        {
            "input_ids": (TensorProto.INT32, ["b", "s"]),
            "position_ids": IDS,
            "use_cache_branch": (TensorProto.BOOL, [1]),
            "past_key_values.0.key": (TensorProto.FLOAT, ["b", 2, "past", 8]),
        },
    )
    teacher = open_teacher(f"onnx:{tmp_path}/g.onnx", TeacherOptions())
    rows = rows_of(teacher, write_texts(tmp_path / "corpus"))
    found = torch.cat(list(teacher.logits(rows))).numpy()
    expected = np.concatenate([table[r.input_ids[r.positions]] for r in rows])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("inputs", "output", "words"),
    [
        ({"input_ids": IDS, "pixels": IDS}, "logits", "asks for 'pixels'"),
        (
            {"input_ids": IDS, "past_key_values.0.key": (TensorProto.FLOAT, ["b", "h", "p", 8])},
            "logits",
            "asks for 'past_key_values.0.key'",
        ),
        ({"input_ids": IDS}, "scores", r"gives \['scores'\]; expected input_ids and logits"),
    ],
)
def test_a_graph_that_is_not_understood_is_refused(tmp_path, inputs, output, words):
    graph(tmp_path, inputs, output=output)
    with pytest.raises(TeacherError, match=words):
        open_teacher(f"onnx:{tmp_path}/g.onnx", TeacherOptions())


def test_other_mistakes_are_refused(ground, tmp_path):
    with pytest.raises(TeacherError, match="no such file"):
        open_teacher(f"onnx:{tmp_path}/none.onnx", TeacherOptions())
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(TeacherError, match="onnxruntime cannot load it"):
        open_teacher(f"onnx:{tmp_path}/bad.onnx", TeacherOptions())
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copy(ground / "model" / name, tmp_path)
    with pytest.raises(TeacherError, match="holds no tokenizer"):
        open_teacher(f"onnx:{tmp_path}/model.onnx", TeacherOptions())
    with pytest.raises(ConfigError, match=r"--dtype bfloat16: .* holds float32"):
        open_teacher(f"onnx:{ground}/model/model.onnx", TeacherOptions(dtype="bfloat16"))
    with pytest.raises(ConfigError, match="runs on cpu or cuda"):
        open_teacher(f"onnx:{ground}/model/model.onnx", TeacherOptions(device="mps"))
