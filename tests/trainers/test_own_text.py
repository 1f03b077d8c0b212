"""Reverse KL on a student's own text, from the teacher's log-probability of each token."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import trainers
from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.errors import ConfigError, PairingError
from softlabels.store.reader import open_store
from softlabels.teachers import TeacherOptions, open_teacher
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.students import LLAMA, llama
from tests.teachers.tiny import VOCAB, write_model, write_texts
from trainers.data.batch import collate
from trainers.loss.head import Head
from trainers.loss.losses import DistillLoss
from trainers.loss.sampled import sampled_reverse_kl
from trainers.loss.settings import SAMPLED
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import load_student


@pytest.mark.parametrize("kept", [0, 1, 4, 10, 11])
def test_over_all_tokens_it_is_the_reverse_kl_and_its_gradient(kept):
    """Each token once, weighed by q: value and gradient of the dense loss, whatever ids are kept."""
    g = torch.Generator().manual_seed(0)
    n, v = 7, 11
    log_p = torch.randn(n, v, generator=g, dtype=torch.float64).log_softmax(1)
    z = torch.randn(n, v, generator=g, dtype=torch.float64, requires_grad=True)
    dense = (z.log_softmax(1).exp() * (z.log_softmax(1) - log_p)).sum()
    (expected,) = torch.autograd.grad(dense, z)
    top = log_p.topk(kept).indices
    values, gradients = estimates(log_p, z, top)
    weights = z.detach().softmax(1)
    assert torch.allclose((weights * values).sum(), dense, rtol=1e-12)
    found = (weights[:, :, None] * gradients).sum(1)
    assert torch.allclose(found, expected, atol=1e-12)


def test_what_is_known_of_the_kept_ids_takes_variance_away():
    g = torch.Generator().manual_seed(0)
    log_p = (3 * torch.randn(7, 31, generator=g, dtype=torch.float64)).log_softmax(1)
    z = (3 * torch.randn(7, 31, generator=g, dtype=torch.float64)).requires_grad_()
    weights = z.detach().softmax(1)[:, :, None]

    def variance(kept):
        found = estimates(log_p, z, log_p.topk(kept).indices)[1]
        mean = (weights * found).sum(1, keepdim=True)
        return float((weights * (found - mean) ** 2).sum())

    alone, some, most = (variance(k) for k in (0, 8, 24))
    print(alone, some, most)
    assert most < some / 4 < alone / 8
    assert variance(31) < 1e-20


def estimates(log_p, z, top):
    """Of every token at each position the estimate `[n, V]`, and its gradient by the logits `[n, V, V]`."""
    n, v = z.shape
    among = torch.zeros(n, v, dtype=torch.bool).scatter(1, top, True)

    def bins(log):
        tail = log.masked_fill(among, -torch.inf).logsumexp(1, keepdim=True)
        return torch.cat([log.gather(1, top), tail], dim=1)

    def of(z):
        log_q = z.log_softmax(1)
        return torch.stack(
            [
                sampled_reverse_kl(log_p[:, y], log_q[:, y], bins(log_p), bins(log_q), ~among[:, y])
                for y in range(v)
            ],
            dim=1,
        )

    values = of(z)
    gradients = [torch.autograd.grad(of(z)[:, y].sum(), z)[0] for y in range(v)]
    return values.detach(), torch.stack(gradients, dim=1)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own-text")
    corpus = write_corpus(folder / "corpus")
    build_tiny(folder / "store", corpus, estimator="sampled", k=8)
    build_tiny(folder / "top", corpus, estimator="topk", k=8)
    build_tiny(folder / "bare", corpus, position_summary=False)
    build_tiny(folder / "other", corpus, teacher=TinyTeacher(seed=1))
    (folder / "llama.json").write_text(json.dumps(LLAMA))
    first = {"student": f"hf-config:{folder}/llama.json", "steps": 2, "dtype": "float32"}
    train(RunConfig(store=str(folder / "store"), **first), folder / "run")
    return folder


@pytest.mark.parametrize("chunk_bytes", [None, 300 * 8 * 5])
@pytest.mark.parametrize("name", ["store", "top"])
def test_value_and_gradients_are_those_of_a_dense_loss(ground, name, chunk_bytes):
    opened = open_store(ground / name)
    batch = collate([opened.row(0), opened.row(1)])
    g = torch.Generator().manual_seed(1)
    hidden = torch.randn(batch.positions, 12, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(300, 12, generator=g, dtype=torch.float64, requires_grad=True)
    loss = DistillLoss(divergence=SAMPLED, alpha=1.0, chunk_bytes=chunk_bytes)
    out = loss(hidden, Head(weight=weight), batch)
    found = torch.autograd.grad(out.loss, (hidden, weight))
    teacher = TinyTeacher()
    log_p = torch.cat([teacher.dense(opened.row(i).row) for i in (0, 1)]).double().log_softmax(1)
    log_q = (hidden @ weight.T).log_softmax(1)
    labels = batch.labels[:, None]
    drawn = log_q.gather(1, labels)[:, 0]
    gap = (drawn - log_p.gather(1, labels)[:, 0]).detach()
    expected, value = gap * drawn, gap
    if name == "top":
        among = torch.zeros_like(log_p, dtype=torch.bool)
        among.scatter_(1, torch.from_numpy(batch.targets.ids).long(), True)
        assert 0 < among.gather(1, labels).sum() < len(labels)  # tokens of both kinds
        tail_p, tail_q = (x.masked_fill(among, -torch.inf).logsumexp(1) for x in (log_p, log_q))
        known = torch.where(among, log_q.exp() * (log_q - log_p), 0.0).sum(1)
        known = known + tail_q.exp() * (tail_q - tail_p)
        rest = torch.where(among.gather(1, labels)[:, 0], 0.0, gap - (tail_q - tail_p)).detach()
        expected, value = known + rest * drawn, known + rest
    expected = torch.autograd.grad(expected.mean(), (hidden, weight))
    assert out.loss.item() == pytest.approx(value.mean().item(), rel=1e-3)  # as stores hold numbers
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_a_run_goes_on_from_its_own_text_and_records_its_teachers(ground, tmp_path):
    config = RunConfig(
        store=str(ground / "store"),
        init=str(ground / "run"),
        loss=SAMPLED,
        alpha=1.0,
        steps=2,
        dtype="float32",
    )
    train(config, tmp_path / "next")
    facts = json.loads((tmp_path / "next/run.json").read_text())
    assert facts["teachers"] == [TinyTeacher().record.weights_sha256]


@pytest.mark.parametrize(
    ("store", "error", "message"),
    [
        ("other", PairingError, "was taught by another teacher .*; have its text scored by the"),
        ("bare", PairingError, "holds no summary of its positions"),
    ],
)
def test_a_store_that_cannot_score_it_is_refused(ground, tmp_path, store, error, message):
    config = RunConfig(
        store=str(ground / store), init=str(ground / "run"), loss=SAMPLED, alpha=1.0, steps=1
    )
    with pytest.raises(error, match=message):
        train(config, tmp_path / "next")
    assert not (tmp_path / "next").exists()


def test_a_run_that_recorded_no_teachers_is_asked_by_its_stores(ground, tmp_path, monkeypatch):
    facts = json.loads((ground / "run/run.json").read_text())
    monkeypatch.setattr(
        "trainers.run.finished.read_run_record",
        lambda _: {k: v for k, v in facts.items() if k != "teachers"},
    )
    settings = {"init": str(ground / "run"), "loss": SAMPLED, "alpha": 1.0, "steps": 1}
    with pytest.raises(PairingError, match="was taught by another teacher"):
        train(RunConfig(store=str(ground / "other"), **settings), tmp_path / "other")
    train(RunConfig(store=str(ground / "store"), **settings), tmp_path / "next")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": None, "student": "new:1k"}, "name that run with --init RUN"),
        ({"alpha": 0.5}, "give --alpha 1"),
        ({"temperature": 2.0}, "leave --temperature, --weight and schedules out"),
        ({"alpha_schedule": "linear:0.5"}, "give --alpha 1"),
        ({"weight": "hard"}, "give --alpha 1"),
        ({"teacher_states": "states"}, "leave one of the two out"),
    ],
)
def test_settings_that_do_not_go_with_it(changes, message):
    values = {"store": "store", "init": "run", "loss": SAMPLED, "alpha": 1.0}
    with pytest.raises(ConfigError, match=message):
        RunConfig(**(values | changes)).make_loss().at(1)


@pytest.mark.parametrize(("name", "told"), [("store", True), ("top", False)])
def test_a_store_of_samples_is_told_what_it_costs(ground, name, told):
    targets = open_store(ground / name).manifest.identity.targets
    found = DistillLoss(divergence=SAMPLED, alpha=1.0).notices(targets)
    assert [("--estimator topk" in line) for line in found] == [True] * told


@pytest.mark.slow
def test_scored_once_offline_a_students_own_text_improves(tmp_path):
    """One pass from each of three seeds, measured on text written anew: all are below what the text before varies."""
    write_model(tmp_path / "teacher")
    teacher = open_teacher(f"hf:{tmp_path}/teacher", TeacherOptions(dtype="float32"))
    settings = {"teacher": "hf:x", "estimator": "sampled", "k": 8, "seq_len": 48}
    store, run = tmp_path / "store", tmp_path / "run"
    build(
        BuildConfig(corpus=(write_texts(tmp_path / "corpus"),), **settings), store, teacher=teacher
    )
    student = llama(layers=2, width=32, vocab_size=VOCAB, max_position_embeddings=512)
    (tmp_path / "student.json").write_text(json.dumps(student | {"eos_token_id": 0}))
    how = {"alpha": 1.0, "dtype": "float32"}
    begin = f"hf-config:{tmp_path}/student.json"
    train(RunConfig(store=str(store), student=begin, steps=60, lr=1e-2, **how), run)

    def scored(run, name, *, n, seed):
        texts = tmp_path / f"{name}.parquet"
        prompts = {"prompts": str(store), "prompt_tokens": 4, "limit": 12}
        trainers.generate(run=run, out=texts, n=n, max_new_tokens=32, seed=seed, **prompts)
        build(BuildConfig(corpus=(f"ids:{texts}",), **settings), tmp_path / name, teacher=teacher)
        return tmp_path / name

    def gap(run, name, seed):
        opened = open_store(scored(run, name, n=16, seed=seed))
        batch = collate([opened.row(i) for i in range(len(opened))])
        student = load_student(run / "student")
        with torch.no_grad():
            loss = DistillLoss(divergence=SAMPLED, alpha=1.0)
            return loss(student.hidden(batch), student.head(), batch).loss.item()

    before = [gap(run, f"before-{seed}", seed) for seed in (97, 98, 99)]
    after = []
    for seed in range(3):
        text = scored(run, f"text-{seed}", n=96, seed=seed)
        own = {"init": str(run), "loss": SAMPLED, "steps": 12, "batch_size": 64, "lr": 1e-3}
        train(RunConfig(store=str(text), seed=seed, **own, **how), tmp_path / f"next-{seed}")
        after.append(gap(tmp_path / f"next-{seed}", f"after-{seed}", 99))
    print(before, after)
    assert max(after) < min(before)
    assert np.mean(before) - np.mean(after) > 2 * np.std(after, ddof=1) / 3**0.5
