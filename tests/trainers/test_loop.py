"""The loop as a user runs it: subprocesses, killed and resumed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from softlabels.errors import ConfigError, PairingError, RunError, TokenizerError
from softlabels.store.reader import open_store
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.students import LLAMA, evaluate_run
from trainers.data.batch import collate
from trainers.data.stream import SoftTargetStream
from trainers.evaluation.calibration import reliability
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import make_student


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop")
    build_tiny(folder / "store", write_corpus(folder / "corpus"), temperature=(1.0, 2.0))
    (folder / "student.json").write_text(json.dumps(LLAMA))
    return folder


def config_of(ground: Path, **changes) -> RunConfig:
    values = {
        "store": str(ground / "store"),
        "student": f"hf-config:{ground / 'student.json'}",
        "steps": 12,
        "batch_size": 4,
        "lr": 1e-2,
        "log_every": 1,
        "checkpoint_every": 3,
        "dtype": "float32",
    }
    return RunConfig(**(values | changes))


def losses(run: Path) -> list[tuple[int, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [(r["step"], r["loss"]) for r in map(json.loads, lines)]


def test_training_learns_and_the_finished_student_loads(ground, tmp_path):
    folder = train(config_of(ground, steps=60, temperature=2.0), tmp_path / "run")
    found = losses(tmp_path / "run")
    assert [s for s, _ in found] == list(range(1, 61))
    assert np.mean([v for _, v in found[-5:]]) < 0.8 * found[0][1]
    assert (tmp_path / "run" / "tensorboard").is_dir()
    student = make_student(f"hf:{folder}", seed=0)
    assert student.vocab_size == 300
    assert (folder / "tokenizer.json").exists()
    before = evaluate_run(tmp_path / "run", ground / "store")
    assert before.nll < np.log(300)
    assert before.kl > 0


def test_schedules_and_weights_in_a_run_do_not_depend_on_accumulation(ground, tmp_path):
    config = config_of(
        ground,
        temperature=2.0,
        temperature_schedule="linear:1",
        alpha=0.9,
        alpha_schedule="linear:0.5",
        weight="entropy",
        label_smoothing=0.1,
        z_loss=1e-3,
        steps=5,
    )
    train(config, tmp_path / "one")
    train(replace(config, accumulate=4), tmp_path / "four")
    one, four = (
        [json.loads(x) for x in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("one", "four")
    )
    assert [r["temperature"] for r in one] == [2.0, 2.0, 1.0, 1.0, 1.0]
    assert [round(r["alpha"], 9) for r in one] == [0.9, 0.8, 0.7, 0.6, 0.5]
    for a, b in zip(one, four, strict=True):
        for name in ("loss", "soft", "soft_weighted", "hard_part", "teacher_tail", "agreement"):
            assert a[name] == pytest.approx(b[name], rel=1e-4)
        parts = a["alpha"] * a["temperature"] ** 2 * a["soft_weighted"]
        assert a["loss"] == pytest.approx(parts + (1 - a["alpha"]) * a["hard_part"], rel=1e-5)
        assert a["hard_part"] != a["hard"]
        assert 0 <= a["agreement"] <= 1


def test_hard_label_only_positions_in_a_run_and_its_evaluation(ground, tmp_path):
    build_tiny(
        tmp_path / "some",
        write_corpus(tmp_path / "corpus"),
        temperature=(1.0, 2.0),
        positions="entropy:0.3",
    )
    some = config_of(ground, store=str(tmp_path / "some"), temperature=2.0)
    train(some, tmp_path / "one")
    train(replace(some, accumulate=4), tmp_path / "four")
    np.testing.assert_allclose(
        [v for _, v in losses(tmp_path / "one")],
        [v for _, v in losses(tmp_path / "four")],
        rtol=1e-4,
    )
    first = json.loads((tmp_path / "one" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.5 * 4 * first["soft"] + 0.5 * first["hard"], rel=1e-5)
    found = evaluate_run(tmp_path / "one", tmp_path / "some")
    whole = evaluate_run(tmp_path / "one", ground / "store")
    assert found.positions == whole.positions
    assert found.nll == pytest.approx(whole.nll, rel=1e-6)
    assert whole.soft_positions == whole.positions
    # The same student and teacher, measured densely at the soft positions.
    teacher, student = TinyTeacher(), make_student(f"hf:{tmp_path / 'one' / 'student'}", seed=0)
    kl, agree = [], []
    for stored in open_store(tmp_path / "some"):
        batch = collate([stored])
        with torch.no_grad():
            z = student.model.eval()(**batch.inputs)
        log_q = torch.log_softmax(z.logits[0][torch.from_numpy(stored.row.positions)].double(), 1)
        log_p = torch.log_softmax(teacher.dense(stored.row).double(), 1)
        for n in np.flatnonzero(stored.targets.soft):
            ids = torch.from_numpy(stored.targets.ids[n]).long()
            p, q = log_p[n].exp(), log_q[n].exp()
            p, q = (torch.cat([x[ids], 1 - x[ids].sum()[None]]) for x in (p, q))
            kl.append(float((p * (p / q).log()).sum()))
            agree.append(bool(log_p[n].argmax() == log_q[n].argmax()))
    assert found.soft_positions == len(kl) < found.positions
    assert found.kl == pytest.approx(np.mean(kl), rel=1e-2)
    assert found.agreement == pytest.approx(np.mean(agree), abs=2 / len(kl))


def test_accumulation_gives_the_same_steps(ground, tmp_path):
    train(config_of(ground), tmp_path / "one")
    train(config_of(ground, accumulate=4), tmp_path / "four")
    np.testing.assert_allclose(
        [v for _, v in losses(tmp_path / "one")],
        [v for _, v in losses(tmp_path / "four")],
        rtol=1e-4,
    )


def command(ground: Path, out: Path, *extra: str) -> list[str]:
    c = config_of(ground)
    flags = f"--steps 24 --batch-size 4 --lr {c.lr} --log-every 1 --checkpoint-every 3 --threads 1"
    run = [sys.executable, "-m", "trainers", "run", "--store", c.store, "--student", c.student]
    return [*run, "--out", str(out), "--dtype", "float32", "--json", *flags.split(), *extra]


@pytest.mark.slow
def test_kill_minus_9_and_resume_gives_the_same_losses_to_the_bit(ground, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        command(ground, tmp_path / "whole"), check=True, env=environment, capture_output=True
    )
    whole = losses(tmp_path / "whole")
    run = tmp_path / "killed"
    rng = random.Random(0)
    kills = 0
    for _ in range(30):
        process = subprocess.Popen(
            command(ground, run, "--resume"),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wanted = (len(losses(run)) if (run / "metrics.jsonl").exists() else 0) + rng.randint(2, 9)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if (run / "metrics.jsonl").exists() and len(
                (run / "metrics.jsonl").read_bytes().splitlines()
            ) >= wanted:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.wait()
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert kills >= 3
    assert losses(run) == whole
    a, b = (load_file(tmp_path / n / "student" / "model.safetensors") for n in ("whole", "killed"))
    assert all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_in_hand(ground, tmp_path, how):
    run = tmp_path / "run"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    begun = [*command(ground, run), "--steps", "5000", "--checkpoint-every", "100000"]
    process = subprocess.Popen(begun, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (run / "metrics.jsonl").exists():
        time.sleep(0.01)
    while time.monotonic() < deadline and len(losses(run)) < 3:
        time.sleep(0.01)
    process.send_signal(how)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    (saved,) = (run / "checkpoints").iterdir()
    done = losses(run)
    assert saved.name == f"step-{done[-1][0]:08d}"


def test_resume_refuses_another_run(ground, tmp_path):
    run = tmp_path / "run"
    train(config_of(ground), run)
    with pytest.raises(RunError, match="--resume"):
        train(config_of(ground), run)
    with pytest.raises(RunError, match=r"lr = 0\.01"):
        train(config_of(ground, lr=0.5), run, resume=True)
    other = tmp_path / "other"
    build_tiny(other, write_corpus(tmp_path / "c", repeat=1), temperature=(1.0, 2.0))
    with pytest.raises(RunError, match="was begun on store"):
        train(config_of(ground, store=str(other)), run, resume=True)
    assert train(config_of(ground), run, resume=True) == run / "student"  # finished: nothing to do


@pytest.mark.parametrize("pieces", [{"accumulate": 2}, {"batch_tokens": 64}, {"chunk_mib": 1}])
def test_a_run_that_was_short_of_memory_goes_on_in_smaller_pieces(ground, tmp_path, pieces):
    train(config_of(ground), tmp_path / "whole")
    train(config_of(ground, keep_last=9), tmp_path / "run")
    for name in ("checkpoints/step-00000012", "checkpoints/step-00000009", "student"):
        shutil.rmtree(tmp_path / "run" / name)
    train(config_of(ground, **pieces), tmp_path / "run", resume=True)
    whole, run = (dict(losses(tmp_path / n)) for n in ("whole", "run"))
    assert run.keys() == whole.keys()
    last = max(whole)
    assert run[last] == pytest.approx(whole[last], rel=1e-4)


def test_pieces_stay_where_bits_are_promised(ground, tmp_path):
    run = tmp_path / "run"
    train(config_of(ground, accumulate=2, exact_ranks=True, steps=6), run)
    with pytest.raises(RunError, match="accumulate = 2"):
        train(config_of(ground, accumulate=4, exact_ranks=True), run, resume=True)


def test_old_checkpoints_are_removed(ground, tmp_path):
    train(config_of(ground, keep_last=2), tmp_path / "run")
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000009", "step-00000012"]


def test_wrong_pairings_are_refused_before_training(ground, tmp_path):
    with pytest.raises(PairingError, match="grid"):
        train(config_of(ground, temperature=3.0), tmp_path / "a")
    small = tmp_path / "small.json"
    small.write_text(json.dumps(LLAMA | {"vocab_size": 299}))
    with pytest.raises(PairingError, match="299 ids, the store's 300"):
        train(config_of(ground, student=f"hf-config:{small}"), tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_another_tokenizer_is_refused(ground, tmp_path):
    other = tmp_path / "other"
    build_tiny(other, write_corpus(tmp_path / "c", repeat=1), teacher=TinyTeacher(salt="x"))
    train(config_of(ground), tmp_path / "run")
    with pytest.raises(TokenizerError, match="another token"):
        evaluate_run(tmp_path / "run", other)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        train(
            config_of(ground, store=str(other), student=f"hf:{tmp_path / 'run' / 'student'}"),
            tmp_path / "run2",
        )


def test_layers_of_keeps_the_layers_it_names(ground, tmp_path):
    source = make_student(f"hf-config:{ground / 'student.json'}", seed=3)
    source.save(tmp_path / "teacher")
    student = make_student(f"layers-of:{tmp_path / 'teacher'}?keep=0,3", seed=0)
    a, b = dict(source.model.named_parameters()), dict(student.model.named_parameters())
    assert student.model.config.num_hidden_layers == 2
    assert torch.equal(b["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    for mine, theirs in ((0, 0), (1, 3)):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(b[name.format(mine)], a[name.format(theirs)])
    for bad in ("keep=0,9", "keep=0,0", "keep=a", "skip=1", ""):
        with pytest.raises(ConfigError, match="layers-of"):
            make_student(f"layers-of:{tmp_path / 'teacher'}?{bad}", seed=0)


def test_a_student_from_config_is_a_function_of_its_seed(ground):
    def weights(seed):
        student = make_student(f"hf-config:{ground / 'student.json'}", seed=seed)
        return student.model.model.embed_tokens.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_documents_in_one_row_do_not_see_each_other(ground, tmp_path):
    """A packed row gives each document the hidden states it has alone."""
    corpus = tmp_path / "short"
    corpus.mkdir()
    for i in range(6):
        (corpus / f"{i}.txt").write_text(f"document {i} " * 2)
    build_tiny(tmp_path / "packed", f"text:{corpus}/*.txt", seq_len=64)
    batch = SoftTargetStream(tmp_path / "packed", batch_size=1, prefetch=0).batch_at(0)
    assert "position_ids" in batch.inputs
    student = make_student(f"hf-config:{ground / 'student.json'}", seed=0).eval()
    starts = (batch.inputs["position_ids"][0] == 0).nonzero()[:, 0].tolist()
    assert len(starts) >= 2
    with torch.no_grad():
        whole = student.hidden(batch)[0]
        for start, stop in zip(starts, [*starts[1:], None], strict=True):
            alone = student.model.base_model(
                input_ids=batch.inputs["input_ids"][:, start:stop]
            ).last_hidden_state[0]
            torch.testing.assert_close(whole[start:stop], alone, rtol=1e-4, atol=1e-5)


def test_learning_rate_warms_up_and_falls_to_its_floor(ground):
    c = config_of(ground, steps=100, warmup=10, lr=1.0, min_lr=0.1)
    rates = [c.learning_rate(s) for s in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_a_loss_that_is_not_finite_names_the_rows(ground, tmp_path):
    source = make_student(f"hf-config:{ground / 'student.json'}", seed=0)
    with torch.no_grad():
        source.model.model.norm.weight.fill_(1e38)  # logits overflow
    source.save(tmp_path / "huge")
    said = r"step 1, rows \[\d+.*at a learning rate of .*begin again in another --out"
    config = config_of(ground, student=f"hf:{tmp_path / 'huge'}", same_tokenizer=True)
    with pytest.raises(RunError, match=said):
        train(config, tmp_path / "run")


def test_ece_on_a_hand_made_case():
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.3, 0.3])
    correct = np.array([True, True, True, False, False, True])
    # bin of 0.9: |0.9 - 0.75| * 4/6; bin of 0.3: |0.3 - 0.5| * 2/6
    assert reliability(confidence, correct).ece == pytest.approx(0.15 * 4 / 6 + 0.2 * 2 / 6)


@pytest.mark.slow
def test_the_trainer_imports_no_teacher(ground, tmp_path):
    config = json.dumps(asdict(config_of(ground, steps=2)))
    code = f"""
import json, sys
from trainers.run.config import RunConfig
from trainers.run.setup import train
train(RunConfig(**json.loads({config!r})), {str(tmp_path / "run")!r})
theirs = ("teachers", "teach", "build", "corpora", "estimators", "store.plan", "store.commit")
bad = [m for m in sys.modules if m.startswith((*(f"softlabels.{{t}}" for t in theirs), "gguf"))]
assert not bad, bad
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_a_mixture_of_stores_is_trained_on_and_resumed_as_it_was_begun(ground, tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    build_tiny(tmp_path / "b", corpus, temperature=(1.0, 2.0), teacher=TinyTeacher(seed=1))
    both = (f"{ground / 'store'}=0.75", f"{tmp_path / 'b'}=0.25")
    train(config_of(ground, store=both), tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 12
    train(config_of(ground), tmp_path / "alone")
    assert losses(tmp_path / "alone") != losses(tmp_path / "whole")
    facts = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert facts["config"]["store"] == list(both)
    other = (f"{ground / 'store'}=0.5", f"{tmp_path / 'b'}=0.5")
    with pytest.raises(RunError, match="was begun on store"):
        train(config_of(ground, store=other), tmp_path / "whole", resume=True)
    train(config_of(ground, store=both), tmp_path / "whole", resume=True)


def test_one_store_in_a_list_is_the_store(ground):
    assert config_of(ground, store=(str(ground / "store"),)) == config_of(ground)
    with pytest.raises(ConfigError, match="goes with one --store, not with 2"):
        config_of(ground, store=("a", "b"), vocab="trim:100")
