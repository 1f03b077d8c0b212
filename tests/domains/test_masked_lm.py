"""Masked texts: replayed masks, from a real encoder to a store, and from the store to a student."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import transformers

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.core.rows import UNLABELLED
from softlabels.domains.masked_lm import DOMAIN as MASKED
from softlabels.domains.masked_lm.masking import mask_tokens
from softlabels.errors import (
    ConfigError,
    CorpusError,
    FormatError,
    IntegrityError,
    PairingError,
    PlanError,
    SoftLabelsError,
    TeacherError,
)
from softlabels.format.columns import Column
from softlabels.format.identity import MaskingRecord, TokenizerRecord
from softlabels.making.repair import repair_store
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.domains import models
from tests.store.made_up import reseal
from tests.students import evaluate_run
from trainers.data.batch import collate
from trainers.data.tasks import Task
from trainers.evaluation.evaluate import evaluate
from trainers.loss.losses import DistillLoss
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import make_student

DOMAIN = "masked-lm"
V = len(models.MARKS) + len(models.WORDS)
CLS, SEP, MASK = (models.MARKS.index(m) for m in ("[CLS]", "[SEP]", "[MASK]"))
LONG = " ".join(models.WORDS * 3)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    models.save_masked_lm(folder / "teacher")
    with models.write_corpus(folder / "train.jsonl", labelled=False).open("a") as f:
        f.write(json.dumps({"text": LONG}) + "\n")
    models.write_corpus(folder / "other.jsonl", 20, seed=1, labelled=False)
    models.config(layers=1, initializer_range=0.05).to_json_file(folder / "student.json")
    build(config(folder, views=3), folder / "store")
    return folder


def config(ground: Path, corpus: str = "train.jsonl", **settings: object) -> BuildConfig:
    return BuildConfig(
        **{
            "teacher": f"hf:{ground / 'teacher'}",
            "corpus": (f"jsonl:{ground / corpus}",),
            "domain": DOMAIN,
            "estimator": "dense",
            "k": V,
            "temperature": (1.0, 2.0),
            "seq_len": 16,
            "shard_rows": 16,
            "values": "float32",
            "dtype": "float32",
            "mask_share": 0.3,
            **settings,
        }
    )


def run_config(ground: Path, store: Path, **settings: object) -> RunConfig:
    return RunConfig(
        **{
            "store": str(store),
            "student": f"hf-config:{ground / 'student.json'}",
            "alpha": 0.9,
            "temperature": 2.0,
            "steps": 60,
            "batch_size": 8,
            "lr": 3e-3,
            "threads": 1,
            "checkpoint_every": 60,
            **settings,
        }
    )


# -- masks ----------------------------------------------------------------------------------------

MASKING = MaskingRecord(share=0.15, targets="masked", views=4, seed=7)
TOKENIZER = TokenizerRecord(
    sha256="0" * 64, vocab_size=1000, special_ids={"cls": 1, "sep": 2, "mask": 3, "pad": 0}
)
RAW = 7961818465665161550
HIDDEN = [5, 10, 13]
FED = [787, 3, 112]


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x64-10, from its paper."""
    (a, b, c, d), (k, m), low = counter, key, 2**64 - 1
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = (second >> 64) ^ b ^ k, second & low, (first >> 64) ^ d ^ m, first & low
        k, m = (k + 0x9E3779B97F4A7C15) & low, (m + 0xBB67AE8584CAA73B) & low
    return a, b, c, d


def test_the_draw_is_the_one_of_the_format():
    """These numbers are in no other file: a changed draw would make every store of masked texts unreadable."""
    ids = np.array([1, *range(100, 118), 2], np.int32)
    fed, hidden = mask_tokens(ids, MASKING, TOKENIZER, view=1)
    text = b"".join(int(i).to_bytes(4, "little") for i in ids)
    key = (7, int.from_bytes(hashlib.sha256(text).digest()[:8], "little"))
    raw = [n for block in range(1, 11) for n in philox((block, 0, 1, 1), key)]
    assert raw[0] == RAW
    by_hand = sorted(sorted(range(1, 19), key=lambda i: raw[2 * i])[:3])
    assert hidden.tolist() == by_hand == HIDDEN
    lots = [raw[2 * i + 1] for i in by_hand]
    expected = [
        3 if lot % 10 < 8 else lot // 10 % 1000 if lot % 10 == 8 else int(ids[i])
        for i, lot in zip(by_hand, lots, strict=True)
    ]
    assert fed[hidden].tolist() == expected == FED
    rest = np.delete(np.arange(20), hidden)
    np.testing.assert_array_equal(fed[rest], ids[rest])


@pytest.mark.parametrize(("share", "expected"), [(0.15, 15), (0.005, 1), (1.0, 100)])
def test_how_many_are_hidden(share, expected):
    ids = np.array([1, *range(100, 200), 2], np.int32)
    masking = msgspec.structs.replace(MASKING, share=share)
    _, hidden = mask_tokens(ids, masking, TOKENIZER, view=0)
    assert len(hidden) == expected
    assert hidden.min() >= 1
    assert hidden.max() <= 100


def test_eight_in_ten_become_the_mask_one_another_token_one_stays():
    ids = np.full(200_000, 500, np.int32)
    masking = msgspec.structs.replace(MASKING, share=0.5)
    fed, hidden = mask_tokens(ids, masking, TOKENIZER, view=0)
    fed = fed[hidden]
    assert len(hidden) == 100_000
    assert abs((fed == 3).mean() - 0.8) < 0.005
    assert abs((fed == 500).mean() - 0.1) < 0.005
    other = fed[(fed != 3) & (fed != 500)]
    assert abs(np.bincount(other, minlength=1000) - 10).max() < 20, "evenly over the vocabulary"


@pytest.mark.parametrize("changed", ["seed", "text", "view"])
def test_each_changes_the_mask(changed):
    ids = np.arange(100, 400, dtype=np.int32)
    _, first = mask_tokens(ids, MASKING, TOKENIZER, view=1)
    masking = msgspec.structs.replace(MASKING, seed=8) if changed == "seed" else MASKING
    other = ids + 1 if changed == "text" else ids
    _, second = mask_tokens(other, masking, TOKENIZER, view=2 if changed == "view" else 1)
    assert len(set(first) & set(second)) < 25, "of 45"


# -- the store ------------------------------------------------------------------------------------


def test_every_text_is_there_whole_in_each_view(ground):
    store = open_store(ground / "store")
    tokenizer = transformers.AutoTokenizer.from_pretrained(ground / "teacher")
    texts = [*models.texts(40), LONG]
    rows = [store.row(i).row for i in range(len(store))]
    assert store.manifest.identity.corpus.documents == 41
    assert {r.view for r in rows} == {0, 1, 2}
    for view in range(3):
        for document, text in enumerate(texts):
            pieces = [r for r in rows if (r.document, r.view) == (document, view)]
            assert [r.piece for r in pieces] == list(range(len(pieces)))
            whole = np.concatenate([r.input_ids[1:-1] for r in pieces])
            assert whole.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
            assert all((r.input_ids[0], r.input_ids[-1]) == (CLS, SEP) for r in pieces)
    assert len([r for r in rows if r.document == 40]) == 3 * 5, "the long text is five pieces"


@pytest.mark.parametrize("profile", ["open", "packed"])
@pytest.mark.parametrize("container", ["parquet", "zarr"])
def test_every_profile_and_container_holds_the_same(ground, tmp_path, profile, container):
    build(
        config(ground, views=3, profile=profile, container=container, values="float32"),
        tmp_path / "s",
    )
    assert verify_store(tmp_path / "s").problems == []
    store, plain = open_store(tmp_path / "s"), open_store(ground / "store")
    assert len(store) == len(plain)
    for mine, theirs in zip(store, plain, strict=True):
        for name in ("input_ids", "fed_ids", "label_mask", "labels"):
            np.testing.assert_array_equal(getattr(mine.row, name), getattr(theirs.row, name))
        assert (mine.row.document, mine.row.piece, mine.row.view) == (
            theirs.row.document,
            theirs.row.piece,
            theirs.row.view,
        )
        np.testing.assert_allclose(
            mine.targets.dense(2.0), theirs.targets.dense(2.0), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("targets", ["masked", "attended"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_store_holds_what_the_teacher_says_of_the_masked_text(
    ground, tmp_path, targets, temperature
):
    build(config(ground, mask_targets=targets, head_mib=1), tmp_path / "s")
    model = transformers.AutoModelForMaskedLM.from_pretrained(ground / "teacher")
    spread = []
    for stored in open_store(tmp_path / "s"):
        row = stored.row
        hidden = row.labels != UNLABELLED
        assert stored.targets.n == (len(row.input_ids) if targets == "attended" else hidden.sum())
        assert hidden.sum() == max(1, int(0.3 * (len(row.input_ids) - 2) + 0.5))
        np.testing.assert_array_equal(
            row.labels[hidden], row.input_ids[row.label_mask][hidden], "labels are what was hidden"
        )
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(row.fed_ids)[None].long()).logits[0].double()
        expected = torch.softmax(logits[torch.from_numpy(row.label_mask)] / temperature, dim=1)
        spread.append(expected)
        found = stored.targets.dense(
            temperature
        )  # of float32 logits in another batch: 1e-5 of each
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)
    assert torch.cat(spread).std(dim=0).max() > 0.01, "a teacher without opinions proves nothing"


def test_chunks_of_the_head_are_the_models_own_logits(ground, monkeypatch):
    from softlabels.teachers import TeacherOptions, open_teacher

    teacher = open_teacher(
        f"hf:{ground / 'teacher'}",
        TeacherOptions(domain=DOMAIN, device="cpu", head_bytes=4 * V * 3),
    )
    rows = [open_store(ground / "store").row(i).row for i in range(6)]
    chunks = list(teacher.logits(rows))
    assert max(map(len, chunks)) == 3
    assert sum(map(len, chunks)) == sum(r.n for r in rows)


@pytest.mark.slow
def test_masks_are_the_same_in_another_process(ground):
    code = (
        "import sys, hashlib; from softlabels.store.reader import open_store\n"
        "rows = [s.row for s in open_store(sys.argv[1])]\n"
        "print(hashlib.sha256(b''.join(r.fed_ids.tobytes() for r in rows)).hexdigest())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(ground / "store")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    rows = [s.row for s in open_store(ground / "store")]
    assert found == hashlib.sha256(b"".join(r.fed_ids.tobytes() for r in rows)).hexdigest()


def test_a_changed_draw_is_refused(ground, monkeypatch):
    monkeypatch.setattr("softlabels.domains.masked_lm.masking.STREAM", 2)
    with pytest.raises(
        IntegrityError, match="row 0 does not hold the inputs that its digest names"
    ):
        open_store(ground / "store").row(0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("view", 3, r"holds view 3, the manifest says that there are 3"),
        ("view", -1, r"holds a view -1, expected at least 0"),
        ("document", -1, r"holds a document -1"),
        ("piece", -2, r"holds a piece -2"),
    ],
)
def test_numbers_that_cannot_be_are_refused(ground, name, value, message):
    store = open_store(ground / "store")
    columns = MASKED.columns([store.row(0).row])
    columns[name] = Column(values=np.array([value], columns[name].values.dtype))
    with pytest.raises(IntegrityError, match=message):
        MASKED.rows_of(columns, store.manifest.identity, where="shard")


def test_an_identity_that_does_not_say_how_to_mask_is_refused(ground):
    identity = open_store(ground / "store").manifest.identity
    columns = MASKED.columns([open_store(ground / "store").row(0).row])
    bare = msgspec.structs.replace(identity.tokenizer, special_ids={"cls": 1})
    for changed in (
        msgspec.structs.replace(identity, masking=None),
        msgspec.structs.replace(identity, tokenizer=bare),
    ):
        with pytest.raises(FormatError, match="which id is the mask"):
            MASKED.rows_of(columns, changed, where="shard")


SPECIAL_IDS = {
    "a mask beyond all ids": ({"mask": 2**53}, "2147483647"),
    "a mask of the next": ({"mask": 2**31 - 1}, "say that 2147483647 is the mask, and its ids are 0"),
    "hundreds of thousands": ({"mask": 3} | {str(i): i for i in range(300_000)}, "length <= 256"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPECIAL_IDS)
def test_special_ids_that_cannot_be_are_refused_at_once(ground, tmp_path, name):
    special, says = SPECIAL_IDS[name]
    store = Path(shutil.copytree(ground / "store", tmp_path / "store"))
    for record in ("manifest.json", "plan.json"):
        reseal(store / record, identity__tokenizer__special_ids=special)
    digest = json.loads((store / "plan.json").read_bytes())["digest"]
    for commit in (store / "commits").iterdir():
        reseal(commit, plan_digest=digest)
    begin = time.process_time()
    with pytest.raises(FormatError, match=says):
        open_store(store).row(0)
    with pytest.raises(SoftLabelsError, match=says):
        repair_store(store)
    assert any(re.search(says, p) for p in _problems(store))
    assert time.process_time() - begin < 5


def _problems(store: Path) -> list[str]:
    try:
        return [str(p) for p in verify_store(store).problems]
    except FormatError as e:
        return [str(e)]


def test_a_killed_build_goes_on_in_the_midst_of_a_view(ground, tmp_path, monkeypatch):
    from softlabels.builder.build import Taught
    from softlabels.making.plan import load_plan

    build(config(ground, views=3), tmp_path / "s")
    plan = load_plan(tmp_path / "s")
    assert plan is not None
    job = Taught(config(ground, views=3), tmp_path / "s")
    store = open_store(tmp_path / "s")
    for shard in reversed(plan.shards):  # none begins where another pass left off
        rows = job.shard(plan, shard.index, lambda _: None).content.rows
        assert [r.digest() for r in rows] == [
            store.row(shard.start_row + i).row.digest() for i in range(len(rows))
        ]


@pytest.mark.parametrize("changed", [{"mask_share": 0.2}, {"mask_targets": "attended"}])
def test_another_masking_is_another_job(ground, tmp_path, changed):
    build(config(ground), tmp_path / "s")
    (tmp_path / "s" / "manifest.json").unlink()
    with pytest.raises(PlanError, match=r"was planned with masking"):
        build(config(ground, **changed), tmp_path / "s")


# -- the student ----------------------------------------------------------------------------------


def test_the_loss_is_the_dense_one_and_hard_only_where_a_token_was_hidden(ground, tmp_path):
    build(config(ground, mask_targets="attended"), tmp_path / "s")
    store = open_store(tmp_path / "s")
    student = make_student(f"hf-config:{ground / 'student.json'}", seed=1, task=Task.of(store))
    student = student.double()
    batch = collate([store.row(i) for i in range(8)])
    assert 0 < batch.labelled_positions < batch.positions
    loss = DistillLoss(divergence="forward_kl", temperature=2.0, alpha=0.7)
    out = loss(student.hidden(batch), student.head(), batch)
    out.loss.backward()
    found = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}

    student.zero_grad()
    logits = student.model(**batch.inputs).logits
    logits = logits.flatten(0, 1)[batch.flat_positions]
    p = torch.tensor(np.concatenate([store.row(i).targets.dense(2.0) for i in range(8)])).double()
    p = p / p.sum(dim=1, keepdim=True)
    soft = (p * (p.log() - torch.log_softmax(logits / 2.0, dim=1))).sum(dim=1).mean()
    known = batch.labels >= 0
    hard = torch.nn.functional.cross_entropy(logits[known], batch.labels[known])
    expected = 0.7 * 4.0 * soft + 0.3 * hard
    expected.backward()
    torch.testing.assert_close(out.loss, expected, rtol=1e-6, atol=0)
    for name, p in student.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-7, msg=name)
    tied = student.model.get_output_embeddings().weight
    assert tied is student.model.get_input_embeddings().weight, "the head and the embeddings learn"


def test_a_student_learns_the_teacher_and_is_loaded_by_transformers(ground, tmp_path):
    folder = train(run_config(ground, ground / "store"), tmp_path / "run")
    store = open_store(ground / "store")
    student = make_student(f"hf-config:{ground / 'student.json'}", seed=0, task=Task.of(store))
    before, after = evaluate(student, store), evaluate_run(tmp_path / "run", ground / "store")
    assert after.kl < 0.7 * before.kl
    assert after.teacher_nll is not None
    loaded, loading = transformers.AutoModelForMaskedLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    row = store.row(0).row
    with torch.no_grad():
        logits = loaded(input_ids=torch.from_numpy(row.fed_ids)[None].long()).logits[0]
    nll = torch.nn.functional.cross_entropy(
        logits[torch.from_numpy(row.label_mask)], torch.from_numpy(row.labels).long()
    )
    assert torch.isfinite(nll)


def test_a_run_that_was_cut_off_ends_in_the_same_student(ground, tmp_path):
    whole = train(
        run_config(ground, ground / "store", steps=12, checkpoint_every=6), tmp_path / "a"
    )
    train(run_config(ground, ground / "store", steps=12, checkpoint_every=6), tmp_path / "b")
    first, last = sorted((tmp_path / "b" / "checkpoints").iterdir())
    assert first.name == "step-00000006"
    shutil.rmtree(last)
    shutil.rmtree(tmp_path / "b" / "student")
    resumed = train(
        run_config(ground, ground / "store", steps=12, checkpoint_every=6),
        tmp_path / "b",
        resume=True,
    )
    assert (whole / "model.safetensors").read_bytes() == (
        resumed / "model.safetensors"
    ).read_bytes()


def test_every_other_layer_with_the_head(ground):
    task = Task(domain=DOMAIN)
    student = make_student(f"layers-of:{ground / 'teacher'}?keep=1", seed=0, task=task)
    source = transformers.AutoModelForMaskedLM.from_pretrained(ground / "teacher")
    mine, theirs = student.model.bert.encoder.layer, source.bert.encoder.layer
    assert len(mine) == 1
    torch.testing.assert_close(mine[0].output.dense.weight, theirs[1].output.dense.weight)
    torch.testing.assert_close(student.head().weight, source.cls.predictions.decoder.weight)
    torch.testing.assert_close(student.head().bias, source.cls.predictions.bias)
    assert (
        student.model.get_output_embeddings().weight is student.model.get_input_embeddings().weight
    )


# -- what is refused ------------------------------------------------------------------------------


def test_an_encoder_without_a_head_is_refused(tmp_path):
    transformers.BertModel(models.config()).save_pretrained(tmp_path / "teacher")
    models.save_tokenizer(tmp_path / "teacher")
    models.write_corpus(tmp_path / "train.jsonl", 4)
    with pytest.raises(TeacherError, match=r"no weights for cls\.predictions"):
        build(config(tmp_path), tmp_path / "store")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_share": 0.0}, "--mask-share 0.0: expected a share above 0"),
        ({"mask_targets": "some"}, "--mask-targets 'some': expected one of masked, attended"),
        ({"views": 0}, "--views 0: expected at least 1"),
        (
            {"domain": "causal-lm", "mask_share": None, "views": 2},
            "belongs to --domain image-classification or masked-lm",
        ),
    ],
)
def test_bad_flags_are_refused(ground, settings, message):
    with pytest.raises(ConfigError, match=message):
        config(ground, **settings)


def test_a_row_without_room_between_its_marks_is_refused(ground, tmp_path):
    with pytest.raises(ConfigError, match="--seq-len 2: the tokenizer's 2 marks leave no room"):
        build(config(ground, seq_len=2), tmp_path / "s")


def test_conversations_are_refused(ground, tmp_path):
    record = {"messages": [{"role": "user", "content": "good"}]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(CorpusError, match=r'chat.jsonl:1: expected a "text"'):
        build(config(tmp_path, "chat.jsonl", teacher=f"hf:{ground / 'teacher'}"), tmp_path / "s")


def test_a_text_of_which_nothing_can_be_hidden_is_left_out_and_counted(ground, tmp_path):
    lines = [{"text": "good film"}, {"text": "unheard"}]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    job = config(tmp_path, "some.jsonl", teacher=f"hf:{ground / 'teacher'}", views=2)
    made = build(job, tmp_path / "s")
    corpus = made.identity.corpus
    assert (corpus.documents, corpus.skipped_short, corpus.rows) == (1, 1, 2)


def test_rows_differ_where_views_do(ground):
    found = [s.row for s in open_store(ground / "store")]
    rows = [r for r in found if (r.document, r.piece) == (40, 0)]
    assert len({r.fed_ids.tobytes() for r in rows}) == len(rows)
    assert replace(rows[0], view=1).digest() == rows[0].digest(), "the digest is of what is fed"


@pytest.mark.parametrize("domain", ["masked-lm", "sequence-classification", "token-classification"])
def test_a_row_that_the_teacher_cannot_read_is_refused(tmp_path, domain):
    kinds = {
        "masked-lm": models.save_masked_lm,
        "sequence-classification": models.save_classifier,
        "token-classification": models.save_tagger,
    }
    kinds[domain](tmp_path / "teacher")
    words = models.WORDS * 4
    record = {"words": words} if domain == "token-classification" else {"text": " ".join(words)}
    (tmp_path / "long.jsonl").write_text(json.dumps(record) + "\n")
    job = {"domain": domain, "seq_len": 70, "truncate": domain != "masked-lm"}
    bare = {} if domain == "masked-lm" else {"mask_share": None, "k": 3}
    with pytest.raises(
        ConfigError, match="a row of 70 tokens is longer than the 64 that the teach"
    ):
        build(config(tmp_path, "long.jsonl", **job, **bare), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_masks_stay_what_they_were_in_a_store_made_of_stores(ground, tmp_path):
    from softlabels.algebra.merge import merge

    build(config(ground, "other.jsonl"), tmp_path / "a")
    build(config(ground), tmp_path / "b")
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    merged, b = list(open_store(tmp_path / "ab")), list(open_store(tmp_path / "b"))
    assert verify_store(tmp_path / "ab").problems == []
    assert merged[-1].row.document == b[-1].row.document + 20
    for mine, theirs in zip(merged[-len(b) :], b, strict=True):
        assert mine.row.digest() == theirs.row.digest()
    build(config(ground, "other.jsonl", mask_share=0.2), tmp_path / "c")
    with pytest.raises(PairingError, match="masking"):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "ac")


def test_a_store_grows_by_more_masked_texts(ground, tmp_path):
    from softlabels.algebra.append import append
    from softlabels.builder.config import AppendConfig

    settings = {"views": 2, "mask_targets": "attended", "hidden": "int8"}
    build(config(ground, "other.jsonl", **settings), tmp_path / "s")
    job = config(ground, **settings)
    append(tmp_path / "s", AppendConfig(teacher=job.teacher, corpus=job.corpus), tmp_path / "t")
    build(job, tmp_path / "alone")
    grown, alone = open_store(tmp_path / "t"), open_store(tmp_path / "alone")
    assert verify_store(tmp_path / "t").problems == []
    assert len(grown) == 40 + len(alone)
    for i in range(len(alone)):
        mine, theirs = grown.row(40 + i), alone.row(i)
        assert mine.row.digest() == theirs.row.digest()
        np.testing.assert_array_equal(mine.targets.hidden, theirs.targets.hidden)
