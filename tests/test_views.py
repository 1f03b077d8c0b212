"""Vocabulary views against dense float64: the distribution on condition that an id of the view comes."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from softlabels.core.rows import Row
from softlabels.core.targets import SoftTargets, gaps_from_logp
from softlabels.core.views import Dropped, VocabView
from softlabels.errors import ConfigError, PairingError
from softlabels.store.reader import open_store
from tests.fakes import build_tiny, write_corpus

GRID = (0.5, 1.0, 4.0)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def logsumexp(z):
    top = z.max(axis=1, keepdims=True, initial=-1e300)
    with np.errstate(divide="ignore"):
        return (top + np.log(np.exp(z - top).sum(axis=1, keepdims=True)))[:, 0]


def largest(z, k):
    """Targets that keep the k largest of float64 logits `z [N, V]`."""
    ids = np.argsort(-z, axis=1)[:, :k]
    kept = np.take_along_axis(z, ids, 1)
    rest = np.array([np.delete(row, i) for row, i in zip(z, ids, strict=True)])
    odds = [
        logsumexp(rest / t) - logsumexp(kept / t) if k < z.shape[1] else np.full(len(z), -np.inf)
        for t in GRID
    ]
    return SoftTargets(
        ids=ids.astype(np.int32),
        gaps=(kept[:, :1] - kept).astype(np.float32),
        log_odds=np.stack(odds, 1).astype(np.float32),
        temperatures=GRID,
        vocab_size=z.shape[1],
        estimator="topk",
    )


@st.composite
def cases(draw):
    n, v = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    z = draw(hnp.arrays(np.float64, (n, v), elements=st.floats(-60, 60, width=16)))
    k = draw(st.integers(1, v))
    if draw(st.booleans()):
        return z, k, VocabView.trim(draw(st.integers(1, v)), v)
    new = draw(st.permutations(range(v)))
    gone = draw(st.sets(st.integers(0, v - 1), max_size=v - 1))
    table = np.array([-1 if i in gone else new[i] for i in range(v)])
    size = draw(st.none() | st.integers(v, v + 3))
    return z, k, VocabView.mapping(table, v, size=size)


@given(cases())
def test_kept_and_tail_equal_the_dense_conditional_ones(case):
    z, k, view = case
    t = largest(z, k)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen, dropped = view.targets(t)
    seen.validate()
    assert seen.vocab_size == view.size
    new = view.ids(np.arange(t.vocab_size))
    for i, temperature in enumerate(GRID):
        p = softmax(z / temperature)
        lost = np.array([p[n, [j for j in t.ids[n] if new[j] < 0]].sum() for n in range(t.n)])
        for n in range(t.n):
            stays = [j for j in t.ids[n] if new[j] >= 0]
            assert seen.soft[n] == bool(stays)
            if not stays:
                continue
            # Known: the mass of what stays, and the tail, of which none is taken to be dropped.
            tail = np.delete(p[n], t.ids[n]).sum()
            total = p[n, stays].sum() + tail
            own = seen.kept[n]
            found = dict(zip(seen.ids[n, own], seen.log_probs(temperature)[n, own], strict=True))
            assert len(found) == len(stays)
            log_p = z[n] / temperature - logsumexp(z[n : n + 1] / temperature)
            for j in stays:
                expected = log_p[j] - np.log(total)
                assert found[new[j]] == pytest.approx(expected, rel=1e-5, abs=3e-5)
            assert seen.tail(temperature)[n] == pytest.approx(tail / total, rel=1e-3, abs=1e-36)
            if k == t.vocab_size:
                assert seen.log_odds[n, i] == -np.inf
        assert dropped.mass[i] == pytest.approx(lost.sum(), rel=1e-4, abs=1e-30)
        assert dropped.largest[i] == pytest.approx(lost.max(), rel=1e-4, abs=1e-30)
    assert dropped.emptied == (~seen.soft).sum()
    assert dropped.positions == t.n


def test_what_is_left_of_a_tiny_mass_keeps_its_digits():
    """All but 1e-30 of the kept mass goes; nothing is computed as one minus the rest."""
    t = SoftTargets(
        ids=np.array([[9, 2, 3]], np.int32),
        gaps=np.array([[0, 70, 71]], np.float32),
        log_odds=np.array([[-75.0]], np.float32),
        temperatures=(1.0,),
        vocab_size=10,
        estimator="topk",
    )
    seen, dropped = VocabView.trim(9, 10).targets(t)
    assert seen.ids.tolist() == [[2, 3]]
    assert seen.gaps.tolist() == [[0, 1]]
    kept, tail = np.exp(-70.0) + np.exp(-71.0), np.exp(-75.0)
    assert seen.tail(1.0)[0] == pytest.approx(tail / (kept + tail), rel=1e-5)
    assert seen.probs(1.0)[0].sum() == pytest.approx(kept / (kept + tail), rel=1e-5)
    assert dropped.mean[0] == pytest.approx(1.0)


def test_a_view_that_drops_nothing_changes_no_number():
    t = largest(np.random.default_rng(0).normal(0, 4, (20, 30)), 7)
    seen, dropped = VocabView.trim(30, 30).targets(t)
    for name in ("ids", "gaps", "log_odds"):
        np.testing.assert_array_equal(getattr(seen, name), getattr(t, name))
    assert not dropped.mass.any()
    there = VocabView.mapping(np.random.default_rng(1).permutation(30), 30)
    assert there.table is not None
    back = VocabView.mapping(np.argsort(there.table), 30)
    again, _ = back.targets(there.targets(t)[0])
    for name in ("ids", "gaps", "log_odds"):
        np.testing.assert_array_equal(getattr(again, name), getattr(t, name))


def test_padding_and_hard_label_only_positions_stay_what_they_are():
    inf = np.inf
    t = SoftTargets(
        ids=np.array([[8, 1, 8], [0, 0, 0], [2, 9, 8], [9, 9, 9]], np.int32),
        gaps=np.array([[0, 1, inf], [inf, inf, inf], [1, 0, 2], [0, inf, inf]], np.float32),
        log_odds=np.array([[-1], [inf], [-2], [-3]], np.float32),
        temperatures=(2.0,),
        vocab_size=10,
        estimator="topp",
    )
    seen, dropped = VocabView.trim(8, 10).targets(t)
    seen.validate()
    assert seen.soft.tolist() == [True, False, True, False]
    assert seen.ids.tolist() == [[1], [0], [2], [0]]
    assert (dropped.positions, dropped.emptied) == (3, 1)
    ragged, _ = VocabView.trim(9, 10).targets(replace(t, ids=t.ids + (t.ids == 1) * 8))
    ragged.validate()
    assert ragged.ids.tolist() == [[8, 8], [0, 0], [2, 8], [0, 0]]  # padding repeats the first
    wide, _ = VocabView.trim(9, 10).targets(t)
    assert wide.ids.tolist() == [[8, 1], [0, 0], [2, 8], [0, 0]]
    assert wide.gaps.tolist() == [[0, 1], [inf, inf], [0, 1], [inf, inf]]
    empty, nothing = VocabView.trim(8, 10).targets(t[:0])
    assert (empty.n, nothing.positions, nothing.mean.tolist()) == (0, 0, [0.0])


def test_weights_of_a_sample_are_renormalised_and_that_is_said():
    weights = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    t = SoftTargets(
        ids=np.array([[7, 1, 4], [1, 2, 3]], np.int32),
        gaps=gaps_from_logp(np.log(weights).astype(np.float32)),
        log_odds=np.full((2, 1), -np.inf, np.float32),
        temperatures=(4.0,),
        vocab_size=9,
        estimator="sampled",
    )
    seen, dropped = VocabView.trim(6, 9).targets(t)
    np.testing.assert_allclose(seen.probs(4.0)[0], [0.6, 0.4, 0], rtol=1e-6)
    np.testing.assert_allclose(seen.probs(4.0)[1], weights[1], rtol=1e-6)
    assert seen.tail(4.0).tolist() == [0, 0]
    assert dropped.mean[0] == pytest.approx(0.25)
    assert dropped.largest[0] == pytest.approx(0.5)
    assert "were renormalised" in str(dropped)
    assert str(dropped).startswith(
        "dropped 0.25 of the mass at T=4 (at most 0.5), mean over 2 soft"
    )
    _, none = VocabView.trim(8, 9).targets(t)
    assert "renormalised" not in str(none)


@pytest.mark.parametrize("v", [2**17 + 5, 2**20, 2**31 - 1, 2**31])
def test_large_ids(v):
    ids = np.array([[v - 1, 2**17 + 1, 3], [0, v - 2, v - 3]], np.int32)
    t = SoftTargets(
        ids=ids,
        gaps=np.array([[0, 1, 2], [0, 1, 2]], np.float32),
        log_odds=np.zeros((2, 3), np.float32),
        temperatures=GRID,
        vocab_size=v,
        estimator="topk",
    )
    t.validate()
    seen, _ = VocabView.trim(v - 2, v).targets(t)
    seen.validate()
    assert seen.ids.tolist() == [[2**17 + 1, 3], [0, v - 3]]
    whole, _ = VocabView.trim(v, v).targets(t)
    np.testing.assert_array_equal(whole.ids, ids)
    if v <= 2**20:
        back = VocabView.mapping(np.arange(v)[::-1], v, size=2**31)
        assert back.targets(t)[0].ids.tolist() == (v - 1 - ids).tolist()
        assert back.size == 2**31


def test_totals_are_over_all_parts():
    def part(positions, mass, largest, emptied):
        return Dropped(
            temperatures=(1.0,),
            positions=positions,
            emptied=emptied,
            mass=np.array([mass]),
            largest=np.array([largest]),
            renormalised=False,
        )

    total = Dropped.total([part(3, 0.3, 0.2, 0), part(1, 0.5, 0.5, 1)])
    assert total is not None
    assert total.to_dict() == {
        "temperatures": [1.0],
        "positions": 4,
        "emptied": 1,
        "mean": [0.2],
        "largest": [0.5],
        "renormalised": False,
    }
    assert "1 kept no id and became hard-label only" in str(total)
    assert Dropped.total([]) is None


# -- naming one -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.json", "t.npy"])
def test_a_table_from_a_file(tmp_path, name):
    table = [2, -1, 0, 1]
    if name.endswith("npy"):
        np.save(tmp_path / name, np.array(table, np.int16))
    else:
        (tmp_path / name).write_text(json.dumps(table))
    view = VocabView.parse(f"map:{tmp_path / name}", 4)
    assert (view.spec, view.size, view.source_size) == (f"map:{name}", 3, 4)
    assert view.ids(np.array([[3, 1], [0, 2]])).tolist() == [[1, -1], [2, 0]]
    wide = VocabView.parse(f"map:{tmp_path / name}?size=7", 4)
    assert wide.size == 7
    assert wide.table_sha256 == view.table_sha256
    assert VocabView.parse("trim:3", 4).table_sha256 is None


@pytest.mark.parametrize("folder", ["why?", "a?size=3", "a?size=3/b?c"])
@pytest.mark.parametrize("size", ["", "?size=7"])
def test_a_folder_may_hold_a_question_mark(tmp_path, monkeypatch, folder, size):
    (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / folder)
    Path("t.json").write_text("[2, -1, 0, 1]")
    spec = VocabView.anywhere(f"map:t.json{size}")
    assert spec == f"map:{tmp_path / folder}/t.json{size}"
    monkeypatch.chdir("/")
    view = VocabView.parse(spec, 4)
    assert (view.spec, view.size) == (f"map:t.json{size}", 7 if size else 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trim", "NAME:ARGUMENT, e.g. trim:32000"),
        ("trim:0", "expected 1 to 4"),
        ("trim:5", "has 4 ids; expected 1 to 4"),
        ("trim:-1", "expected trim:N"),
        ("trim:x", "expected trim:N"),
        ("cut:3", "expected trim:N or map:FILE"),
        ("map:{folder}/none.json", "cannot be read"),
        ("map:{folder}/good.json?size=2", "size=2, but the largest new id is 2; expected 3"),
        ("map:{folder}/good.json?width=2", r"expected map:FILE or map:FILE\?size=M"),
        ("map:{folder}/good.json?size=", r"expected map:FILE or map:FILE\?size=M"),
        ("map:[1, 0]", r"shape \[2\], expected one entry for each of the store's 4 ids"),
        ("map:[[1], [0]]", "shape"),
        ("map:[[1], 0]", "cannot be read"),
        ("map:[0, 1, 2, 2]", "ids 2 and 3 both become 2"),
        ("map:[0, 1, 2, -2]", "id 3 becomes -2"),
        ("map:[0, 1, 2, 2147483648]", "id 3 becomes 2147483648; expected -1"),
        ("map:[0, 1, 2, 3.0]", "holds float64, expected whole numbers"),
        ("map:[true, false, true, true]", "holds bool"),
        ('map:{{"a": 1}}', "shape"),
        ("map:[-1, -1, -1, -1]", "drops every id"),
        ("map:nonsense", "cannot be read as a JSON list"),
    ],
)
def test_what_is_no_view_is_refused(tmp_path, text, says):
    (tmp_path / "good.json").write_text("[0, 1, -1, 2]")
    text = text.format(folder=tmp_path)
    if text.startswith("map:") and str(tmp_path) not in text:
        (tmp_path / "bad.json").write_text(text.removeprefix("map:"))
        text = f"map:{tmp_path / 'bad.json'}"
    with pytest.raises(ConfigError, match=f"^--vocab .*{says}"):
        VocabView.parse(text, 4)


def test_an_input_id_that_is_dropped_is_an_error_that_names_it():
    row = Row(
        input_ids=np.array([1, 5, 2], np.int32),
        segment_lengths=np.array([3], np.int32),
        documents=np.array([0]),
        label_mask=np.array([True, True, False]),
    )
    seen = VocabView.mapping(np.array([-1, 4, 0, -1, -1, 3]), 6).row(row, where="s: row 7")
    assert seen.input_ids.tolist() == [4, 3, 0]
    assert seen.labels.tolist() == [3, 0]
    assert seen.input_ids.dtype == np.int32
    with pytest.raises(PairingError, match=r"^s: row 7, token 1: id 5 is not in .* trim:5"):
        VocabView.trim(5, 6).row(row, where="s: row 7")


# -- a store through one --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Of a teacher of 300 ids, whose tokenizer has 257."""
    folder = tmp_path_factory.mktemp("views")
    build_tiny(
        folder / "store",
        write_corpus(folder / "corpus"),
        temperature=(1.0, 2.0),
        k=12,
        values="float32",
    )
    return folder / "store"


def test_a_store_is_read_in_its_view(store):
    plain, seen = open_store(store), open_store(store, vocab="trim:257")
    assert (plain.vocab_size, seen.vocab_size) == (300, 257)
    assert seen.digest == plain.digest
    assert seen.dropped is None
    masses = []
    for a, b in zip(plain, seen, strict=True):
        np.testing.assert_array_equal(a.row.input_ids, b.row.input_ids)
        assert b.targets.vocab_size == 257
        assert (b.targets.ids < 257).all()
        for t in (1.0, 2.0):
            gone = np.where(a.targets.ids >= 257, a.targets.probs(t).astype(float), 0).sum(1)
            left = a.targets.probs(t).astype(float).sum(1) - gone
            np.testing.assert_allclose(
                b.targets.tail(t)[b.targets.soft],
                (a.targets.tail(t) / (a.targets.tail(t) + left))[b.targets.soft],
                rtol=1e-4,
            )
            if t == 2.0:
                masses.append(gone)
    dropped = seen.dropped
    assert dropped is not None
    gone = np.concatenate(masses)
    assert gone.max() > 0.1
    assert dropped.mean[1] == pytest.approx(gone.mean(), rel=1e-5)
    assert dropped.largest[1] == pytest.approx(gone.max(), rel=1e-5)
    before = dropped.to_dict()
    list(seen)  # a second pass over the shards counts nothing twice
    assert seen.dropped is not None
    assert seen.dropped.to_dict() == before


def test_a_store_renumbered_feeds_and_asks_the_new_ids(store, tmp_path):
    table = np.where(np.arange(300) < 257, 299 - np.arange(300), -1)
    np.save(tmp_path / "t.npy", table)
    seen = open_store(store, vocab=f"map:{tmp_path / 't.npy'}?size=400")
    trimmed = open_store(store, vocab="trim:257")
    assert seen.vocab_size == 400
    for a, b in zip(trimmed, seen, strict=True):
        np.testing.assert_array_equal(299 - a.row.input_ids, b.row.input_ids)
        np.testing.assert_array_equal(299 - a.row.labels, b.inputs["labels"])
        kept = a.targets.kept
        np.testing.assert_array_equal(299 - a.targets.ids[kept], b.targets.ids[kept])
        np.testing.assert_array_equal(a.targets.log_odds, b.targets.log_odds)


def test_a_store_whose_text_needs_a_dropped_id_is_refused_with_the_row(store):
    with pytest.raises(
        PairingError, match=rf"^{store}: row 0, token \d+: id 1\d\d is not in .*trim:100"
    ):
        open_store(store, vocab="trim:100").row(0)
    with pytest.raises(ConfigError, match="expected 1 to 300"):
        open_store(store, vocab="trim:301")


def test_targets_are_left_alone_by_a_view(store):
    t = open_store(store).row(0).targets
    before = replace(t, ids=t.ids.copy(), gaps=t.gaps.copy(), log_odds=t.log_odds.copy())
    VocabView.trim(257, 300).targets(t)
    for name in ("ids", "gaps", "log_odds"):
        np.testing.assert_array_equal(getattr(t, name), getattr(before, name))
