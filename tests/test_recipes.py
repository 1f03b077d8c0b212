"""What docs/recipes.md says of conversations: answers are learnt, what tools returned is not."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.store.reader import open_store
from softlabels.teachers import TeacherOptions, open_teacher
from tests.teachers.tiny import write_model

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("recipes"))
    return open_teacher(f"hf:{folder}", TeacherOptions(dtype="float32"))


def example() -> dict:
    """The page's own conversation."""
    (line,) = [line for line in PAGE.splitlines() if line.startswith('{"messages"')]
    return json.loads(line)


def built(teacher, corpus: str, out: Path):
    config = BuildConfig(teacher="hf:x", corpus=(corpus,), estimator="topk", k=4, seq_len=512)
    build(config, out, teacher=teacher)
    (stored,) = open_store(out)
    return stored


def test_responses_get_logits_and_tool_output_is_masked(teacher, tmp_path):
    messages = example()["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "assistant"]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    stored = built(teacher, f"jsonl:{tmp_path}/chats.jsonl", tmp_path / "store")
    decode = teacher.tokenizer._tokenizer.decode
    learnt = decode(stored.row.labels.tolist())
    for message in messages:
        assert (message["content"] in learnt) == (message["role"] == "assistant"), message
    seen = decode(stored.row.input_ids.tolist())
    assert all(m["content"] in seen for m in messages), "it is masked, not cut out"
    assert len(stored.targets) == len(stored.row.labels)


def test_the_same_conversation_from_parquet_and_as_ids_is_the_same_row(teacher, tmp_path):
    messages = example()["messages"]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    pq.write_table(pa.table({"messages": [messages]}), tmp_path / "chats.parquet")
    tokens = teacher.tokenizer.encode_chat(messages, where="page")
    ids = {"input_ids": [tokens.input_ids.tolist()], "loss_mask": [tokens.learn.tolist()]}
    pq.write_table(pa.table(ids), tmp_path / "ids.parquet")
    rows = [
        built(teacher, spec, tmp_path / f"s{i}").row.digest()
        for i, spec in enumerate(
            [
                f"jsonl:{tmp_path}/chats.jsonl",
                f"parquet:{tmp_path}/chats.parquet",
                f"ids:{tmp_path}/ids.parquet",
            ]
        )
    ]
    assert len(set(rows)) == 1
