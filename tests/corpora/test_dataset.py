from __future__ import annotations

import json

import pytest

datasets = pytest.importorskip("datasets")

from softlabels.corpora import open_corpora  # noqa: E402
from softlabels.errors import CorpusError  # noqa: E402

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def documents(spec: str):
    (corpus,) = open_corpora([spec])
    return list(corpus.documents())


def save(folder, columns, **options):
    datasets.Dataset.from_dict(columns).save_to_disk(folder, **options)
    return folder


def test_what_the_library_saved_is_read_in_its_order(tmp_path, monkeypatch):
    texts = [f"text {i}" for i in range(1234)]
    shuffled = datasets.Dataset.from_dict({"text": texts, "n": range(1234)}).shuffle(seed=1)
    shuffled.save_to_disk(tmp_path / "d", num_shards=13)
    found = documents(f"dataset:{tmp_path}/d")
    assert [d.text for d in found] == shuffled["text"][:] != texts
    assert found[0].where.endswith("d/data-00000-of-00013.arrow:0")


def test_conversations_and_named_columns(tmp_path):
    save(tmp_path / "d", {"messages": [CHAT], "body": ["b"]})
    assert [d.messages for d in documents(f"dataset:{tmp_path}/d")] == [tuple(CHAT)]
    assert [d.text for d in documents(f"dataset:{tmp_path}/d#body")] == ["b"]


def test_a_class_label_is_a_number(tmp_path):
    features = datasets.Features(
        {"label": datasets.ClassLabel(names=["no", "yes"]), "text": datasets.Value("string")}
    )
    rows = {"label": ["yes", "no"], "text": ["a", "b"]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "d")
    found = documents(f"dataset:{tmp_path}/d")
    assert [(d.text, d.label) for d in found] == [("a", 1), ("b", 0)]


def test_one_split_is_chosen(tmp_path):
    split = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict({"test": split, "train": split}).save_to_disk(tmp_path / "d")
    with pytest.raises(
        CorpusError, match=r"has splits test, train; choose one, e\.g\. dataset:.*/d/test"
    ):
        documents(f"dataset:{tmp_path}/d")
    assert [d.text for d in documents(f"dataset:{tmp_path}/d/train")] == ["a"]


def test_mistakes_are_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"expected a folder that Dataset\.save_to_disk made"):
        documents(f"dataset:{tmp_path}")
    folder = save(tmp_path / "d", {"label": [1]})
    with pytest.raises(CorpusError, match=r"expected .* found \['label'\]"):
        documents(f"dataset:{folder}")
    state = json.loads((folder / "state.json").read_text())
    for change, words in (
        ({"_data_files": [{"filename": "../../etc/x"}]}, "does not lie in the folder"),
        ({"_data_files": None}, "does not name the dataset's files"),
        ({"_indices_files": [{"filename": "i"}]}, "flatten it"),
        ({"_data_files": [{"filename": "none.arrow"}]}, r"none\.arrow: cannot be read"),
    ):
        (folder / "state.json").write_text(json.dumps(state | change))
        with pytest.raises(CorpusError, match=words):
            documents(f"dataset:{folder}")
