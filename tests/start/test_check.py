"""`softlabels check`: what would stop a build is found before its teacher is loaded, in one table."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner

from softlabels.cli.main import main
from tests.fakes import TEXT
from tests.teachers.tiny import write_model


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A real model's folder; nothing here may read its weights."""
    folder = write_model(tmp_path_factory.mktemp("teacher"))
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\nA card.\n")
    return folder


@pytest.fixture
def check(teacher, tmp_path, monkeypatch):
    """Run the command on a corpus; returns the exit code and its findings by subject."""
    monkeypatch.setattr(
        "transformers.PreTrainedModel.from_pretrained", lambda *_, **__: pytest.fail("loaded")
    )

    def run(text: str | bytes, *flags: str, name: str = "c.jsonl", model=teacher):
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / name).write_bytes(data)
        job = ["--teacher", f"hf:{model}", "--corpus", str(tmp_path / name), "--seq-len", "64"]
        job += ["--out", str(tmp_path / "out"), "--json", *flags]
        result = CliRunner().invoke(main, ["check", *job])
        assert result.exit_code in (0, 1), result.output
        value = json.loads(result.stdout)
        assert value["ok"] is (result.exit_code == 0)
        found: dict[str, list[dict[str, str]]] = {}
        for f in value["findings"]:
            found.setdefault(f["subject"], []).append(f)
        assert not (tmp_path / "out").exists()
        return result.exit_code, found

    return run


def lines(*records: object) -> str:
    return "".join(json.dumps(r) + "\n" for r in records)


GOOD = [{"text": TEXT}, {"text": TEXT[:150]}]


def test_a_sound_corpus_has_nothing_to_mend(check):
    code, found = check(lines(*GOOD))
    assert code == 0
    assert {f["level"] for fs in found.values() for f in fs} == {"fine", "look"}
    assert found["licence"][0]["level"] == "look"
    assert "416 ids, context 256" in found["teacher"][0]["found"]
    assert "the teacher's card says mit" in found["licence"][0]["found"]


def test_every_broken_line_is_found_and_not_the_first_alone(check):
    bad = lines(GOOD[0]) + "{\n" + lines({"txt": 1}) + "[]\n" + lines(GOOD[1], {"text": 3}) + "7\n"
    code, found = check(bad)
    assert code == 1
    (records, fine) = found["records"]
    assert records["found"] == "5 records cannot be read"
    for place in ("c.jsonl:2", "c.jsonl:3", "c.jsonl:4", "and 2 more"):
        assert place in records["way_out"]
    assert fine["found"].startswith("2 texts")


def test_another_encoding_is_found(check):
    code, found = check("Emma était là.\n".encode("latin-1"), name="c.txt")
    assert code == 1
    assert "is not UTF-8" in found["records"][0]["way_out"]
    code, found = check(lines({"text": TEXT + " Ã©tait"}, {"text": "a\ufffdb c d"}, GOOD[1]))
    assert code == 0
    assert "2 documents (66.7%)" in found["encoding"][0]["found"]


PAIR = {"prompt": "It is", "completion": " a truth", "id": 3}
ALPACA = {"instruction": "Say", "input": "", "output": "It is a truth"}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hm"}, {"from": "gpt", "value": "It is"}]}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (PAIR, "prompts with completions: reads prompt, completion; leaves id"),
        (ALPACA, "turns as of Alpaca: reads instruction, output, input"),
        (SHAREGPT, "conversations as of ShareGPT: reads conversations"),
    ],
)
def test_it_says_how_fields_are_read(check, record, said):
    _, found = check(lines(record, record | {"x": 1}))
    assert said in found["fields"][0]["found"]


def test_a_conversation_without_a_template_must_be_mended(check, teacher, tmp_path):
    turns = {"messages": [{"role": "assistant", "content": "It is"}]}
    assert check(lines(turns))[0] == 0
    plain = tmp_path / "plain"
    shutil.copytree(teacher, plain)
    (plain / "chat_template.jinja").unlink()
    code, found = check(lines(turns), model=plain)
    assert code == 1
    assert "no chat template" in found["fields"][1]["found"]


def test_rows_longer_than_the_teachers_context_must_be_mended(check):
    code, found = check(lines({"text": TEXT * 8}), "--seq-len", "512")
    assert code == 1
    assert "--seq-len 256" in found["lengths"][0]["found"]


def test_empty_and_repeated_documents(check):
    text = lines(*GOOD, {"text": " "}, GOOD[0], {"text": TEXT.upper()})
    code, found = check(text)
    assert code == 1
    assert "1 document without text" in found["empty"][0]["found"]
    assert "2 documents (40.0%)" in found["repeats"][0]["found"]
    code, found = check(text, "--skip-empty")
    assert code == 0


def test_held_out_text_that_is_trained_on_must_be_mended(check, tmp_path):
    other = "A line of another book, which is longer than sixty letters, and said nowhere else.\n"
    heldout = tmp_path / "h.jsonl"
    heldout.write_text(lines({"text": other}))
    assert check(lines(*GOOD), "--heldout", str(heldout))[0] == 0
    heldout.write_text(lines({"text": other}, {"text": TEXT.replace("truth", "Truth")}))
    code, found = check(lines(*GOOD), "--heldout", str(heldout))
    assert code == 1
    assert "1 of 2 held-out documents" in found["overlap"][0]["found"]
    assert "h.jsonl:2" in found["overlap"][0]["found"]


def test_a_line_that_all_files_end_with_is_only_said(check, tmp_path):
    def text(i: int) -> str:
        own = "\n".join(
            f"Line {i}.{j} of a text, which is longer than sixty letters and its own."
            for j in range(15)
        )
        return f"{own}\nCopyright by those who wrote it, in a line longer than sixty letters."

    heldout = tmp_path / "h.jsonl"
    heldout.write_text(lines({"text": text(0)}))
    code, found = check(lines({"text": text(1)}, {"text": text(2)}), "--heldout", str(heldout))
    assert code == 0
    assert found["overlap"][0]["level"] == "look"
    assert "1 of 16 of their long lines" in found["overlap"][0]["found"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"max_position_embeddings": 32, "vocab_size": 416}, "reads 32 tokens at a time"),
        ({"max_position_embeddings": 64, "vocab_size": 300}, "has 300 ids, the teacher 416"),
        ({"max_position_embeddings": 64, "vocab_size": 416}, None),
    ],
)
def test_a_student_must_fit(check, tmp_path, config, said):
    (tmp_path / "student.json").write_text(json.dumps(config))
    code, found = check(lines(*GOOD), "--student", f"hf-config:{tmp_path / 'student.json'}")
    assert code == (said is not None)
    assert said is None or said in found["student"][0]["found"]


def test_a_full_disk_and_a_licence(check, monkeypatch):
    monkeypatch.setattr("softlabels.start.disk.free_bytes", lambda _: 100)
    monkeypatch.setattr("softlabels.start.check.free_bytes", lambda _: 100)
    code, found = check(lines(*GOOD), "--licence", "no such licence")
    assert code == 1
    assert (found["disk"][0]["level"], found["licence"][0]["level"]) == ("mend", "mend")


def test_a_teacher_that_is_not_here(check, tmp_path):
    code, found = check(lines(*GOOD), model="nobody/nothing")
    assert code == 1
    assert "hf download nobody/nothing" in found["teacher"][0]["found"]


def test_the_table_for_people(teacher, tmp_path):
    (tmp_path / "c.jsonl").write_text(lines(*GOOD) + "{\n")
    job = ["check", "--teacher", f"hf:{teacher}", "--corpus", str(tmp_path / "c.jsonl")]
    result = CliRunner().invoke(main, job)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "1 to mend, 1 to look at"
    assert " MEND  records    1 record cannot be read" in result.stdout


def test_a_build_says_first_that_the_disk_is_too_small(tmp_path, monkeypatch):
    from softlabels.start.first import check_first
    from tests.fakes import Notices, config_of, write_corpus

    notices = Notices()
    config = config_of(write_corpus(tmp_path / "c"))
    check_first(config, tmp_path / "out", notices)
    assert notices.lines == []
    monkeypatch.setattr("softlabels.start.disk.free_bytes", lambda _: 100)
    check_first(config, tmp_path / "out", notices)
    assert "GB are free on its disk" in notices.lines[0]
