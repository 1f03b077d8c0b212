"""What an export refuses, and that it then leaves nothing."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from softlabels.core.durable import temporary_beside
from softlabels.core.progress import Silent
from softlabels.core.records import canonical, digest_of
from softlabels.errors import (
    ConfigError,
    ExportError,
    IntegrityError,
    MissingExtraError,
    RunError,
    TokenizerError,
)
from softlabels.store.reader import open_store
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.trainers.exporting import LM, distorted, make_run, make_stores
from trainers.cli import main
from trainers.exports import weights
from trainers.exports.check import compare, verdict
from trainers.exports.config import ExportConfig
from trainers.exports.domains import exported, spread
from trainers.exports.duties import duties
from trainers.exports.record import read_export
from trainers.exports.student import export
from trainers.exports.weights import torch_runner
from trainers.students import load_student


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    make_stores(folder)
    make_run(folder, "llama", heldout=str(folder / "heldout"), eval_every=20, ema=0.9)
    return folder


def config_of(ground, **changes) -> ExportConfig:
    return ExportConfig(
        **({"format": "safetensors", "heldout": str(ground / "heldout"), "rows": 4} | changes)
    )


def left_over(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# -- the examples ---------------------------------------------------------------------------------


def test_examples_are_the_documents_of_the_rows(ground):
    store = open_store(ground / "heldout")
    rows = list(range(len(store)))
    assert any(len(store.row(r).row.segment_lengths) > 1 for r in rows)
    examples = LM.examples(store, rows)
    labels = np.concatenate([e.labels for e in examples])
    np.testing.assert_array_equal(labels, np.concatenate([store.row(r).row.labels for r in rows]))
    ids = np.concatenate([e.inputs["input_ids"] for e in examples])
    np.testing.assert_array_equal(ids, np.concatenate([store.row(r).row.input_ids for r in rows]))
    for left in (False, True):
        laid = LM.lay(examples[:3], left=left)
        flat = laid.inputs["input_ids"].reshape(-1)[laid.places]
        np.testing.assert_array_equal(flat, ids[: len(flat)])
        assert laid.inputs["attention_mask"].sum() == len(flat) == len(laid.places)
        assert (laid.inputs["attention_mask"].reshape(-1)[laid.places] == 1).all()


def test_rows_are_spread_over_the_whole_store():
    assert spread(10, 3) == [0, 3, 6]
    assert spread(3, 10) == [0, 1, 2]


def test_a_domain_without_exports_is_refused():
    with pytest.raises(ConfigError, match=r"'image-segmentation' cannot be exported; those of"):
        exported("image-segmentation")


# -- what the check finds -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(ground):
    folder = ground / "run-llama" / "student"
    store = open_store(ground / "heldout")
    examples = LM.examples(store, spread(len(store), 6))
    return load_student(folder).model.eval(), torch_runner(folder, LM, None), examples


def test_the_student_itself_passes(asked):
    model, runner, examples = asked
    found = compare(model, runner, LM, examples)
    assert found.largest_difference < 1e-5
    assert found.agreement == 1.0
    assert found.labels == sum(len(e.labels) for e in examples)
    assert found.outputs == sum(LM.size(e) for e in examples)
    assert found.loss_of_nll == pytest.approx(0, abs=1e-6)
    assert found.loss_of_accuracy == 0.0
    verdict(found, rule="log-probability", tolerance=1e-4, what="it")
    verdict(found, rule="score", tolerance=1e-5, what="it")


def test_a_constant_on_all_logits_is_no_difference(asked):
    model, runner, examples = asked
    found = compare(model, distorted(runner, lambda z: z + 5), LM, examples)
    assert found.largest_difference < 1e-4


def test_one_wrong_logit_in_one_place_of_one_batch_is_found(asked):
    model, runner, examples = asked
    calls = []

    def change(logits):
        calls.append(1)
        if len(calls) == 9:
            logits = logits.copy()
            logits[1, -1, 7] += 2e-2
        return logits

    found = compare(model, distorted(runner, change), LM, examples)
    assert 1e-2 < found.largest_difference < 2.1e-2
    with pytest.raises(
        ExportError, match=r"differ by up to 0\.0\d+ nats over \d+ labels, allowed is"
    ):
        verdict(found, rule="log-probability", tolerance=1e-3, what="it")


def test_an_export_that_ignores_its_mask_is_found(asked):
    model, runner, examples = asked

    def unmasked(inputs):
        return runner({**inputs, "attention_mask": np.ones_like(inputs["attention_mask"])})

    assert compare(model, unmasked, LM, examples).largest_difference > 1e-2


def test_an_export_that_shifts_its_outputs_is_found(asked):
    model, runner, examples = asked
    shifted = distorted(runner, lambda z: np.roll(z, 1, axis=1))
    found = compare(model, shifted, LM, examples)
    assert found.largest_difference > 0.1
    with pytest.raises(ExportError, match=r"negative log-likelihood rises by"):
        verdict(found, rule="score", tolerance=0.01, what="it")


def test_accuracy_alone_is_found(asked):
    """Second place for what was right: the likelihood may still be good."""
    model, runner, examples = asked
    lowered = distorted(runner, lambda z: z - 4 * (z == z.max(axis=-1, keepdims=True)))
    found = compare(model, lowered, LM, examples)
    assert found.loss_of_accuracy > 0.1
    with pytest.raises(ExportError, match=r"accuracy falls by|likelihood rises by"):
        verdict(found, rule="score", tolerance=0.01, what="it")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: np.full_like(z, np.nan), "finite or not"),
        (lambda z: z[..., :-1], r"logits \(\d+, 299\)"),
        (lambda z: z.astype(np.float32)[:, :0], "fails on|finite|index"),
    ],
)
def test_unusable_logits_are_an_error(asked, change, message):
    model, runner, examples = asked
    with pytest.raises((ExportError, IndexError), match=message):
        compare(model, distorted(runner, change), LM, examples)


def test_an_export_that_fails_on_a_shape_is_an_error(asked):
    model, runner, examples = asked

    def fails(inputs):
        if len(inputs["input_ids"]) > 1:
            raise RuntimeError("static batch")
        return runner(inputs)

    with pytest.raises(ExportError, match=r"fails on input_ids \(2, \d+\).*static batch"):
        compare(model, fails, LM, examples)


def test_rows_without_a_label_have_no_score(asked):
    model, runner, examples = asked
    with pytest.raises(RunError, match=r"no row has a label"):
        compare(model, runner, LM, [LM.shortest(examples[0])])


# -- published whole, or not at all ---------------------------------------------------------------


def test_a_wrong_export_is_not_published(ground, tmp_path, monkeypatch):
    def write(self, job, folder):
        done = original(self, job, folder)
        (path,) = folder.glob("*.safetensors")
        from safetensors.torch import load_file, save_file

        tensors = load_file(path)
        name = next(n for n in sorted(tensors) if "layers.2.mlp" in n)
        tensors[name] *= 1.5
        save_file(tensors, path, metadata={"format": "pt"})
        return done

    original = weights.Safetensors.write
    monkeypatch.setattr(weights.Safetensors, "write", write)
    out = tmp_path / "deep" / "out"
    with pytest.raises(
        ExportError, match=r"run-llama as safetensors does not give the student's answers"
    ):
        export(ground / "run-llama", out, config_of(ground))
    assert left_over(out.parent) == []
    record = export(ground / "run-llama", out, config_of(ground, tolerance=1e9))
    assert record.check.tolerance == 1e9
    assert left_over(out.parent) == ["out"]


def test_nothing_is_left_when_writing_fails(ground, tmp_path, monkeypatch):
    def write(self, job, folder):
        (folder / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    killed = temporary_beside(tmp_path / "out").name.replace(f".{os.getpid()}.", ".4194305.")
    for name in (killed, ".tmp-out"):  # of an export that was killed, and of another program
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_bytes(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(weights.Safetensors, "write", write)
        with pytest.raises(OSError, match=r"the disk is full"):
            export(ground / "run-llama", tmp_path / "out", config_of(ground))
    assert left_over(tmp_path) == [".tmp-out"]
    export(ground / "run-llama", tmp_path / "out", config_of(ground))
    assert left_over(tmp_path) == [".tmp-out", "out"]


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "of an earlier version"])
def test_what_somebody_put_beside_a_student_is_not_exported(ground, tmp_path, sealed):
    run = tmp_path / "run"
    shutil.copytree(ground / "run-llama", run)
    for name in ("notes.txt", "evil.py", "README.md"):
        (run / "student" / name).write_text("mine")
    if not sealed:
        (run / "student" / "softlabels.json").unlink()
    record = export(run, tmp_path / "out", config_of(ground))
    expected = {"README.md", "config.json", "export.json", "generation_config.json"}
    assert set(left_over(tmp_path / "out")) == expected | {"model.safetensors", "tokenizer.json"}
    assert "mine" not in (tmp_path / "out" / "README.md").read_text()
    assert set(record.files) == set(left_over(tmp_path / "out")) - {"export.json"}


@pytest.mark.parametrize("which", ["student", "ema", "best"])
def test_which_weights(ground, tmp_path, which):
    record = export(ground / "run-llama", tmp_path / "out", config_of(ground, weights=which))
    assert record.source.weights == which
    name = {"student": "student", "ema": "student-ema", "best": "best"}[which]
    own = (ground / "run-llama" / name / "model.safetensors").read_bytes()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == own


def test_the_runs_own_heldout_store_is_the_default(ground, tmp_path):
    record = export(ground / "run-llama", tmp_path / "out", config_of(ground, heldout=None))
    assert record.check.store_digest == open_store(ground / "heldout").digest


def test_the_record_and_the_card_say_where_it_comes_from(ground, tmp_path):
    record = export(ground / "run-llama", tmp_path / "out", config_of(ground))
    identity = open_store(ground / "store").manifest.identity
    assert record.source.teachers == {identity.teacher.name: identity.teacher.weights_sha256}
    assert record.source.licences == [identity.licence]
    assert record.source.store_digest == open_store(ground / "store").digest
    assert read_export(tmp_path / "out") == record
    assert set(left_over(tmp_path / "out")) == {*record.files, "export.json"}
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for text in (identity.teacher.name, identity.licence, identity.corpus.specs[0], "40 steps"):
        assert text in card
    assert f"{record.check.nll:.4f}" in card


# -- refused before anything is written -----------------------------------------------------------


def copied_run(ground, tmp_path, **facts) -> Path:
    run = Path(shutil.copytree(ground / "run-llama", tmp_path / "run"))
    recorded = json.loads((run / "run.json").read_text())
    config = recorded["config"] | facts.pop("config", {})
    (run / "run.json").write_text(json.dumps(recorded | facts | {"config": config}))
    return run


def test_an_existing_folder_is_refused(ground, tmp_path):
    with pytest.raises(ConfigError, match=r"is there already"):
        export(ground / "run-llama", tmp_path, config_of(ground))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "--rows 0: expected at least 1"),
        ({"calibration_rows": 0}, "--calibration-rows 0"),
        ({"tolerance": -1.0}, "--tolerance -1.0: expected a number, 0 or more"),
        ({"tolerance": float("nan")}, "--tolerance nan"),
        ({"format": "tflite"}, "--format 'tflite': expected one of compressed-tensors, onnx"),
        ({"weights": "averaged"}, "--weights averaged: expected one of student, ema, best"),
    ],
)
def test_bad_settings(ground, changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of(ground, **changes)


def test_no_run_or_an_unfinished_one(ground, tmp_path):
    with pytest.raises(RunError, match=r"not a run"):
        export(tmp_path, tmp_path / "out", config_of(ground))
    run = copied_run(ground, tmp_path)
    shutil.rmtree(run / "student")
    with pytest.raises(RunError, match=r"has not finished"):
        export(run, tmp_path / "out", config_of(ground))
    (run / "run.json").write_text("{}")
    with pytest.raises(RunError, match=r"missing required field `config`"):
        export(run, tmp_path / "out", config_of(ground))
    assert not (tmp_path / "out").exists()


def test_weights_that_the_run_lacks(ground, tmp_path):
    run = copied_run(ground, tmp_path)
    shutil.rmtree(run / "student-ema")
    with pytest.raises(RunError, match=r"has no student-ema, for it was made without --ema"):
        export(run, tmp_path / "out", config_of(ground, weights="ema"))


def test_a_training_store_that_moved(ground, tmp_path):
    run = copied_run(ground, tmp_path, config={"store": [str(tmp_path / "gone")]})
    with pytest.raises(ConfigError, match=r"say where it lies now with --store"):
        export(run, tmp_path / "out", config_of(ground))
    with pytest.raises(ConfigError, match=r"not what .* was trained on"):
        export(run, tmp_path / "out", config_of(ground, store=(str(ground / "heldout"),)))
    record = export(run, tmp_path / "out", config_of(ground, store=(str(ground / "store"),)))
    assert record.check.largest_difference < 1e-5


def test_the_training_store_is_not_held_out(ground, tmp_path):
    with pytest.raises(RunError, match=r"is the very store that .* was trained on"):
        export(
            ground / "run-llama", tmp_path / "out", config_of(ground, heldout=str(ground / "store"))
        )


def test_another_tokenizer(ground, tmp_path):
    build_tiny(
        tmp_path / "other", write_corpus(tmp_path / "corpus"), teacher=TinyTeacher(salt="other")
    )
    with pytest.raises(TokenizerError, match=r"is not the one that .* was trained with"):
        export(
            ground / "run-llama",
            tmp_path / "out",
            config_of(ground, heldout=str(tmp_path / "other")),
        )


def test_no_heldout_store_at_all(ground, tmp_path):
    run = copied_run(ground, tmp_path, config={"heldout": None})
    with pytest.raises(ConfigError, match=r"--heldout is missing"):
        export(run, tmp_path / "out", config_of(ground, heldout=None))


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_names_the_extra(ground, tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"needs {library}.*\[onnx\]'"):
        export(ground / "run-llama", tmp_path / "out", config_of(ground, format="onnx"))
    assert left_over(tmp_path) == []


def test_a_model_that_cannot_be_traced(ground, tmp_path, monkeypatch):
    from trainers.domains import causal_lm

    class Data(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return input_ids if int(input_ids.sum()) > 3 else attention_mask

    monkeypatch.setattr(causal_lm.CausalLM, "module", lambda self, model: Data())
    with pytest.raises(ExportError, match=r"PyTorch cannot trace this model"):
        export(ground / "run-llama", tmp_path / "out", config_of(ground, format="torch-export"))
    assert left_over(tmp_path) == []


# -- altered afterwards ---------------------------------------------------------------------------


@pytest.fixture
def published(ground, tmp_path):
    export(ground / "run-llama", tmp_path / "out", config_of(ground))
    return tmp_path / "out"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "README.md"]
)
def test_an_altered_file_is_found(published, name):
    data = bytearray((published / name).read_bytes())
    data[len(data) // 2] ^= 1
    (published / name).write_bytes(data)
    with pytest.raises(IntegrityError, match=rf"{name}: sha256 is .*altered"):
        read_export(published)
    (published / name).write_bytes(bytes(data)[:-1])
    with pytest.raises(IntegrityError, match=r"bytes, export.json says"):
        read_export(published)
    (published / name).unlink()
    with pytest.raises(IntegrityError, match=r"cannot be read"):
        read_export(published)


def test_an_altered_record_is_found(published):
    path = published / "export.json"
    text = path.read_text()
    path.write_text(text.replace('"weights": "student"', '"weights": "best"'))
    with pytest.raises(IntegrityError, match=r"its content gives .* was altered"):
        read_export(published)
    path.write_text(text[:-30])
    with pytest.raises(IntegrityError, match=r"not valid JSON"):
        read_export(published)
    path.unlink()
    with pytest.raises(RunError, match=r"not an export"):
        read_export(published)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"version": "2.0"}, RunError, "version 2.0, this softlabels reads 1.x"),
        ({"format": "softlabels"}, RunError, "its \"format\" is not 'softlabels-export'"),
        ({"parameters": "many"}, RunError, "not a valid export"),
        (
            {"files": {"../run.json": {"sha256": "0" * 64, "bytes": 3}}},
            IntegrityError,
            "not the name of a file in it",
        ),
    ],
)
def test_a_record_that_says_something_else(published, change, error, message):
    """With a digest that fits: it is not a secret."""
    path = published / "export.json"
    raw = json.loads(path.read_text()) | change
    path.write_bytes(canonical(raw | {"digest": digest_of(raw)}))
    with pytest.raises(error, match=message):
        read_export(published)


# -- the command ----------------------------------------------------------------------------------


def test_the_command(ground, tmp_path):
    command = ["export", str(ground / "run-llama"), "--format", "safetensors", "--rows", "3"]
    command += ["--heldout", str(ground / "heldout"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*command, "--json"])
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert values["check"]["rows"] == 3
    assert values["digest"] == read_export(tmp_path / "out").digest
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2
    assert "is there already" in done.stderr
    done = CliRunner().invoke(main, [*command[:-1], str(tmp_path / "text")])
    assert "labels of 3 held-out rows" in done.stdout
    done = CliRunner().invoke(main, [*command[:-1], str(tmp_path / "no"), "--tolerance", "0"])
    assert done.exit_code == 1
    assert "does not give the student's answers" in done.stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("licences", "words"),
    [
        (["LicenseRef-llama3.1", "llama3.1"], ["begins with “Llama”"]),
        (["gemma", "CC-BY-4.0"], ["a Model Derivative"]),
        (["Unknown"], ["states no licence of its targets"]),
        (["Apache-2.0", "CC-BY-4.0"], []),
    ],
)
def test_what_a_teachers_licence_asks_is_said(licences, words):
    found = duties(licences)
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


def test_duties_stand_on_the_card_and_in_the_log(ground, tmp_path):
    said = []
    report = Silent()
    report.notice = said.append
    out = tmp_path / "out"
    export(ground / "run-llama", out, config_of(ground), report)
    wanted = "a store states no licence of its targets"
    assert wanted in (out / "README.md").read_text(encoding="utf-8")
    assert any(f"before {out} is passed on: {wanted}" in line for line in said)
