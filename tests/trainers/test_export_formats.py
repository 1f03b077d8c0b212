"""Each format gives the student's answers to someone who has neither this project nor what made the export."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="needs onnxruntime")
pytest.importorskip("onnxscript", reason="needs onnxscript")

import onnx
from onnx import numpy_helper

from softlabels.store.reader import open_store
from tests.students import evaluate_run
from tests.trainers.exporting import (
    LM,
    STUDENTS,
    TOKENIZER,
    fresh,
    log_softmax,
    make_run,
    make_stores,
)
from trainers.exports import FORMATS, onnx_float, onnx_int8
from trainers.exports.config import ExportConfig
from trainers.exports.onnx_float import export_onnx
from trainers.exports.record import read_export
from trainers.exports.student import export
from trainers.students import load_student
from trainers.testing import check_export

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export-formats")
    make_stores(folder)
    for name in STUDENTS:
        make_run(folder, name, steps=40 if name == "llama" else 10)
    return folder


@pytest.fixture(scope="module")
def exported(ground):
    """Exports by student and format; what the int8 formats begin with is made once for each student."""
    made: dict[Path, bytes] = {}

    def export_once(job, path):
        if job.folder not in made:
            export_onnx(job, path)
            made[job.folder] = path.read_bytes()
        path.write_bytes(made[job.folder])

    patch = pytest.MonkeyPatch()
    for module in (onnx_float, onnx_int8):
        patch.setattr(module, "export_onnx", export_once)
    done: dict[tuple[str, str], Path] = {}

    def of(student: str, kind: str) -> Path:
        if (student, kind) not in done:
            out = ground / f"{student}-{kind}"
            config = ExportConfig(
                format=kind, heldout=str(ground / "heldout"), tolerance=TOLERANCE[kind]
            )
            export(ground / f"run-{student}", out, config)
            done[student, kind] = out
        return done[student, kind]

    yield of
    patch.undo()


TOLERANCE = {
    "safetensors": 1e-5,
    "torch-export": 1e-5,
    "onnx": 1e-5,
    "onnx-int8": 0.03,  # of 40 steps of training, whose probabilities lie close together
    "onnx-int8-static": 0.03,
}

# -- someone else's process -----------------------------------------------------------------------

ASK = """
import numpy as np, onnxruntime
with np.load(sys.argv[2]) as asked:
    inputs = dict(asked)
session = onnxruntime.InferenceSession(sys.argv[3] + "/model.onnx")
np.save(sys.argv[4], session.run(["logits"], inputs)[0])
assert not BLOCKED & set(sys.modules)
"""


def asked_and_expected(ground, student):
    """A batch of real texts of different lengths, padded on the left; the student's logits of each alone."""
    store = open_store(ground / "heldout")
    examples = sorted(LM.examples(store, range(len(store))), key=LM.size)[:: len(store) // 2]
    assert len({LM.size(e) for e in examples}) > 1
    model = load_student(ground / f"run-{student}" / "student").model.eval()
    with torch.inference_mode():
        expected = [
            model(torch.from_numpy(e.inputs["input_ids"])[None]).logits[0].numpy() for e in examples
        ]
    return LM.lay(examples, left=True), np.concatenate(expected)


@pytest.mark.parametrize("kind", TOLERANCE)
def test_every_format_keeps_the_contract(ground, exported, kind):
    check_export(kind, ground / "run-llama", exported("llama", kind))


@pytest.mark.parametrize(
    ("kind", "student"),
    [(k, s) for k in ("onnx", "onnx-int8", "onnx-int8-static") for s in ("llama", "gpt2")]
    + [("onnx-int8", "untied")],
)
def test_onnx_answers_alike_where_torch_cannot_be_imported(
    ground, exported, tmp_path, student, kind
):
    folder = exported(student, kind)
    laid, expected = asked_and_expected(ground, student)
    np.savez(tmp_path / "asked.npz", **laid.inputs)
    fresh(
        ASK,
        tmp_path / "asked.npz",
        folder,
        tmp_path / "answers.npy",
        without="torch,transformers,softlabels,trainers",
    )
    logits = np.load(tmp_path / "answers.npy")
    found = log_softmax(logits.reshape(-1, logits.shape[-1])[laid.places])
    difference = np.abs(found - log_softmax(expected))
    if kind == "onnx":
        assert difference.max() < 1e-5
    else:
        assert 1e-5 < difference.max() < 0.5
        kl = (np.exp(log_softmax(expected)) * (log_softmax(expected) - found)).sum(axis=1)
        assert kl.mean() < 2e-3


TORCH_ONLY = """
import numpy as np, torch
with np.load(sys.argv[2]) as asked:
    inputs = {k: torch.from_numpy(v) for k, v in asked.items()}
model = torch.export.load(sys.argv[3] + "/model.pt2").module()
np.save(sys.argv[4], model(**inputs).detach().numpy())
"""


@pytest.mark.parametrize("student", ["llama", "gpt2"])
def test_a_torch_program_needs_no_transformers(ground, exported, tmp_path, student):
    laid, expected = asked_and_expected(ground, student)
    np.savez(tmp_path / "asked.npz", **laid.inputs)
    fresh(
        TORCH_ONLY,
        tmp_path / "asked.npz",
        exported(student, "torch-export"),
        tmp_path / "answers.npy",
        without="transformers,softlabels,trainers",
    )
    logits = np.load(tmp_path / "answers.npy")
    found = log_softmax(logits.reshape(-1, logits.shape[-1])[laid.places])
    np.testing.assert_allclose(found, log_softmax(expected), atol=1e-5)


def test_safetensors_load_by_from_pretrained(ground, exported):
    transformers = pytest.importorskip("transformers")
    folder = exported("llama", "safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    own = load_student(ground / "run-llama" / "student").model
    for name, weight in own.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
    assert (folder / "tokenizer.json").read_bytes() == open_store(ground / "store").file(
        "tokenizer/tokenizer.json"
    )


@pytest.mark.parametrize(
    ("kind", "tokenizer"), [(kind, True) for kind in TOLERANCE] + [("onnx", False)]
)
def test_the_lines_on_the_card_run(exported, tmp_path, kind, tokenizer):
    import shutil

    from trainers.exports.card import card

    folder = Path(shutil.copytree(exported("llama", kind), tmp_path / "export"))
    text = (folder / "README.md").read_text(encoding="utf-8")
    if tokenizer:
        pytest.importorskip("tokenizers", reason="needs tokenizers")
        (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    else:
        record = read_export(folder)
        for path in folder.glob("tokenizer*"):
            path.unlink()
        text = card(record, {}, FORMATS.load(kind), LM, folder)
    (snippet,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names: dict = {"__name__": "card"}
    exec(compile(snippet.replace("PATH", str(folder)), "README.md", "exec"), names)
    assert names["logits"].shape == (1, 4 if tokenizer else 3, 300)
    assert "FAKE" not in text
    assert "| licence of the targets |" in text


# -- what is in the file --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["onnx", "onnx-int8", "onnx-int8-static"])
def test_batch_and_length_are_free_and_the_opset_is_recorded(exported, kind):
    folder = exported("llama", kind)
    model = onnx.load(folder / "model.onnx")
    record = read_export(folder)
    (opset,) = [o.version for o in model.opset_import if o.domain == ""]
    assert opset == record.opset == 20
    assert record.inputs == {n: ["batch", "length"] for n in ("input_ids", "attention_mask")}
    for value in [*model.graph.input, *model.graph.output]:
        axes = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        assert axes[:2] == ["batch", "length"], value.name
    assert model.graph.output[0].type.tensor_type.shape.dim[2].dim_value == 300


@pytest.mark.parametrize("student", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["onnx-int8", "onnx-int8-static"])
def test_every_weight_is_int8_and_no_product_of_activations_is(exported, student, kind):
    model = onnx.load(exported(student, kind) / "model.onnx")
    weights = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    matrices = {n: w for n, w in weights.items() if w.ndim == 2 and w.size > 64}
    assert matrices
    for name, w in matrices.items():
        assert w.dtype == np.int8, name
        if name.endswith("_quantized"):
            assert np.abs(w.astype(int)).max() <= 64, (
                name
            )  # seven bits: no sum of two products overflows
    record = read_export(exported(student, kind))
    layers = STUDENTS[student].get("num_hidden_layers", 2)
    each = 7 if student != "gpt2" else 4
    assert record.details["products"] == layers * each + 1
    products = [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm", "MatMulInteger")]
    if kind == "onnx-int8":
        assert sum(n.op_type == "MatMulInteger" for n in products) == record.details["products"]
        assert sum(n.op_type == "MatMul" for n in products) == 2 * layers  # attention's, in float
    else:
        made_by = {o: n for n in model.graph.node for o in n.output}
        float_both = [
            n
            for n in products
            if not any(made_by.get(i) and made_by[i].op_type == "DequantizeLinear" for i in n.input)
        ]
        assert len(float_both) == 2 * layers


def test_tied_weights_are_held_once(exported):
    tied, untied = (read_export(exported(s, "onnx-int8")) for s in ("llama", "untied"))
    assert set(tied.details["tables"].values()) == {"shared"}
    assert set(untied.details["tables"].values()) == {"own"}
    model = onnx.load(exported("llama", "onnx-int8") / "model.onnx")
    vocabulary = [i.dims for i in model.graph.initializer if 300 in i.dims and len(i.dims) == 2]
    assert len(vocabulary) == 1


@pytest.mark.parametrize("kind", ["safetensors", "onnx", "onnx-int8"])
def test_the_check_and_the_evaluation_agree(ground, exported, kind):
    """On all rows: another path through the code, with rows of several documents as they were packed."""
    check = read_export(exported("llama", kind)).check
    found = evaluate_run(ground / "run-llama", ground / "heldout")
    assert check.labels == found.positions
    assert check.rows == len(open_store(ground / "heldout"))
    assert check.examples > check.rows
    assert check.nll_of_student == pytest.approx(found.nll, rel=1e-5)
    assert check.accuracy_of_student == pytest.approx(found.accuracy, abs=1e-9)
    if kind != "onnx-int8":
        assert check.nll == pytest.approx(found.nll, rel=1e-5)


def test_what_else_is_in_a_batch_matters_to_dynamic_ranges_only(ground, exported):
    store = open_store(ground / "heldout")
    examples = LM.examples(store, range(len(store)))
    change = {}
    for kind in ("onnx-int8", "onnx-int8-static"):
        run = FORMATS.load(kind).load(exported("llama", kind), domain=None, threads=1)
        alone = np.concatenate([log_softmax(run(LM.lay([e]).inputs))[0] for e in examples[:8]])
        laid = LM.lay(examples[:8], left=True)
        together = log_softmax(run(laid.inputs)).reshape(-1, 300)[laid.places]
        change[kind] = np.abs(alone - together).max()
    assert change["onnx-int8"] > 1e-3
    assert change["onnx-int8-static"] < change["onnx-int8"] / 5


# -- a table alone ------------------------------------------


def test_tables_keep_their_rows_and_one_row_of_zeros(tmp_path):
    import onnxruntime
    from onnx import TensorProto, helper

    from trainers.exports.tables import quantise_tables

    g = np.random.default_rng(0)
    table = g.normal(size=(100, 8)).astype(np.float32) * np.geomspace(1e-3, 10, 100)[:, None]
    table = table.astype(np.float32)
    table[5] = 0
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["out"])],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["b", "s", 8])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    assert quantise_tables(model, plain) == {"table": "own"}
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    ids = np.arange(100).reshape(4, 25)
    (out,) = session.run(None, {"ids": ids})
    largest = np.abs(table).max(axis=1)[ids][..., None]
    assert (np.abs(out - table[ids]) <= largest / 127 * 0.501).all()
    assert "table" not in {i.name for i in model.graph.initializer}
