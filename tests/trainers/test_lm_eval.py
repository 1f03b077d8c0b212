"""A run's student inside the real lm-evaluation-harness, on tasks and data in a folder."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.core.folder_record import RECORD
from softlabels.errors import ConfigError, PairingError, RunError
from softlabels.teachers import TeacherOptions, open_teacher
from softlabels.teachers.tokenizer import HFTokenizer
from tests.blocks import blocks_of
from tests.domains import models
from tests.domains.test_sequence_classification import config as classifier_config
from tests.students import llama
from tests.teachers.tiny import VOCAB, write_model, write_texts
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import load_student

ROOT = Path(__file__).parents[2]

transformers = pytest.importorskip("transformers")
lm_eval = pytest.importorskip("lm_eval", reason="needs the extra `evaluate`")
tokenizers = pytest.importorskip("tokenizers")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from trainers.integrations.lm_eval import SoftTrainLM  # noqa: E402

pytestmark = pytest.mark.slow

STUDENT = llama(
    layers=2,
    width=32,
    vocab_size=VOCAB,
    max_position_embeddings=64,
    initializer_range=0.4,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=0,
)
QUESTIONS = [
    ("It is a truth", ["universally acknowledged", "in possession of a wife"], 0),
    ("a single man", ["must be in want of a wife", "however", "a good fortune"], 2),
    ("the surrounding", ["families", "minds 42"], 1),
]
TEXTS = ["It is a truth.", "A single man in possession. " * 8]
CHOICE = """
task: tiny_choice
output_type: multiple_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""
ROLLING = """
task: tiny_rolling
output_type: loglikelihood_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/texts.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: byte_perplexity}}]
"""
GENERATE = """
task: tiny_generate
output_type: generate_until
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


def jsonl(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A run with and one without held-out rows, a classifier's run, tasks and their data."""
    folder = tmp_path_factory.mktemp("lm-eval")
    write_model(folder / "teacher")
    teacher = open_teacher(f"hf:{folder}/teacher", TeacherOptions(dtype="float32"))
    (folder / "other.txt").write_text("9 8 7 6 5 4 3 2 1 0 " * 9)  # the more is learnt, the worse
    corpora = {"store": write_texts(folder / "corpus"), "heldout": f"text:{folder}/other.txt"}
    for name, texts in corpora.items():
        config = BuildConfig(
            teacher="hf:x", corpus=(texts,), estimator="topk", k=8, seq_len=48, dtype="float32"
        )
        build(config, folder / name, teacher=teacher)
    (folder / "student.json").write_text(json.dumps(STUDENT))
    lm = {"store": str(folder / "store"), "student": f"hf-config:{folder / 'student.json'}"}
    lm |= {"steps": 6, "batch_size": 2, "lr": 3e-2, "dtype": "float32", "threads": 1}
    train(RunConfig(**lm), folder / "plain")
    train(
        RunConfig(**lm | {"heldout": str(folder / "heldout"), "eval_every": 2, "ema": 0.5}),
        folder / "run",
    )
    tasks = folder / "tasks"
    tasks.mkdir()
    for name, text in (("choice", CHOICE), ("rolling", ROLLING), ("generate", GENERATE)):
        (tasks / f"{name}.yaml").write_text(text.format(folder=folder))
    jsonl(
        folder / "questions.jsonl",
        [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS],
    )
    jsonl(folder / "texts.jsonl", [{"text": t} for t in TEXTS])
    return folder


def evaluated(ground: Path, task: str, **arguments):
    return lm_eval.simple_evaluate(
        "softtrain",
        {"run": str(ground / "run"), "device": "cpu", **arguments},
        tasks=[task],
        task_manager=TaskManager(include_path=str(ground / "tasks"), include_defaults=False),
        batch_size=2,
        bootstrap_iters=0,
    )


def log_probs(folder: Path, ids: list[int]) -> torch.Tensor:
    """`[S-1]` float64: -log p of what comes next, by the student's own body and head."""
    model = load_student(folder).model.double().eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return torch.log_softmax(logits, dim=1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def words_of(folder: Path):
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("weights", [None, "student"])
def test_log_likelihoods_are_the_students_own(ground, weights):
    found = evaluated(ground, "tiny_choice", **({"weights": weights} if weights else {}))
    folder = ground / "run" / (weights or "best")
    words, right = words_of(folder), 0
    samples = sorted(found["samples"]["tiny_choice"], key=lambda s: s["doc_id"])
    assert len(samples) == len(QUESTIONS)
    for sample, (question, choices, answer) in zip(samples, QUESTIONS, strict=True):
        expected = []
        for choice in choices:
            before = words.encode(question).ids
            whole = words.encode(f"{question} {choice}").ids
            assert whole[: len(before)] == before
            expected.append(float(log_probs(folder, whole)[len(before) - 1 :].sum()))
        assert [float(r[0][0]) for r in sample["resps"]] == pytest.approx(expected, abs=1e-4)
        assert max(expected) - min(expected) > 0.1
        right += max(range(len(choices)), key=expected.__getitem__) == answer
    assert found["results"]["tiny_choice"]["acc,none"] == pytest.approx(right / len(QUESTIONS))


def test_perplexity_in_windows_of_the_students_context(ground):
    """The second text is longer than what the student sees at once."""
    found = evaluated(ground, "tiny_rolling")
    folder = ground / "run" / "best"
    words, total = words_of(folder), 0.0
    samples = sorted(found["samples"]["tiny_rolling"], key=lambda s: s["doc_id"])
    most = STUDENT["max_position_embeddings"]
    for sample, text in zip(samples, TEXTS, strict=True):
        ids = [0, *words.encode(text).ids]  # the tokenizer has an end mark only: it comes first
        expected = float(log_probs(folder, ids[: most + 1]).sum())
        if (rest := len(ids) - most - 1) > 0:
            expected += float(log_probs(folder, ids[-most - 1 :])[-rest:].sum())
        assert float(sample["resps"][0][0]) == pytest.approx(expected, abs=1e-4)
        total += expected
    assert len(ids) > most + 1
    size = sum(len(t.encode()) for t in TEXTS)
    assert found["results"]["tiny_rolling"]["byte_perplexity,none"] == pytest.approx(
        math.exp(-total / size)
    )


def test_generation_is_greedy_and_stops(ground):
    found = evaluated(ground, "tiny_generate")
    folder = ground / "run" / "best"
    words, model = words_of(folder), load_student(folder).model.eval()
    for sample in found["samples"]["tiny_generate"]:
        ids = words.encode(sample["doc"]["question"]).ids
        new: list[int] = []
        while len(new) < 6 and 0 not in new:
            with torch.no_grad():
                new.append(int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
        assert sample["resps"][0][0] == words.decode(new).split("\n")[0]


def test_results_say_which_weights_they_are_of(ground):
    for run, weights, folder in (("run", None, "best"), ("plain", None, "student")):
        lm = SoftTrainLM(ground / run, weights, device="cpu")
        info = lm.get_model_info()
        assert info["softtrain_weights"] == folder
        assert info["softtrain_run"] == str(ground / run)
        facts = json.loads((ground / run / "run.json").read_text())
        assert info["softtrain_store"] == facts["store_digest"]
        assert lm.model.name_or_path == str((ground / run / folder).resolve())
    last = SoftTrainLM(ground / "run", "student", device="cpu").get_model_info()
    best = SoftTrainLM(ground / "run", device="cpu").get_model_info()
    assert last["model_sha"] != best["model_sha"]
    assert len(best["model_sha"]) == 64


@pytest.mark.parametrize("marked", [False, True])
def test_text_becomes_the_tokens_that_the_build_made_of_it(ground, tmp_path, marked):
    """Also where the tokenizer puts a start mark before every text."""
    run = copied(
        ground, tmp_path / "run", with_mark("<|im_start|>", 1, first=True) if marked else None
    )
    path = run / "student" / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | ({"bos_token": "<|im_start|>"} if marked else {})
    path.write_text(json.dumps(settings))
    built = HFTokenizer(transformers.AutoTokenizer.from_pretrained(run / "student"))
    lm = SoftTrainLM(run, device="cpu")
    for text in ("It is a truth", " a wife 42"):
        *ids, end = built.encode(text).input_ids.tolist()
        assert end == 0
        assert lm.tok_encode(text) == lm.tok_batch_encode([text])[0][0].tolist() == ids
        assert (ids[0] == 1) is marked
    request = Instance("loglikelihood_rolling", {}, ("It is a truth",), 0)
    (whole,) = lm.loglikelihood_rolling([request], disable_tqdm=True)
    ids = [1 if marked else 0, *words_of(ground / "run" / "best").encode("It is a truth").ids]
    assert whole == pytest.approx(float(log_probs(run / "student", ids).sum()), abs=1e-4)
    assert len(lm.tok_encode("It is a truth")) == len(ids) - (not marked)


def test_arguments_of_the_harness_reach_its_class(ground):
    lm = SoftTrainLM(ground / "run", device="cpu", batch_size=3, max_length=16)
    assert (lm.batch_size, lm.max_length) == (3, 16)
    request = Instance("loglikelihood", {}, ("It is a truth " * 20, "a"), 0)
    cut = words_of(ground / "run" / "best").encode("It is a truth " * 20 + "a").ids[-17:]
    expected = float(log_probs(ground / "run" / "best", cut)[-1])
    ((found, _),) = lm.loglikelihood([request], disable_tqdm=True)
    assert found == pytest.approx(expected, abs=1e-4)


# -- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"run": None}, "run=RUN is missing"),
        ({"pretrained": "gpt2"}, "pretrained=gpt2: is the run's to say"),
        ({"weights": "last"}, "weights=last: expected student, ema, best"),
    ],
)
def test_impossible_arguments_are_refused(ground, arguments, words):
    with pytest.raises(ConfigError, match=words):
        SoftTrainLM(**({"run": ground / "run"} | arguments))


def test_runs_that_do_not_fit_are_refused(ground, tmp_path):
    with pytest.raises(RunError, match="not a run"):
        SoftTrainLM(tmp_path)
    with pytest.raises(RunError, match="without --ema"):
        SoftTrainLM(ground / "plain", "ema")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_bytes((ground / "run" / "run.json").read_bytes())
    with pytest.raises(RunError, match="the run has not finished"):
        SoftTrainLM(tmp_path / "begun")


def test_a_classifier_is_refused(tmp_path):
    models.save_classifier(tmp_path / "teacher")
    models.write_corpus(tmp_path / "train.jsonl", 8)
    models.config(layers=1).to_json_file(tmp_path / "student.json")
    build(classifier_config(tmp_path), tmp_path / "store")
    student = f"hf-config:{tmp_path / 'student.json'}"
    train(RunConfig(store=str(tmp_path / "store"), student=student, steps=1), tmp_path / "run")
    with pytest.raises(ConfigError, match="of the domain sequence-classification; the harness"):
        SoftTrainLM(tmp_path / "run")


def copied(ground: Path, to: Path, change=None) -> Path:
    """The run without held-out rows, with another tokenizer.json, which its maker no longer vouches for."""
    shutil.copytree(ground / "plain", to)
    (to / "student" / RECORD).unlink()
    path = to / "student" / "tokenizer.json"
    record = json.loads(path.read_text())
    if change is not None:
        change(record)
    path.write_text(json.dumps(record))
    return to


def with_mark(mark: str, number: int, *, first: bool):
    """Makes a tokenizer put a mark before or after every text."""
    text, special = (
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": mark, "type_id": 0}},
    )

    def change(record):
        record["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [special, text] if first else [text, special],
            "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {mark: {"id": mark, "ids": [number], "tokens": [mark]}},
        }

    return change


def test_tokenizers_that_do_not_fit_are_refused(ground, tmp_path):
    run = copied(ground, tmp_path / "ends", with_mark("<|endoftext|>", 0, first=False))
    with pytest.raises(ConfigError, match="an end mark after every text"):
        SoftTrainLM(run, device="cpu")
    lm = SoftTrainLM(run, device="cpu", add_bos_token=False)
    assert lm.tok_encode("a truth") == words_of(ground / "run" / "best").encode("a truth").ids

    def more_ids(record):
        mark = record["added_tokens"][0]
        record["added_tokens"] += [mark | {"id": 400 + i, "content": f"<{i}>"} for i in range(40)]

    with pytest.raises(PairingError, match=f"its tokenizer has 440 ids, the student {VOCAB}"):
        SoftTrainLM(copied(ground, tmp_path / "more", more_ids), device="cpu")
    run = copied(ground, tmp_path / "none")
    (run / "student" / "tokenizer.json").unlink()
    with pytest.raises(RunError, match=r"holds no tokenizer\.json"):
        SoftTrainLM(run, device="cpu")
    run = copied(ground, tmp_path / "marks")
    path = run / "student" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["eos_token"]
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="give prefix_token_id=ID"):
        SoftTrainLM(run, device="cpu")


# -- the command ----------------------------------------------------------------------------------


def command(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line of the documentation, run in a folder."""
    words = shlex.split(line)
    assert words[0] == "python"
    return subprocess.run(
        [sys.executable, *words[1:], "--device", "cpu"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "cache"),
        },
    )


def blocks(language: str) -> list[str]:
    found = blocks_of("reports.md", language, heading="In lm-evaluation-harness")
    return [b.text for b in found]


def test_the_documented_command_and_task(ground, tmp_path):
    """The harness's own command line, as printed."""
    (tmp_path / "run").symlink_to(ground / "run")
    (tmp_path / "questions.jsonl").symlink_to(ground / "questions.jsonl")
    (tmp_path / "tasks").mkdir()
    (task,), (line,) = blocks("yaml"), blocks("sh")
    (tmp_path / "tasks" / "questions.yaml").write_text(task)
    done = command(line, tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results").rglob("results_*.json")
    found = json.loads(path.read_text())
    assert found["config"]["softtrain_weights"] == "best"
    here = evaluated(ground, "tiny_choice")["results"]["tiny_choice"]["acc,none"]
    assert found["results"]["questions"]["acc,none"] == here


def test_the_documented_python(ground, monkeypatch):
    """As printed, on a task of ours."""
    (snippet,) = blocks("python")
    assert snippet.count('tasks=["hellaswag"]') == 1
    monkeypatch.chdir(ground)
    tasks = TaskManager(include_path=str(ground / "tasks"), include_defaults=False)
    names = {"here": tasks}
    snippet = snippet.replace('["hellaswag"]', '["tiny_choice"], task_manager=here')
    exec(compile(snippet, "reports.md", "exec"), names)
    assert names["found"]["config"]["softtrain_weights"] == "best"


def test_a_mistake_ends_in_a_sentence(tmp_path):
    (line,) = blocks("sh")
    (tmp_path / "run").mkdir()
    (tmp_path / "tasks").mkdir()
    (task,) = blocks("yaml")
    (tmp_path / "tasks" / "questions.yaml").write_text(task)
    done = command(line, tmp_path)
    assert done.returncode == 1
    assert "error: run: not a run" in done.stderr
    assert "Traceback" not in done.stderr
