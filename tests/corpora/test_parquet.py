from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softlabels.corpora import open_corpora
from softlabels.errors import CorpusError

CHAT = [
    {"role": "user", "content": "hi", "name": None},
    {"role": "assistant", "content": "", "name": "a"},
]


def write(path, **columns) -> None:
    pq.write_table(pa.table(columns), path, row_group_size=100)


def documents(spec: str):
    (corpus,) = open_corpora([spec])
    return list(corpus.documents())


def test_rows_are_documents_in_order_of_path(tmp_path):
    write(tmp_path / "b.parquet", text=["x"], id=[1])
    write(tmp_path / "a.parquet", text=[f"{i}" for i in range(700)])
    found = documents(f"parquet:{tmp_path}/*.parquet")
    assert [d.text for d in found] == [*(str(i) for i in range(700)), "x"]
    assert [d.where for d in found[-2:]] == [f"{tmp_path}/a.parquet:699", f"{tmp_path}/b.parquet:0"]


def test_only_the_column_is_read_a_batch_at_a_time(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", text=["x"] * 700, image=[b"y" * 100] * 700)
    (corpus,) = open_corpora([f"parquet:{tmp_path}/a.parquet"])
    seen = []
    read = pq.ParquetFile.iter_batches

    def watched(self, *args, **kwargs):
        for batch in read(self, *args, **kwargs):
            seen.append((batch.schema.names, len(batch)))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    documents = corpus.documents()
    next(documents)
    assert len(seen) == 1
    assert seen[0][0] == ["text"]
    assert seen[0][1] <= 256


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_all_kinds_of_text_and_a_named_column(tmp_path, kind):
    values = pa.array(["a", "b", "a"]).cast(kind)
    write(tmp_path / "a.parquet", text=["no"] * 3, body=values)
    assert [d.text for d in documents(f"parquet:{tmp_path}/a.parquet#body")] == ["a", "b", "a"]


def test_conversations_keep_the_fields_they_have(tmp_path):
    write(tmp_path / "a.parquet", messages=[CHAT])
    (found,) = documents(f"parquet:{tmp_path}/a.parquet")
    assert found.messages == ({"role": "user", "content": "hi"}, CHAT[1])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["good", None], ["good", None]),
        ([1, 0], [1, 0]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        ([0.5, 1.0], [None, None]),
    ],
)
def test_a_label_beside_a_text_is_its_class(tmp_path, labels, expected):
    write(tmp_path / "a.parquet", label=labels, text=["x", "y"])
    found = documents(f"parquet:{tmp_path}/a.parquet")
    assert [(d.text, d.label) for d in found] == list(zip("xy", expected, strict=True))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"body": ["a"]}, r"a\.parquet: expected .*, found \['body'\]; name one column"),
        (
            {"text": ["a"], "messages": [CHAT]},
            'could be "text" or "messages"; expected fields of one',
        ),
        ({"text": [1]}, r"column 'text' is int64; expected strings, or lists of structs"),
        ({"text": ["a", None]}, r'a\.parquet:1: "text" is null'),
        (
            {"messages": [CHAT, [{"role": "user", "content": None}]]},
            r':1: message 0 has no "content"',
        ),
        ({"messages": [[None, *CHAT]]}, r':0: message 0 has no "role"'),
    ],
)
def test_what_is_no_corpus_is_refused(tmp_path, columns, words):
    write(tmp_path / "a.parquet", **columns)
    with pytest.raises(CorpusError, match=words):
        documents(f"parquet:{tmp_path}/a.parquet")


def test_files_that_are_no_parquet_or_not_there_are_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(CorpusError, match=r"a\.parquet: cannot be read as Parquet"):
        documents(f"parquet:{tmp_path}/a.parquet")
    with pytest.raises(CorpusError, match=r"--corpus parquet:.*: no file matches"):
        documents(f"parquet:{tmp_path}/*.none")
    write(tmp_path / "a.parquet", text=["a"])
    with pytest.raises(CorpusError, match="expected 'title'; name another"):
        documents(f"parquet:{tmp_path}/a.parquet#title")
