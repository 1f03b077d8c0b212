"""A target that follows from a source: from real encoders and decoders to a store, and from the store to a student."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.cli.main import main
from softlabels.domains.seq2seq import DOMAIN, START
from softlabels.errors import (
    ConfigError,
    CorpusError,
    ExportError,
    FormatError,
    IntegrityError,
    TeacherError,
)
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from softlabels.testing import check_domain
from tests.domains import models
from tests.students import evaluate_run
from trainers.data.batch import collate
from trainers.data.microbatches import split_batch, widen
from trainers.data.tasks import Task
from trainers.evaluation.evaluate import evaluate
from trainers.exports.config import ExportConfig
from trainers.exports.record import read_export
from trainers.exports.student import export
from trainers.loss.losses import DistillLoss
from trainers.loss.totals import StepTotals
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import make_student

CLS, SEP = models.MARKS.index("[CLS]"), models.MARKS.index("[SEP]")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seq2seq")
    models.save_seq2seq(folder / "t5", models.t5())
    models.save_seq2seq(folder / "bart", models.bart())
    models.write_pairs(folder / "train.jsonl")
    models.write_pairs(folder / "other.jsonl", 8, seed=1)
    models.t5(1, initializer_factor=1.0).to_json_file(folder / "student.json")
    build(config(folder), folder / "store")
    return folder


def config(ground: Path, corpus: str = "train.jsonl", **settings: object) -> BuildConfig:
    return BuildConfig(
        **{
            "teacher": f"hf:{ground / 't5'}",
            "corpus": (f"jsonl:{ground / corpus}",),
            "domain": "seq2seq",
            "estimator": "topk",
            "k": 5,
            "temperature": (1.0, 2.0),
            "seq_len": 16,
            "shard_rows": 10,
            "values": "float32",
            "dtype": "float32",
            **settings,
        }
    )


def logits_of(folder: Path, row) -> torch.Tensor:
    """Of a pair alone, as transformers makes them: `labels` are moved on by the model itself."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    source, target = (
        torch.from_numpy(a.astype(np.int64))[None] for a in (row.source_ids, row.target_ids)
    )
    with torch.no_grad():
        return model(input_ids=source, labels=target).logits[0].double()


@pytest.mark.parametrize("teacher", ["t5", "bart"])
@pytest.mark.parametrize("profile", ["open", "packed"])
@pytest.mark.parametrize("container", ["parquet", "zarr"])
def test_a_store_holds_what_the_teacher_says_of_each_pair_alone(
    ground, tmp_path, teacher, profile, container
):
    settings = {"profile": profile, "container": container, "limit_rows": 6, "batch_tokens": 90}
    build(config(ground, teacher=f"hf:{ground / teacher}", **settings), tmp_path / "s")
    assert verify_store(tmp_path / "s").problems == []
    store = open_store(tmp_path / "s")
    tokenizer = transformers.AutoTokenizer.from_pretrained(ground / teacher)
    records = [json.loads(x) for x in (ground / "train.jsonl").read_text().splitlines()]
    spread = []
    for stored, record in zip(store, records, strict=False):
        row, logits = stored.row, logits_of(ground / teacher, stored.row)
        assert row.source_ids.tolist() == tokenizer(record["source"])["input_ids"]
        assert row.labels.tolist() == tokenizer(record["target"])["input_ids"]
        for t in (1.0, 2.0):
            p = torch.softmax(logits / t, dim=1).numpy()
            kept = stored.targets.ids
            np.testing.assert_allclose(
                stored.targets.probs(t), np.take_along_axis(p, kept, axis=1), atol=2e-6
            )
            np.testing.assert_allclose(
                stored.targets.tail(t), 1 - np.take_along_axis(p, kept, axis=1).sum(1), atol=2e-6
            )
        spread.append(p)
    assert len(spread) == 6
    assert np.concatenate(spread).max(axis=1).std() > 0.01, "no opinions prove nothing"
    identity = store.manifest.identity
    start = transformers.AutoConfig.from_pretrained(ground / teacher).decoder_start_token_id
    assert identity.label_shift == 1
    assert identity.tokenizer.special_ids[START] == start == store.row(0).row.decoder_ids[0]
    assert identity.classes is None


def test_a_batch_of_pairs_is_what_each_is_alone(ground):
    """Padding of sources and of targets changes nothing, wherever a rank's rows end."""
    store = open_store(ground / "store")
    batch = collate([store.row(i) for i in range(8)])
    assert len({len(store.row(i).row.source_ids) for i in range(8)}) > 1
    student = make_student(f"hf:{ground / 't5'}", seed=0, task=Task.of(store)).eval()
    alone = torch.cat([logits_of(ground / "t5", store.row(i).row) for i in range(8)])
    head = student.head()
    totals = StepTotals.over([DistillLoss().count(batch)])
    with torch.no_grad():
        found = batch.at_positions(student.hidden(batch)) @ head.weight.T
        parts = [widen(collate([store.row(i)]), totals) for i in range(8)]
        for part, cut in zip(parts, split_batch(batch, 8), strict=True):
            for name, tensor in cut.inputs.items():
                assert torch.equal(part.inputs[name], tensor)
            assert torch.equal(part.flat_positions, cut.flat_positions)
    torch.testing.assert_close(found.double(), alone, rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_dense_one(ground, tmp_path):
    build(config(ground, estimator="dense", k=27, limit_rows=8), tmp_path / "dense")
    store = open_store(tmp_path / "dense")
    student = make_student(f"hf-config:{ground / 'student.json'}", seed=1, task=Task.of(store))
    student = student.double()
    rows = [store.row(i) for i in range(8)]
    batch = collate(rows)
    out = DistillLoss(divergence="forward_kl", temperature=2.0, alpha=0.7)(
        student.hidden(batch), student.head(), batch
    )
    logits = student.model(**batch.inputs).logits.flatten(0, 1)[batch.flat_positions]
    p = torch.tensor(np.concatenate([r.targets.dense(2.0) for r in rows])).double()
    p = p / p.sum(dim=1, keepdim=True)
    soft = (p * (p.log() - torch.log_softmax(logits / 2.0, dim=1))).sum(dim=1).mean()
    hard = torch.nn.functional.cross_entropy(logits, batch.labels)
    torch.testing.assert_close(out.loss, 0.7 * 4.0 * soft + 0.3 * hard, rtol=1e-5, atol=0)


@pytest.fixture(scope="module")
def run(ground) -> Path:
    settings = RunConfig(
        store=str(ground / "store"),
        student=f"hf-config:{ground / 'student.json'}",
        temperature=2.0,
        alpha=0.9,
        steps=40,
        batch_size=8,
        lr=1e-2,
        threads=1,
        checkpoint_every=40,
    )
    train(settings, ground / "run")
    return ground / "run"


def test_a_student_learns_the_teacher_from_the_store(ground, run):
    store = open_store(ground / "store")
    student = f"hf-config:{ground / 'student.json'}"
    before = evaluate(make_student(student, seed=0, task=Task.of(store)), store)
    after = evaluate_run(run, ground / "store")
    assert after.kl < 0.5 * before.kl
    loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(run / "student")
    assert loaded.config.decoder_start_token_id == 0
    assert (run / "student" / "tokenizer.json").is_file()


def test_it_is_exported(ground, run, tmp_path):
    build(config(ground, "other.jsonl"), tmp_path / "heldout")
    settings = ExportConfig(format="safetensors", heldout=str(tmp_path / "heldout"))
    record = export(run, tmp_path / "out", settings)
    assert record.check.largest_difference < 1e-4
    assert record.inputs["decoder_input_ids"] == ["batch", "decoder_length"]
    assert read_export(tmp_path / "out").domain == "seq2seq"
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(code.replace("PATH", str(tmp_path / "out")), names)
    assert names["logits"].shape[:2] == (1, 1)


@pytest.mark.slow
def test_a_format_that_cannot_hold_it_says_so(ground, run, tmp_path):
    build(config(ground, "other.jsonl"), tmp_path / "heldout")
    heldout = str(tmp_path / "heldout")
    found = export(run, tmp_path / "traced", ExportConfig(format="torch-export", heldout=heldout))
    assert found.check.largest_difference < 1e-3
    with pytest.raises(ExportError, match="cannot translate this model to ONNX"):
        export(run, tmp_path / "onnx", ExportConfig(format="onnx", heldout=heldout))
    assert not (tmp_path / "onnx").exists()


def test_students_of_any_size(ground):
    task = replace(Task.of(open_store(ground / "store")), vocab_size=500)
    student = make_student("new:200k", seed=0, task=task)
    from trainers.students.made import shape_of

    assert student.parameter_count == shape_of(200_000, task, where="").parameters
    assert student.model.config.decoder_start_token_id == 0


def test_the_battery_of_domains(ground):
    check_domain(ground / "store")


def test_people_can_read_it(ground):
    found = CliRunner().invoke(main, ["inspect", str(ground / "store"), "--row", "0"])
    row = open_store(ground / "store").row(0).row
    assert found.exit_code == 0, found.output
    assert f"{len(row.source_ids)} tokens, of which {row.n} positions follow" in found.output
    one = CliRunner().invoke(
        main, ["inspect", str(ground / "store"), "--row", "0", "--position", "2"]
    )
    assert one.exit_code == 0, one.output
    assert "after" in one.output
    assert row.before(2).tolist() == [*row.source_ids.tolist(), *row.target_ids[:2].tolist()]
    assert row.place(2) == "target token 2"


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "good film"}, r':1: expected a "source" and a "target"'),
        ({"source": "good film", "target": ""}, r":1: the text is empty"),
        ({"source": "good film", "target": 3}, r':1: "target" is int, expected a string'),
        ({"source": "good " * 30, "target": "film"}, r":1: 32 tokens do not fit in a row of 16"),
        ({"source": "film", "target": "good " * 40}, r":1: 42 tokens do not fit in a row of 16"),
    ],
)
def test_bad_records_name_the_line(ground, tmp_path, record, message):
    (tmp_path / "bad.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(CorpusError, match=message):
        build(config(tmp_path, "bad.jsonl", teacher=f"hf:{ground / 't5'}"), tmp_path / "s")


def test_cut_pairs_are_counted(ground, tmp_path):
    (tmp_path / "long.jsonl").write_text(json.dumps({"source": "good " * 30, "target": "film"}))
    job = config(tmp_path, "long.jsonl", teacher=f"hf:{ground / 't5'}", truncate=True)
    assert build(job, tmp_path / "s").identity.corpus.truncated == 1
    row = open_store(tmp_path / "s").row(0).row
    assert (len(row.source_ids), row.n) == (16, 3)
    assert row.source_ids[[0, -1]].tolist() == [CLS, SEP]


def test_a_teacher_that_does_not_say_how_its_decoder_begins(ground, tmp_path):
    models.save_seq2seq(tmp_path / "t5", models.t5())
    path = tmp_path / "t5" / "config.json"
    facts = json.loads(path.read_text()) | {"decoder_start_token_id": None}
    path.write_text(json.dumps(facts))
    with pytest.raises(TeacherError, match="names no decoder_start_token_id"):
        build(config(ground, teacher=f"hf:{tmp_path / 't5'}"), tmp_path / "s")


def test_a_student_that_begins_otherwise(ground, tmp_path):
    settings = models.t5(1)
    settings.decoder_start_token_id = 2
    settings.to_json_file(tmp_path / "student.json")
    task = Task.of(open_store(ground / "store"))
    with pytest.raises(ConfigError, match=r"begins with id 2 .* the store's with 0"):
        make_student(f"hf-config:{tmp_path / 'student.json'}", seed=0, task=task)
    with pytest.raises(ConfigError, match="keeps some layers of one stack"):
        make_student(f"layers-of:{ground / 't5'}?keep=0", seed=0, task=task)


def test_rows_that_contradict_the_manifest(ground):
    store = open_store(ground / "store")
    identity, row = store.manifest.identity, store.row(0).row
    for broken in (
        replace(row, target_ids=row.target_ids[:0]),
        replace(row, source_ids=row.source_ids + 10**6),
        replace(row, start=-1),
        replace(row, document=-1),
    ):
        with pytest.raises(IntegrityError, match="shard: row 0"):
            DOMAIN.check(broken, identity, where="shard: row 0")
    tokenizer = msgspec.structs.replace(identity.tokenizer, special_ids={})
    with pytest.raises(FormatError, match="which id is decoder_start"):
        DOMAIN.rows_of({}, msgspec.structs.replace(identity, tokenizer=tokenizer), where="shard")
