"""Rows: the one definition of which position predicts which token, and the digest that files promise."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from softlabels.core.rows import BEGINNING, LABEL_SHIFT, Cursor, Row


def row_of(ids, segments=None, mask=None):
    segments = [len(ids)] if segments is None else segments
    if mask is None:
        mask = np.ones(len(ids), np.bool_)
        mask[np.cumsum(segments) - 1] = False
    return Row(
        input_ids=np.array(ids, np.int32),
        segment_lengths=np.array(segments, np.int32),
        documents=np.arange(len(segments), dtype=np.int64),
        label_mask=np.array(mask, np.bool_),
    )


def test_position_t_predicts_token_t_plus_one():
    assert LABEL_SHIFT == 1
    row = row_of([10, 11, 12, 13, 14], mask=[True, False, True, True, False])
    assert row.positions.tolist() == [0, 2, 3]
    assert row.labels.tolist() == [11, 13, 14]
    assert row.labels.dtype == np.int32


def test_no_prediction_crosses_from_one_document_into_the_next():
    row = row_of([1, 2, 3, 4, 5, 6], segments=[2, 1, 3])
    assert row.positions.tolist() == [0, 3, 4]
    assert row.labels.tolist() == [2, 5, 6]
    assert row.position_ids.tolist() == [0, 1, 0, 0, 1, 2]
    assert row.position_ids.dtype == np.int32


def test_a_row_in_which_nothing_is_learnt():
    row = row_of([1, 2, 3], mask=[False] * 3)
    assert row.positions.shape == row.labels.shape == (0,)


def test_the_digest_is_a_promise_of_the_format():
    """These values are in files that exist: they can never change."""
    row = row_of([1, 2, 3, 70000, 5], segments=[3, 2])
    assert row.digest().hex() == "a49c55a85c9bee5460987295f39f8718"
    assert row_of([0, 0]).digest().hex() == "5437f768efa2ff0b8c944847d835e305"


def test_the_digest_is_what_the_format_says():
    """Header, then each array's length as 8 bytes and its little-endian content; 16 bytes of sha256."""
    row = row_of([1, 2, 3, 70000, 5], segments=[3, 2])
    text = b"softlabels causal-lm row 1\n"
    text += (5).to_bytes(8, "little") + b"".join(
        i.to_bytes(4, "little") for i in (1, 2, 3, 70000, 5)
    )
    text += (2).to_bytes(8, "little") + b"".join(i.to_bytes(4, "little") for i in (3, 2))
    text += (5).to_bytes(8, "little") + bytes([1, 1, 0, 1, 0])
    assert row.digest() == hashlib.sha256(text).digest()[:16]


def test_the_digest_does_not_depend_on_how_arrays_lie_in_memory():
    row = row_of([1, 2, 3, 4], segments=[2, 2])
    other = replace(
        row,
        input_ids=np.array([1, 9, 2, 9, 3, 9, 4, 9], ">i4")[::2],
        segment_lengths=np.array([2, 2], np.int64),
        label_mask=np.array([1, 0, 1, 0], np.uint8),
    )
    assert other.digest() == row.digest()
    assert replace(row, documents=np.array([7, 8])).digest() == row.digest()


@pytest.mark.parametrize(
    "other",
    [
        row_of([1, 2, 3, 5], segments=[2, 2]),
        row_of([2, 1, 3, 4], segments=[2, 2]),
        row_of([1, 2, 3, 4], segments=[2, 2], mask=[True, False, False, False]),
        row_of([1, 2, 3, 4], segments=[1, 3], mask=[True, False, True, False]),
        row_of([1, 2, 3, 4], segments=[4], mask=[True, False, True, False]),
        row_of([1, 2, 3, 4, 0], segments=[2, 3], mask=[True, False, True, False, False]),
        row_of([1, 2, 3], segments=[2, 1], mask=[True, False, False]),
    ],
)
def test_the_digest_depends_on_ids_segments_and_mask(other):
    assert other.digest() != row_of([1, 2, 3, 4], segments=[2, 2]).digest()


def test_pad_rows_lays_rows_side_by_side():
    rows = [row_of([11, 12, 13]), row_of([21]), row_of([31, 32, 33, 34], mask=[0, 1, 1, 0])]
    padded = Row.pad(rows)
    assert padded.inputs["input_ids"].tolist() == [[11, 12, 13, 0], [21, 0, 0, 0], [31, 32, 33, 34]]
    assert "position_ids" not in padded.inputs
    assert padded.flat_positions.tolist() == [0, 1, 9, 10]
    assert padded.labels.tolist() == [12, 13, 33, 34]
    assert padded.width == 4
    for array in (padded.inputs["input_ids"], padded.flat_positions, padded.labels):
        assert array.dtype == np.int64


def test_pad_rows_restarts_position_ids_when_any_row_is_packed():
    rows = [row_of([1, 2, 3, 4, 5], segments=[2, 3]), row_of([6, 7]), row_of([8, 9], [1, 1])]
    padded = Row.pad(rows)
    assert padded.inputs["position_ids"].tolist() == [
        [0, 1, 0, 1, 2],
        [0, 1, 2, 3, 4],
        [0, 0, 1, 2, 3],
    ]
    assert padded.flat_positions.tolist() == [0, 2, 3, 5]
    assert padded.labels.tolist() == [2, 4, 5, 7]


def test_the_padded_rectangle_holds_each_rows_own_positions_and_labels():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = []
        for _ in range(rng.integers(1, 6)):
            segments = rng.integers(1, 6, rng.integers(1, 4))
            mask = rng.random(segments.sum()) < 0.6
            mask[np.cumsum(segments) - 1] = False
            rows.append(row_of(rng.integers(1, 1000, segments.sum()), segments, mask))
        padded = Row.pad(rows)
        flat, width = padded.inputs["input_ids"].ravel(), max(len(r.input_ids) for r in rows)
        assert padded.inputs["input_ids"].shape == (len(rows), width)
        np.testing.assert_array_equal(flat[padded.flat_positions + 1], padded.labels)
        starts = np.concatenate([[0], np.cumsum([r.n for r in rows])])
        for b, row in enumerate(rows):
            mine = slice(starts[b], starts[b + 1])
            np.testing.assert_array_equal(padded.flat_positions[mine] - b * width, row.positions)
            np.testing.assert_array_equal(padded.labels[mine], row.labels)
            if "position_ids" in padded.inputs:
                n = len(row.input_ids)
                np.testing.assert_array_equal(
                    padded.inputs["position_ids"][b, :n], row.position_ids
                )


def test_cursors_sort_like_places_in_a_corpus():
    assert Cursor(document=0, offset=0) == BEGINNING
    assert Cursor(0, 9) < Cursor(1, 0) < Cursor(1, 1)
