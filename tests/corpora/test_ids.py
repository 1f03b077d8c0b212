from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softlabels.corpora import documents_of, open_corpora
from softlabels.corpora.packing import pack
from softlabels.errors import CorpusError
from softlabels.store.reader import open_store
from tests.fakes import ByteTokenizer, build_tiny


def documents(spec: str):
    (corpus,) = open_corpora([spec])
    return list(corpus.documents())


def rows(spec: str, vocab_size: int = 300):
    packed = pack(open_corpora([spec]), ByteTokenizer(), seq_len=8, vocab_size=vocab_size)
    return [row for _, row in packed]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.uint64, ">i4"])
def test_lines_are_documents_and_nothing_is_added(tmp_path, dtype):
    np.save(tmp_path / "a.npy", np.arange(12).reshape(3, 4).astype(dtype))
    np.save(tmp_path / "b.npy", np.arange(5).astype(dtype))
    found = documents(f"ids:{tmp_path}/*.npy")
    assert [d.ids.tolist() for d in found] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
        [0, 1, 2, 3, 4],
    ]
    assert all(d.ids.dtype == np.int32 and d.learn.all() for d in found)
    assert found[2].where == f"{tmp_path}/a.npy:2"


def test_a_file_is_mapped_not_loaded(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.zeros((3, 4), np.int32))
    modes = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda *a, **k: modes.append(k) or load(*a, **k))
    documents(f"ids:{tmp_path}/a.npy")
    assert modes == [{"mmap_mode": "r", "allow_pickle": False}]


def test_lists_and_masks_are_rows(tmp_path):
    ids = [[1, 2, 3], [4, 5], list(range(10, 30))]
    mask = [[0, 0, 1], [1, 1], [0] * 19 + [1]]
    table = pa.table({"input_ids": ids, "loss_mask": mask, "other": [1, 2, 3]})
    pq.write_table(table, tmp_path / "a.parquet")
    found = rows(f"ids:{tmp_path}/a.parquet")
    assert [r.input_ids.tolist() for r in found][:2] == [[1, 2, 3, 4, 5], list(range(10, 18))]
    assert found[0].label_mask.tolist() == [False, True, False, True, False]
    assert sum(len(r.positions) for r in found) == 3


def test_a_store_is_built_and_names_the_tokenizer(tmp_path):
    """The digest of a text's own ids is the text's: a store cannot tell how its rows came to be ids."""
    text = "It is a truth universally acknowledged. " * 4
    (tmp_path / "a.txt").write_text(text)
    np.save(tmp_path / "a.npy", ByteTokenizer().encode(text).input_ids)
    a = build_tiny(tmp_path / "text", f"text:{tmp_path}/a.txt")
    b = build_tiny(tmp_path / "ids", f"ids:{tmp_path}/a.npy")
    assert a.identity.corpus.fingerprint == b.identity.corpus.fingerprint
    assert b.identity.tokenizer == a.identity.tokenizer
    assert b.identity.corpus.specs == ["ids:a.npy"]
    for x, y in zip(open_store(tmp_path / "text"), open_store(tmp_path / "ids"), strict=True):
        np.testing.assert_array_equal(x.targets.ids, y.targets.ids)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([1, -2]), r"a\.npy:0: token 1 has id -2; expected 0 to"),
        (np.array([1, 2**31]), r"token 1 has id 2147483648; expected 0 to 2147483647"),
        (np.zeros((2, 3, 4), np.int64), r"holds int64 of shape \[2, 3, 4\]"),
        (np.zeros(3), r"holds float64 of shape \[3\]"),
        (np.array([{}]), r"a\.npy: cannot be read"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, array, words):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(CorpusError, match=words):
        documents(f"ids:{tmp_path}/a.npy")


def test_ids_outside_the_vocabulary_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1, 2], [3, 300]]))
    with pytest.raises(
        CorpusError, match=r"a\.npy:1: token 1 has id 300, but the teacher's vocabulary ends at 299"
    ):
        rows(f"ids:{tmp_path}/a.npy")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"ids": [[1]]}, "has columns ids; expected 'input_ids'"),
        ({"input_ids": ["a"]}, "column 'input_ids' is string; expected lists of whole numbers"),
        ({"input_ids": [1]}, "column 'input_ids' is int64; expected lists"),
        ({"input_ids": [[1.5]]}, "is list<.*double>; expected lists of whole numbers"),
        ({"input_ids": [[1], None]}, r"a\.parquet:1: holds a null"),
        ({"input_ids": [[1, None]]}, r"a\.parquet:0: holds a null"),
        ({"input_ids": [[1, 2]], "loss_mask": [[1]]}, "loss_mask has 1 values for 2 ids"),
        ({"input_ids": [[1, 2]], "loss_mask": [[1, 7]]}, "expected 0 or 1 for each"),
        ({"input_ids": [[1, 2]], "loss_mask": [[1, 0]]}, "loss_mask is 0 throughout"),
    ],
)
def test_bad_lists_are_refused(tmp_path, columns, words):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match=words):
        rows(f"ids:{tmp_path}/a.parquet")


def test_other_mistakes_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("1 2 3")
    with pytest.raises(CorpusError, match=r"a\.txt: expected \.npy or \.parquet"):
        documents(f"ids:{tmp_path}/a.txt")
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"a\.npy: cannot be read"):
        documents(f"ids:{tmp_path}/a.npy")
    np.save(tmp_path / "a.npy", np.zeros((1, 0), np.int32))
    with pytest.raises(CorpusError, match=r"a\.npy:0: the text is empty"):
        list(documents_of(open_corpora([f"ids:{tmp_path}/a.npy"]), skip_empty=False))
