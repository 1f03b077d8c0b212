"""A corpus named by its path alone; and what is wrong with a corpus is said before the teacher loads."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from softlabels.builder.config import BuildConfig
from softlabels.cli.main import main
from softlabels.corpora import named
from softlabels.errors import ConfigError
from softlabels.teachers import TEACHERS
from tests.fakes import build_tiny, config_of


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(*names: str) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(
                "It is a truth universally acknowledged.", encoding="utf-8"
            )

    return write


@pytest.mark.parametrize(
    ("files", "typed", "meant"),
    [
        (["book.txt"], "book.txt", "text:book.txt"),
        (["a/notes.md"], "./a/*.md", "text:./a/*.md"),
        (["BOOK.TXT"], "BOOK.TXT", "text:BOOK.TXT"),
        (["chats.jsonl"], "chats.jsonl", "jsonl:chats.jsonl"),
        (["x.parquet"], "x.parquet#body", "parquet:x.parquet#body"),
        (["ids.npy"], "ids.npy", "ids:ids.npy"),
        (["novels/a.txt", "novels/b.txt", "novels/LICENCE"], "novels", "text:novels/*.txt"),
        (["d/data-0.parquet"], "d/", "parquet:d/*.parquet"),
        (["saved/state.json", "saved/data.arrow"], "saved#body", "dataset:saved#body"),
        (["saved/dataset_dict.json"], "saved", "dataset:saved"),
        (["part 1: rain.txt"], "part 1: rain.txt", "text:part 1: rain.txt"),
        ([], "text:none.txt", "text:none.txt"),
        ([], "csv:x", "csv:x"),
    ],
)
def test_a_path_is_understood(here, files, typed, meant):
    here(*files)
    assert named([typed]) == [meant]
    assert named([meant]) == [meant], "spelt out it stays as it is"


@pytest.mark.parametrize(
    ("files", "typed", "said"),
    [
        ([], "book.txt", "--corpus book.txt: no such file (looked in "),
        ([], "book", "no such file or folder (looked in "),
        (
            ["book"],
            "book",
            "its kind cannot be told from its name; for plain text say --corpus 'text:book'",
        ),
        (["a.json"], "a.json", "say --corpus jsonl:a.json"),
        (["a.csv"], "a.csv", "--corpus parquet:FILE#COLUMN"),
        (["a.txt.gz"], "a.txt.gz", "is compressed; unpack it first, then name a.txt"),
        (
            ["d/a.txt", "d/b.jsonl"],
            "d",
            "several kinds; say --corpus 'text:d/*.txt' or --corpus 'jsonl:d/*.jsonl'",
        ),
        (["d/e/a.txt"], "d", "say --corpus 'text:d/**/*.txt'"),
    ],
)
def test_what_cannot_be_told_is_explained(here, files, typed, said):
    here(*files)
    with pytest.raises(ConfigError) as e:
        named([typed])
    assert said in str(e.value)


def test_a_store_records_the_kind(here, tmp_path):
    here("book.txt")
    manifest = build_tiny(tmp_path / "out", "book.txt", seq_len=16)
    assert manifest.identity.corpus.specs == ["text:book.txt"]
    spelt = build_tiny(tmp_path / "same", "text:book.txt", seq_len=16)
    assert spelt.content_digest == manifest.content_digest
    assert config_of("book.txt").corpus == ("text:book.txt",)


def test_images_have_names_of_their_own():
    config = BuildConfig(teacher="hf:x", corpus=("images:photos",), domain="image-classification")
    assert config.corpus == ("images:photos",)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("none.txt", None, "no such file"),
        ("bad.jsonl", '{"text": "fine"}\nnot json\n', "bad.jsonl:2: not a JSON object"),
        ("bad.jsonl", '{"body": "x"}\n', "bad.jsonl:1: expected "),
        ("latin.txt", b"caf\xe9", "latin.txt: byte 3 is not UTF-8"),
        ("empty.txt", "", "empty.txt: the text is empty"),
        ("x.parquet#title", {"text": ["a"]}, "x.parquet: has columns text; expected 'title'"),
    ],
)
def test_errors_of_the_corpus_come_before_the_teacher_loads(
    here, tmp_path, monkeypatch, dry, name, line, said
):
    """It takes minutes to load a large one."""

    def load(*_):
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(TEACHERS, "load", load)
    path = tmp_path / name.partition("#")[0]
    if isinstance(line, dict):
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.table(line), path)
    elif line is not None:
        path.write_bytes(line if isinstance(line, bytes) else line.encode())
    job = ["--teacher", "fake:0", "--corpus", str(tmp_path / name), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, ["build", *job, *dry])
    assert result.exit_code in (1, 2), result.output
    assert said in result.stderr
    assert "loading" not in result.stderr
