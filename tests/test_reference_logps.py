"""The page on recipes: log-probabilities of answers, as preference training wants them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from softlabels.store.reader import open_store
from tests.fakes import TinyTeacher, build_tiny

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"


def test_the_sums_are_those_of_the_teachers_own_logits(tmp_path):
    (block,) = re.findall(r"```python\n(.*?def answers.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    found: dict = {}
    exec(compile(block, "recipes.md", "exec"), found)
    pairs = [("2 + 2 =", " 4"), ("Name a colour.", " Blue, or green."), ("a", " b" * 20)]
    with (tmp_path / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for prompt, completion in pairs:
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
    teacher = TinyTeacher()
    build_tiny(tmp_path / "store", f"jsonl:{tmp_path}/pairs.jsonl", teacher=teacher, seq_len=32)
    wanted: dict[int, float] = {}
    store = open_store(tmp_path / "store")
    assert len(store) > 1  # the last answer goes over rows
    for i in range(len(store)):
        row = store.row(i).row
        logp = torch.log_softmax(teacher.dense(row).double(), 1)
        at = 0
        for document, length in zip(row.documents, row.segment_lengths, strict=True):
            for n, p in enumerate(row.positions):
                if at <= p < at + length:
                    label = int(row.input_ids[p + 1])
                    wanted[int(document)] = wanted.get(int(document), 0.0) + float(logp[n, label])
            at += length
    assert found["answers"](tmp_path / "store") == pytest.approx(wanted, rel=2e-3)
    assert sorted(wanted) == [0, 1, 2]
