"""Text that students write in a report: always the same, in bounded time, and only where it can be had."""

from __future__ import annotations

import json
import shutil
from itertools import count
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.errors import ConfigError
from softlabels.store.reader import open_store
from softlabels.teachers import TeacherOptions, open_teacher
from tests.fakes import Notices
from tests.pages import check_page
from tests.students import llama
from tests.teachers.tiny import VOCAB, write_model, write_texts
from trainers.cli import main
from trainers.report.findings import Findings
from trainers.report.runs import gather
from trainers.report.texts import PROMPT, Asked, Written, continued_texts
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import load_student

ASKED = Asked(prompts=2, tokens=6, seconds=60, teacher=None)
STUDENT = llama(
    layers=1, vocab_size=VOCAB, initializer_range=0.4, bos_token_id=None, eos_token_id=0
)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, evaluated on the store that it was trained on."""
    folder = tmp_path_factory.mktemp("texts")
    write_model(folder / "teacher")
    teacher = open_teacher(f"hf:{folder}/teacher", TeacherOptions(dtype="float32"))
    config = BuildConfig(
        teacher="hf:x", corpus=(write_texts(folder / "corpus"),), estimator="topk", k=8, seq_len=48
    )
    build(config, folder / "store", teacher=teacher)
    (folder / "student.json").write_text(json.dumps(STUDENT))
    run = RunConfig(
        store=str(folder / "store"),
        student=f"hf-config:{folder / 'student.json'}",
        steps=2,
        batch_size=2,
        dtype="float32",
    )
    train(run, folder / "run")
    words = ["eval", str(folder / "run"), "--store", str(folder / "store"), "--bootstrap", "0"]
    assert CliRunner().invoke(main, words).exit_code == 0
    return folder


def styled(ground: Path):
    return Findings.of(gather([ground / "run"], digest=None, weights="student")).styled


def test_each_prompt_goes_on_with_the_most_probable_token(ground):
    texts = continued_texts(styled(ground), ASKED, weights="student", report=Notices())
    assert texts.trouble is None
    student = load_student(ground / "run" / "student").model.eval()
    store = open_store(ground / "store")
    tokenizer = json.loads(store.file("tokenizer/tokenizer.json"))
    assert tokenizer["model"]["vocab"]
    from tokenizers import Tokenizer

    decode = Tokenizer.from_str(json.dumps(tokenizer)).decode
    assert len(texts.prompts) == 2
    for prompt, words in zip(texts.prompts, texts.written[0].words, strict=True):
        row = store.row(prompt.row).row.input_ids.tolist()
        at = next(i for i in range(len(row)) if row[i : i + PROMPT] == prompt.ids.tolist())
        came = row[at + PROMPT : at + PROMPT + 6]
        assert prompt.came == decode(came, skip_special_tokens=False)
        ids = prompt.ids.tolist()
        for _ in range(6):  # no cache, no batch
            with torch.no_grad():
                ids.append(int(student(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 0:
                ids.pop()
                break
        assert words == decode(ids[PROMPT:], skip_special_tokens=False)
    again = continued_texts(styled(ground), ASKED, weights="student", report=Notices())
    assert again.written == texts.written


def test_a_teacher_writes_first_and_another_kind_of_folder_is_refused(ground):
    asked = Asked(prompts=1, tokens=3, seconds=60, teacher=ground / "teacher")
    texts = continued_texts(styled(ground), asked, weights="student", report=Notices())
    assert [(w.name, w.style) for w in texts.written] == [("the teacher", "t"), ("run", "s0")]
    asked = Asked(prompts=1, tokens=3, seconds=60, teacher=ground / "store")
    with pytest.raises(ConfigError, match=r"--teacher .*: is no folder of a model"):
        continued_texts(styled(ground), asked, weights="student", report=Notices())


def test_a_model_that_takes_too_long_leaves_the_rest(ground):
    ticks = count(0, 40)
    texts = continued_texts(
        styled(ground), ASKED, weights="student", report=Notices(), clock=lambda: float(next(ticks))
    )
    assert [w is None for w in texts.written[0].words] == [False, True]


def test_a_store_that_is_gone_is_said_to_be(ground, tmp_path):
    run = shutil.copytree(ground / "run", tmp_path / "run")
    (path,) = (run / "evaluations").iterdir()
    record = json.loads(path.read_text())
    record["store"]["path"] = str(tmp_path / "gone")
    path.write_text(json.dumps(record))
    entries = Findings.of(gather([run], digest=None, weights="student")).styled
    told = Notices()
    texts = continued_texts(entries, ASKED, weights="student", report=told)
    assert "the held-out store is not there" in texts.trouble
    assert any(line.startswith("no text is shown: ") for line in told.lines)
    nothing = Asked(prompts=0, tokens=1, seconds=1, teacher=None)
    assert continued_texts(entries, nothing, weights="student", report=told) is None


def test_many_empty_lines_are_counted():
    words = ["the" + "\n" * 40, "\n \n\n\n", "a\n\n\nb", None, ""]
    written = Written("run", "s0", words)
    assert [written.shown(n) for n in range(5)] == [
        "the\n↵ 40 times\n",
        "\n↵ 4 times\n",
        "a\n\n\nb",
        None,
        "",
    ]


def test_the_page_has_it(ground, tmp_path):
    out = tmp_path / "page.html"
    words = ["report", str(ground / "run"), "--out", str(out), "--text-tokens", "4"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    text = check_page(out.read_text(encoding="utf-8"))
    assert "What they write" in text
    assert "the text itself" in text
    assert f"--out {out} --text-tokens 4" in text
