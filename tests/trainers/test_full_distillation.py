"""`--teacher-states`: a run on all of the teacher's distribution, and an evaluation against it."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from softlabels.builder.config import StatesConfig
from softlabels.builder.states import write_states
from softlabels.errors import PairingError, RunError, TokenizerError
from softlabels.store.reader import open_store
from tests.fakes import LinearTeacher, TinyTeacher, build_tiny, write_corpus
from tests.students import evaluate_run, llama
from trainers.cli import main
from trainers.data.stream import SoftTargetStream
from trainers.evaluation.config import EvalConfig
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import make_student

STEPS = 6


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """Two stores of one corpus and teacher, its states, and held-out rows with theirs."""
    folder = tmp_path_factory.mktemp("full")
    corpus, other = write_corpus(folder / "corpus"), write_corpus(folder / "c", documents=1)
    build_tiny(folder / "sampled", corpus, teacher=LinearTeacher(), estimator="sampled", k=4)
    build_tiny(folder / "topk", corpus, teacher=LinearTeacher(), shard_rows=13)
    for name, estimator, k in (
        ("", "topk", 5),
        ("-sampled", "sampled", 5),
        ("-dense", "dense", 300),
    ):
        build_tiny(
            folder / f"heldout{name}",
            other,
            teacher=LinearTeacher(),
            seq_len=48,
            estimator=estimator,
            k=k,
        )
    for store, name in (("sampled", "states"), ("heldout", "heldout-states")):
        config = StatesConfig(teacher="hf:x")
        write_states(folder / store, config, folder / name, teacher=LinearTeacher())
    (folder / "student.json").write_text(json.dumps(llama()))
    return folder


def config_of(ground, **changes) -> RunConfig:
    values = {
        "store": str(ground / "sampled"),
        "teacher_states": str(ground / "states"),
        "student": f"hf-config:{ground / 'student.json'}",
        "steps": STEPS,
        "batch_size": 4,
        "lr": 1e-2,
        "log_every": 1,
        "checkpoint_every": 3,
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
    }
    return RunConfig(**(values | changes))


def metrics(run, name="loss"):
    return [json.loads(x)[name] for x in (run / "metrics.jsonl").read_text().splitlines()]


def online(config, ground, *, keep=slice(None)):
    """The losses of a plain loop with the teacher in memory: dense, in float64 from the logits on."""
    vocab = None if config.vocab is None else config.vocab
    stream = SoftTargetStream(
        open_store(config.store, vocab=vocab), batch_size=4, seed=0, prefetch=0
    )
    teacher, raw = LinearTeacher(), open_store(config.store)
    path = ground / "student.json"
    if config.student is not None:
        path = config.student.removeprefix("hf-config:")
    student = make_student(f"hf-config:{path}", seed=0)
    groups = [[p for p in student.parameters() if (p.dim() >= 2) == d] for d in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": g, "weight_decay": w} for g, w in zip(groups, (0.1, 0.0), strict=True)],
        betas=(0.9, 0.95),
        foreach=False,
    )
    t, a, found = config.temperature, config.alpha, []
    for step in range(STEPS):
        batch = stream.batch_at(4 * step)
        u = torch.cat([teacher.dense(raw.row(i).row) for i in batch.rows]).double()[:, keep]
        z = student.model(**batch.inputs).logits.flatten(0, 1)[batch.flat_positions].double()
        log_p, log_q = torch.log_softmax(u / t, 1), torch.log_softmax(z / t, 1)
        soft = (log_p.exp() * (log_p - log_q)).sum(1).mean()
        hard = torch.nn.functional.cross_entropy(z, batch.labels)
        loss = a * t**2 * soft + (1 - a) * hard
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate(step)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize(("t", "alpha", "accumulate"), [(1.0, 1.0, 1), (2.5, 0.6, 2)])
def test_each_step_is_that_of_a_loop_with_the_teacher_in_memory(
    ground, tmp_path, t, alpha, accumulate
):
    """From a sampled store that holds one temperature."""
    config = config_of(ground, temperature=t, alpha=alpha, accumulate=accumulate)
    train(config, tmp_path / "run")
    expected = online(config, ground)
    np.testing.assert_allclose(metrics(tmp_path / "run"), expected, rtol=1e-5)
    assert abs(expected[-1] - expected[0]) > 0.01
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["teacher_states"]["teacher"] == "tiny"
    assert metrics(tmp_path / "run", "teacher_tail") == [0.0] * STEPS


def test_any_store_of_the_corpus_gives_the_same_run(ground, tmp_path):
    """Its targets are not looked at, whatever it keeps of them."""
    changes = {"loss": "jsd", "temperature": 3.0}
    train(config_of(ground, **changes), tmp_path / "one")
    train(config_of(ground, **changes, store=str(ground / "topk")), tmp_path / "other")
    assert metrics(tmp_path / "one") == metrics(tmp_path / "other")


@pytest.mark.parametrize("kind", ["trim", "map"])
def test_through_a_vocabulary_view(ground, tmp_path, kind):
    """On condition that an id of the view comes: exact, where a store of some ids cannot be."""
    keep = np.arange(280)
    spec = "trim:280"
    if kind == "map":
        keep = keep[::-1].copy()
        table = np.full(300, -1)
        table[keep] = np.arange(280)
        np.save(tmp_path / "map.npy", table)
        spec = f"map:{tmp_path / 'map.npy'}"
    student = tmp_path / "student.json"
    student.write_text(json.dumps(llama(vocab_size=280)))
    config = config_of(ground, vocab=spec, student=f"hf-config:{student}", alpha=0.7)
    train(config, tmp_path / "run")
    expected = online(config, ground, keep=torch.from_numpy(keep))
    np.testing.assert_allclose(metrics(tmp_path / "run"), expected, rtol=1e-5)


def test_a_run_goes_on_with_the_states_that_it_was_begun_with(ground, tmp_path):
    train(config_of(ground, steps=3), tmp_path / "run")
    config = config_of(ground)
    with pytest.raises(RunError, match=r"begun with --teacher-states of digest .* this has none"):
        train(config_of(ground, teacher_states=None), tmp_path / "run", resume=True)
    (tmp_path / "moved").symlink_to(ground / "states")
    moved = config_of(ground, teacher_states=str(tmp_path / "moved"))
    train(moved, tmp_path / "run", resume=True)
    assert len(metrics(tmp_path / "run")) == config.steps


def test_states_of_other_rows_or_tokens_are_refused(ground, tmp_path):
    with pytest.raises(RunError, match=r"step 1: .* 4 of 4 rows have no states"):
        train(config_of(ground, teacher_states=str(ground / "heldout-states")), tmp_path / "a")
    salted = TinyTeacher(salt="x")
    build_tiny(tmp_path / "store", write_corpus(tmp_path / "c"), teacher=salted)
    with pytest.raises(TokenizerError, match=r"--teacher-states .*: its tokenizer"):
        train(config_of(ground, store=str(tmp_path / "store")), tmp_path / "b")
    small = TinyTeacher(vocab_size=290)
    build_tiny(tmp_path / "small", write_corpus(tmp_path / "d"), teacher=small)
    with pytest.raises(PairingError, match=r"its vocabulary is 300, that of .* is 290"):
        train(config_of(ground, store=str(tmp_path / "small")), tmp_path / "c2")


# -- evaluation -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(ground):
    train(config_of(ground), ground / "run")
    return ground / "run"


def dense_kl(run, store):
    """Mean KL in float64, and how often first choices agree."""
    student, teacher = make_student(f"hf:{run / 'student'}", seed=0), LinearTeacher()
    kl, agree, accepted = [], [], []
    for stored in open_store(store):
        ids = torch.from_numpy(stored.row.inputs["input_ids"].astype(np.int64))[None]
        counted = torch.from_numpy(stored.row.position_ids.astype(np.int64))[None]
        with torch.no_grad():
            z = student.model.eval()(input_ids=ids, position_ids=counted).logits[0]
        log_q = torch.log_softmax(z[torch.from_numpy(stored.row.positions)].double(), 1)
        log_p = torch.log_softmax(teacher.dense(stored.row).double(), 1)
        kl += (log_p.exp() * (log_p - log_q)).sum(1).tolist()
        agree += (log_p.argmax(1) == log_q.argmax(1)).tolist()
        accepted += torch.minimum(log_p, log_q).exp().sum(1).tolist()
    return math.fsum(kl) / len(kl), sum(agree) / len(agree), math.fsum(accepted) / len(kl)


def test_the_kl_of_a_store_is_a_bound_and_that_of_states_is_it(ground, trained):
    kl, agreement, accepted = dense_kl(trained, ground / "heldout")
    states = str(ground / "heldout-states")
    binned = evaluate_run(trained, ground / "heldout")
    both = evaluate_run(trained, ground / "heldout", teacher_states=states)
    sampled = evaluate_run(trained, ground / "heldout-sampled", teacher_states=states)
    dense = evaluate_run(trained, ground / "heldout-dense")
    assert binned.kl_dense is None
    assert binned.kl == both.kl < kl
    for found in (both, sampled, dense):
        assert found.kl_dense == pytest.approx(kl, rel=1e-5)
        assert found.agreement == pytest.approx(agreement, abs=1e-9)
        assert found.acceptance_low == pytest.approx(accepted, rel=1e-5)
        assert found.acceptance_high == pytest.approx(accepted, rel=1e-5)
        assert found.teacher_accuracy == both.teacher_accuracy
    assert sampled.kl is None
    assert dense.kl == dense.kl_dense
    assert evaluate_run(trained, ground / "heldout-sampled").agreement is None


def test_the_commands_text_says_which_of_the_two(ground, trained):
    bound, exact = "KL over kept ids and tail, a lower bound", "KL from the teacher, nats"
    for store, more, shown in (
        ("heldout", [], {bound}),
        ("heldout", ["--teacher-states", str(ground / "heldout-states")], {bound, exact}),
        ("heldout-sampled", ["--teacher-states", str(ground / "heldout-states")], {exact}),
        ("heldout-dense", [], {exact}),
    ):
        done = CliRunner().invoke(
            main, ["eval", str(trained), "--store", f"{ground}/{store}", *more]
        )
        assert done.exit_code == 0, done.output
        assert {words for words in (bound, exact) if words in done.output} == shown
    assert EvalConfig(store="x").teacher_states is None
