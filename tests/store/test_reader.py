"""Opening and reading: the rows that were taught, with every byte checked before it is used."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import softlabels
from softlabels.errors import ConfigError, FormatError, IntegrityError
from softlabels.format.manifest import load_manifest
from softlabels.store import reader
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.fakes import TinyTeacher, build_tiny
from tests.store.made_up import reseal


def shard_paths(store):
    return [store / s.name for s in load_manifest(store).shards]


# -- a whole store --------------------------------------------------------------------------------


def test_open_len_repr_and_digest(built):
    store = open_store(built)
    assert len(store) == store.manifest.rows == 8
    assert repr(store) == f"Store({str(built)!r}, rows=8)"
    assert store.digest == store.manifest.content_digest
    assert open_store(str(built)).digest == store.digest
    assert softlabels.open_store is open_store


def test_rows_are_the_teachers(built):
    """From the teacher's dense logits to what is read: probabilities, tail and inputs."""
    teacher = TinyTeacher()
    store = open_store(built)
    for i in range(len(store)):
        stored = store.row(i)
        t, row = stored.targets, stored.row
        assert stored.index == i
        z = teacher.dense(row).double().numpy()
        assert t.ids.shape == (len(row.positions), 5) == t.gaps.shape
        np.testing.assert_array_equal(np.sort(t.ids, 1), np.sort(np.argsort(-z, 1)[:, :5], 1))
        for temperature in (1.0, 2.0):
            p = np.exp(z / temperature)
            p /= p.sum(axis=1, keepdims=True)
            kept = np.take_along_axis(p, t.ids.astype(np.int64), 1)
            np.testing.assert_allclose(t.probs(temperature), kept, rtol=2e-2)
            np.testing.assert_allclose(t.tail(temperature), 1 - kept.sum(1), rtol=1e-2, atol=1e-6)
        inputs = stored.inputs
        assert set(inputs) == {"input_ids", "position_ids", "label_mask", "labels"}
        np.testing.assert_array_equal(inputs["labels"], row.input_ids[1:][row.label_mask[:-1]])
        np.testing.assert_array_equal(inputs["position_ids"], row.position_ids)


def test_iteration_gives_every_row_in_order(built):
    store = open_store(built)
    assert [r.index for r in store] == list(range(8))
    tokens = sum(len(r.row.input_ids) for r in store)
    positions = sum(r.targets.n for r in store)
    assert tokens == store.manifest.identity.corpus.tokens
    assert positions == store.manifest.identity.corpus.positions
    for a, b in zip(store, reversed([store.row(i) for i in range(7, -1, -1)]), strict=True):
        np.testing.assert_array_equal(a.targets.gaps, b.targets.gaps)


def test_locate(built):
    store = open_store(built)
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    assert [store.locate(i) for i in range(8)] == places
    assert store.locate(np.int64(7)) == (2, 1)


@pytest.mark.parametrize("index", [-1, 8, 10**12])
def test_a_row_that_does_not_exist(built, index):
    with pytest.raises(IndexError, match=rf"row {index} is outside 0\.\.7"):
        open_store(built).row(index)


def test_a_store_can_be_moved(store, tmp_path):
    moved = store.rename(tmp_path / "elsewhere")
    assert len(list(open_store(moved))) == 8


def test_a_sampled_store(tmp_path, corpus):
    build_tiny(tmp_path / "s", corpus, estimator="sampled", limit_rows=2, temperature=(2.0,))
    for stored in open_store(tmp_path / "s"):
        t = stored.targets
        assert (t.estimator, t.temperatures) == ("sampled", (2.0,))
        assert (t.tail(2.0) == 0).all()
        np.testing.assert_allclose(t.probs(2.0).sum(1), 1, rtol=1e-5)


# -- the cache ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cached", "visits", "decoded"),
    [
        (1, [0, 1, 2, 0], [0]),
        (1, [0, 3, 0, 3], [0, 1, 0, 1]),
        (2, [0, 3, 0, 3, 1, 4], [0, 1]),
        (2, [0, 3, 0, 6, 0, 3], [0, 1, 2, 1]),  # the one used longest ago goes
        (3, [0, 3, 6, 0, 3, 6], [0, 1, 2]),
    ],
)
def test_the_last_used_shards_stay_decoded(built, monkeypatch, cached, visits, decoded):
    seen = []
    decode = reader.decode_shard

    def spy(data, reading, **options):
        seen.append(reading.start_row // 3)
        return decode(data, reading, **options)

    monkeypatch.setattr(reader, "decode_shard", spy)
    store = open_store(built, cached_shards=cached)
    assert seen == []  # opening decodes nothing
    for row in visits:
        store.row(row)
    assert seen == decoded


@pytest.mark.parametrize("cached", [1, 2])
def test_shards_that_leave_the_cache_leave_memory(built, cached):
    store = open_store(built, cached_shards=cached)
    shards = [weakref.ref(store.shard(i)) for i in (0, 1, 2, 0, 1, 2)]
    gc.collect()
    assert len({id(s()) for s in shards if s() is not None}) == cached


# -- a broken store -------------------------------------------------------------------------------


def test_a_missing_shard_is_refused_at_once(store):
    path = shard_paths(store)[1]
    path.unlink()
    with pytest.raises(IntegrityError, match="missing; copy it again") as e:
        open_store(store)
    assert str(e.value).startswith(f"{path}: ")


def test_missing_data(store):
    for path in shard_paths(store):
        path.unlink()
    (store / "data").rmdir()
    with pytest.raises(IntegrityError, match="missing"):
        open_store(store)
    (store / "data").write_text("not a folder")
    with pytest.raises(IntegrityError, match="missing"):
        open_store(store)


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: b""])
def test_a_torn_shard_is_refused_at_once(store, change):
    path = shard_paths(store)[2]
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    with pytest.raises(IntegrityError, match="torn; copy it again") as e:
        open_store(store)
    assert str(e.value).startswith(f"{path}: {len(change(whole))} bytes, ")
    assert str(len(whole)) in str(e.value)


def test_a_shard_torn_after_opening_is_refused_when_read(store):
    opened = open_store(store)
    path = shard_paths(store)[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="torn or altered") as e:
        opened.row(0)
    assert str(e.value).startswith(f"{path}: ")
    assert opened.row(3).index == 3
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        opened.row(0)


def test_a_flipped_bit_is_refused_when_read(store):
    path = shard_paths(store)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    opened = open_store(store)
    assert opened.row(3).index == 3
    with pytest.raises(IntegrityError, match="altered; copy it again") as e:
        opened.row(0)
    assert str(e.value).startswith(f"{path}: sha256 is ")


def test_a_swapped_pair_of_shards_is_refused(store):
    one, two, _ = shard_paths(store)
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    two.write_bytes(a)
    with pytest.raises(IntegrityError, match=r"train-0000[01]-of"):
        open_store(store).row(0)


def test_a_swapped_pair_is_refused_even_by_a_manifest_that_was_swapped_too(store):
    """Everything agrees with its record but the rows: they say themselves where they belong."""
    one, two, _ = shard_paths(store)
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    two.write_bytes(a)
    shards = load_manifest(store).shards
    swap = {
        f"shards__{i}__{field}": getattr(shards[1 - i], field)
        for i in (0, 1)
        for field in ("sha256", "bytes", "positions")
    }
    reseal(store / "manifest.json", **swap)
    with pytest.raises(IntegrityError, match="its rows are not 0 to 2") as e:
        open_store(store).row(0)
    assert str(e.value).startswith(f"{one}: ")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shards__2__rows": 3, "identity__corpus__rows": 9}, "holds 2 rows, expected 3"),
        ({"shards__2__positions": 1}, "declares 126 entries, at most 1 fit the manifest"),
        ({"shards__2__positions": 127}, r"holds 2 rows and \d+ positions, the manifest says"),
    ],
)
def test_a_manifest_that_counts_wrongly_is_refused_when_read(store, changes, says):
    reseal(store / "manifest.json", **changes)
    with pytest.raises(IntegrityError, match=says):
        open_store(store).row(6)


def test_a_manifest_of_another_grid_is_refused_when_read(store):
    reseal(store / "manifest.json", identity__targets__temperatures=[1.0, 3.0])
    with pytest.raises(IntegrityError, match="no column 'log_odds_T3'"):
        open_store(store).row(0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoding__profile", "squeezed"),
        ("encoding__container", "tar"),
        ("encoding__values", "float8"),
        ("domain", "speech-recognition"),
        ("label_shift", 0),
        ("targets__estimator", "typical"),
    ],
)
def test_what_this_version_would_misread_is_refused(store, field, value):
    reseal(store / "manifest.json", **{f"identity__{field}": value})
    with pytest.raises(
        FormatError, match=rf"{value}.* not known to this version .*upgrade softlabels"
    ):
        open_store(store)
    with pytest.raises(FormatError, match="not known to this version"):
        verify_store(store)


@pytest.mark.parametrize("url", ["ftp://host/store", "hf://owner/store", "s3://"])
def test_addresses_that_this_version_cannot_open(url):
    with pytest.raises(ConfigError, match=f"^{url}: "):
        open_store(url)
