"""Records in the shapes that other tools write: the same documents from JSON lines, Parquet and saved datasets."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softlabels.corpora import open_corpora
from softlabels.corpora.packing import pack
from softlabels.errors import CorpusError
from tests.fakes import EOS, ByteTokenizer

SHARED = {
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "One?"},
        {"from": "gpt", "value": "Two."},
    ]
}
ALPACA = {"instruction": "Translate.", "input": "Haus", "output": "house"}
TURNS = [
    {"role": "user", "content": "Translate.\n\nHaus"},
    {"role": "assistant", "content": "house"},
]


def documents(folder, kind: str, *records):
    """What a corpus of one file makes of them."""
    path = folder / f"c.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(list(records)), path)
    else:
        table = pa.Table.from_pylist(list(records))
        path.mkdir()
        with pa.ipc.new_stream(path / "data.arrow", table.schema) as stream:
            stream.write_table(table)
        (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (corpus,) = open_corpora([f"{kind}:{path}"])
    return list(corpus.documents())


@pytest.fixture(params=["jsonl", "parquet", "dataset"])
def read(request, tmp_path):
    return lambda *records: documents(tmp_path, request.param, *records)


def test_a_prompt_and_its_completion(read):
    (found,) = read({"prompt": "2 + 2 =", "completion": " 4", "id": 7})
    assert (found.prompt, found.completion, found.text) == ("2 + 2 =", " 4", None)


def test_sharegpt(read):
    (found,) = read(SHARED)
    assert found.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
    )


def test_alpaca(read):
    found = read(ALPACA, ALPACA | {"input": ""}, ALPACA | {"input": None})
    assert found[0].messages == tuple(TURNS)
    for without in found[1:]:
        assert without.messages == ({"role": "user", "content": "Translate."}, TURNS[1])


def test_a_system_prompt_beside_the_turns(read):
    first = {"role": "system", "content": "Be brief."}
    (alpaca,) = read(ALPACA | {"system": "Be brief."})
    assert alpaca.messages == (first, *TURNS)


def test_a_record_with_a_text_is_a_text_whatever_else_it_holds(read):
    """Alpaca's own Parquet file holds the rendered text beside its parts, and was always read as text."""
    (found,) = read(ALPACA | {"text": "Translate: Haus -> house"})
    assert (found.text, found.messages) == ("Translate: Haus -> house", None)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "a"}, 'expected "text"; "messages"; .*; or "instruction" and "output", found'),
        ({"prompt": "a", "completion": 1}, '"completion" is int, expected a string'),
        (
            {"prompt": [{"role": "user", "content": "a"}], "completion": "b"},
            '"prompt" is a list, expected a string; give a conversation as one list of "messages"',
        ),
        ({"conversations": [{"from": "gpt"}]}, 'turn 0 has no strings "from" and "value"'),
        (
            {"conversations": [{"from": "alien", "value": "x"}]},
            "turn 0 is from 'alien', expected one of human, user, gpt,",
        ),
        (ALPACA | {"input": 3}, '"input" is int, expected a string'),
        (ALPACA | SHARED, 'could be "conversations" or "instruction" and "output"; expected'),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_bad_record_is_refused_by_file_and_line(tmp_path, kind, record, said):
    of_columns = said.endswith((", found", "; expected"))
    number = "" if of_columns else ":0"
    where = "jsonl:1" if kind == "jsonl" else f"parquet{number}"
    with pytest.raises(CorpusError, match=f"{re.escape(str(tmp_path))}/c.{where}: .*{said}"):
        documents(tmp_path, kind, record)


def test_conversations_are_no_list(tmp_path):
    with pytest.raises(CorpusError, match=r"c\.jsonl:2: \"conversations\" is str, expected a list"):
        documents(tmp_path, "jsonl", SHARED, {"conversations": "hi"})


@pytest.mark.parametrize("records", [[SHARED], [{"talk": SHARED["conversations"]}]])
def test_a_named_column_of_either_kind_of_conversation(tmp_path, records):
    path = tmp_path / "c.parquet"
    pq.write_table(pa.Table.from_pylist(records), path)
    (corpus,) = open_corpora([f"parquet:{path}#{next(iter(records[0]))}"])
    (found,) = corpus.documents()
    assert [m["role"] for m in found.messages] == ["system", "user", "assistant"]


# -- what is learnt -------------------------------------------------------------------------------


def learnt(folder, tokenizer, record) -> tuple[list[int], list[int]]:
    """The row's ids, and the labels among them."""
    (folder / "c.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    corpora = open_corpora([f"jsonl:{folder}/c.jsonl"])
    ((_, row),) = pack(corpora, tokenizer, seq_len=64, vocab_size=50_000)
    return row.input_ids.tolist(), row.labels.tolist()


def test_only_the_completion_and_the_end_are_learnt(tmp_path):
    ids, labels = learnt(tmp_path, ByteTokenizer(), {"prompt": "2+2=", "completion": "4"})
    assert ids == [*b"2+2=4", EOS]
    assert labels == [*b"4", EOS]


@pytest.mark.parametrize("eos", ["<|endoftext|>", None])
def test_the_teacher_s_tokenizer_learns_the_completion(tmp_path, eos):
    """A token that holds some of both is learnt: else a part of the completion would be taught by nobody."""
    pytest.importorskip("transformers")
    from softlabels.teachers.tokenizer import HFTokenizer
    from tests.teachers.test_tokenizer import make

    fast = make(eos=eos)
    tokenizer = HFTokenizer(fast)
    record = {"prompt": "It is a tru", "completion": "th universally é acknowledged."}
    ids, labels = learnt(tmp_path, tokenizer, record)
    whole = tokenizer.encode(record["prompt"] + record["completion"])
    assert ids == whole.input_ids.tolist()
    decode = fast.backend_tokenizer.decode
    said = decode(labels, skip_special_tokens=False)
    end = eos or ""
    assert said.endswith(record["completion"] + end)
    over = said.removesuffix(record["completion"] + end)
    assert record["prompt"].endswith(over)
    assert len(over) < len(decode(ids[:1] if len(labels) == 1 else [labels[0]]))
    np.testing.assert_array_equal(ids[-len(labels) :], labels)


def test_an_empty_completion_is_an_empty_document(tmp_path):
    from softlabels.corpora import documents_of

    (tmp_path / "c.jsonl").write_text('{"prompt": "a", "completion": " "}\n', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"c\.jsonl:1: the text is empty"):
        list(documents_of(open_corpora([f"jsonl:{tmp_path}/c.jsonl"]), skip_empty=False))
