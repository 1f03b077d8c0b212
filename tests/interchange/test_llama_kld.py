"""llama.cpp's base files, against bytes that are put together here by the format's own words."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from softlabels import open_store
from softlabels.errors import ConfigError, CorpusError, PairingError
from softlabels.interchange import rows_of_kind
from softlabels.interchange.exporting import export_store
from softlabels.interchange.importing import ImportConfig, import_store
from softlabels.kld.compare import compare
from softlabels.testing import check_import
from tests.fakes import Notices, TinyTeacher, build_tiny, write_corpus
from tests.kld.test_compare import Near

S, V = 8, 300


def base_of(tokens: np.ndarray, logits: np.ndarray, *, v: int = V) -> bytes:
    """`tokens [C, S]` and `logits [C, S, V]`, written number by number."""
    chunks, s = tokens.shape
    out = b"_logits_" + struct.pack("<iii", s, v, chunks)
    out += b"".join(struct.pack("<i", int(t)) for t in tokens.ravel())
    for c in range(chunks):
        for t in range(s // 2, s - 1):
            z = logits[c, t].astype(np.float64)
            least, most = max(z.min(), z.max() - 16), z.max()
            norm = np.log(np.exp(z - most).sum()) + most
            step = (most - least) / 65535
            out += struct.pack("<ff", step, least - norm)
            for value in z:
                out += struct.pack("<H", round(max(value - least, 0) / step))
            out += b"\0\0" * (v % 2)
    return out


@pytest.fixture
def base(tmp_path) -> tuple[Path, np.ndarray, np.ndarray]:
    g = np.random.default_rng(0)
    tokens = g.integers(0, 256, (3, S))
    logits = g.normal(size=(3, S, V)) * 4
    path = tmp_path / "base.kld"
    path.write_bytes(base_of(tokens, logits))
    return path, tokens, logits


def test_rows_are_what_the_file_says(base):
    path, tokens, logits = base
    rows = list(rows_of_kind("llama-kld?k=20", path))
    assert len(rows) == 3
    for c, row in enumerate(rows):
        np.testing.assert_array_equal(row.input_ids, tokens[c])
        np.testing.assert_array_equal(np.flatnonzero(row.label_mask), [4, 5, 6])
        z = logits[c, 4:7]
        logp = z - np.log(np.exp(z).sum(1, keepdims=True))
        best = np.argsort(-logp, axis=1)[:, :20]
        assert (row.ids[:, 0] == best[:, 0]).all()
        for i in range(3):
            assert set(row.ids[i]) == set(best[i])
        np.testing.assert_allclose(row.logp, np.take_along_axis(logp, row.ids, 1), atol=1.3e-4)
        own = np.maximum(logp[np.arange(3), tokens[c, 5:8]], logp.max(1) - 16)  # what it clips
        np.testing.assert_allclose(row.label_logp, own, atol=1.3e-4)


def test_it_passes_the_battery_and_odd_vocabularies_are_padded(base, tmp_path):
    check_import("llama-kld", base[0])
    g = np.random.default_rng(1)
    tokens, logits = g.integers(0, 7, (2, 6)), g.normal(size=(2, 6, 7))
    (tmp_path / "odd").write_bytes(base_of(tokens, logits, v=7))
    rows = list(rows_of_kind("llama-kld?k=7", tmp_path / "odd"))
    for c, row in enumerate(rows):
        np.testing.assert_allclose(np.exp(row.logp.astype(np.float64)).sum(1), 1, atol=1e-3)
        assert row.ids[0, 0] == logits[c, 3].argmax()


def test_a_token_at_each_beginning_is_put_there(base):
    (row, *_) = rows_of_kind("llama-kld?bos=2", base[0])
    assert row.input_ids[0] == 2
    assert row.input_ids[1] == base[1][0, 1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: b"GGUF" + d[4:], "does not begin with"),
        (lambda d: d[:-1], "torn"),
        (lambda d: d + b"\0", "torn"),
        (lambda d: d[:8] + struct.pack("<i", -4) + d[12:], "impossible"),
        (lambda d: d[:12] + struct.pack("<i", 2**30) + d[16:], "torn"),
        (
            lambda d: d[: 20 + 4 * 24] + struct.pack("<f", float("nan")) + d[24 + 4 * 24 :],
            "no number",
        ),
        (lambda d: b"", "does not begin with"),
    ],
)
def test_what_is_no_base_is_refused(base, change, said):
    path = base[0]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CorpusError, match=said):
        list(rows_of_kind("llama-kld", path))


def test_parameters_are_checked(base):
    with pytest.raises(ConfigError, match="no parameter 'b'"):
        rows_of_kind("llama-kld?b=1", base[0])
    with pytest.raises(ConfigError, match="at least 1"):
        list(rows_of_kind("llama-kld?k=0", base[0]))


def test_imported_it_is_a_reference(base, tmp_path):
    """Its KL is that of a reference of the same numbers, within what 16 bits lose."""
    config = ImportConfig(teacher="hf:x", values="float32")
    import_store("llama-kld?k=40", base[0], tmp_path / "s", config, teacher=TinyTeacher())
    found = compare(open_store(tmp_path / "s"), Near())
    rows = open_store(tmp_path / "s")
    kept = []
    for c, stored in enumerate(rows):
        z = base[2][c, 4:7]
        logp = z - np.log(np.exp(z).sum(1, keepdims=True))
        zq = Near().dense(stored.row).double().numpy()
        logq = zq - np.log(np.exp(zq).sum(1, keepdims=True))
        for i in range(3):
            ids = stored.targets.ids[i]
            p, q = np.exp(logp[i]), np.exp(logq[i])
            tail_p, tail_q = np.delete(p, ids).sum(), np.delete(q, ids).sum()
            kept.append(
                (p[ids] * (logp[i] - logq[i])[ids]).sum() + tail_p * np.log(tail_p / tail_q)
            )
    np.testing.assert_allclose(found.answered.bins, kept, rtol=1e-3, atol=1e-3)
    assert np.isfinite(found.said.label_logp).all()
    nll = rows.manifest.statistics.teacher_nll
    assert nll == pytest.approx(-found.said.label_logp.sum(), rel=1e-5)


def test_there_and_back(tmp_path):
    """Exported whole distributions are read again, within the step that 16 bits allow."""
    (tmp_path / "t").mkdir()
    for i in range(3):
        (tmp_path / "t" / f"{i}.txt").write_text(
            "It is a truth universally acknowledged, " * 2 + f"{i}"
        )
    build_tiny(
        tmp_path / "s",
        f"text:{tmp_path}/t/*.txt",
        estimator="dense",
        k=V,
        seq_len=40,
        values="float32",
    )
    notices = Notices()
    out = tmp_path / "base.kld"
    n = export_store(tmp_path / "s", "llama-kld", out, reporter=notices)
    store = open_store(tmp_path / "s")
    rows = list(rows_of_kind("llama-kld?k=50", out))
    assert n == 19 * len(rows)
    assert "left out" in notices.lines[0]
    whole = [r for r in store if r.row.size == 40 and len(r.row.segment_lengths) == 1]
    assert len(whole) == len(rows)
    for stored, row in zip(whole, rows, strict=True):
        np.testing.assert_array_equal(stored.row.input_ids, row.input_ids)
        dense = np.log(stored.targets.dense(1.0)[20:39])
        np.testing.assert_allclose(row.logp, np.take_along_axis(dense, row.ids, 1), atol=1.3e-4)


def test_a_store_with_tails_is_not_exported(tmp_path):
    build_tiny(tmp_path / "s", write_corpus(tmp_path / "t"))
    with pytest.raises(PairingError, match=r"llama\.cpp sums over all"):
        export_store(tmp_path / "s", "llama-kld", tmp_path / "out")
    assert not (tmp_path / "out").exists()
