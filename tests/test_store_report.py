"""The report of a store: figures against its dense teacher, hostile text, and a real browser."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from softlabels.cli.main import main
from softlabels.codecs.summary import entropy_bound
from softlabels.format import encoding
from softlabels.format.containers import parquet
from softlabels.format.figures import figures_of
from softlabels.report.store_facts import gather
from softlabels.report.store_page import render
from softlabels.store.reader import open_store
from tests.fakes import BYTES, EOS, ByteTokenizer, TinyTeacher, build_tiny, write_corpus
from tests.pages import HOSTILE, browser, check_page, look_at
from tests.test_summaries import build_texts


class SpeakingTokenizer(ByteTokenizer):
    """Byte ids with a tokenizer.json that the library reads; one byte reads as a script, others as they are."""

    def files(self) -> Mapping[str, bytes]:
        from tokenizers import Tokenizer, models

        names = {i: chr(i) if 32 <= i < 127 else f"<{i:02x}>" for i in range(BYTES)}
        vocab = {name: i for i, name in names.items()} | {"<end>": EOS}
        del vocab["e"]
        vocab[HOSTILE] = ord("e")
        return {
            "tokenizer.json": Tokenizer(models.WordLevel(vocab, unk_token="<end>"))
            .to_str()
            .encode()
        }


def teacher(**changes: str) -> TinyTeacher:
    made = TinyTeacher()
    made.tokenizer = SpeakingTokenizer()
    made.record = msgspec.structs.replace(made.record, **changes)
    return made


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    corpus = write_corpus(folder / "corpus")
    common = {"limit_rows": 20, "shard_rows": 4}
    build_tiny(folder / "topk", corpus, teacher=teacher(), k=5, temperature=(1.0, 2.0), **common)
    build_tiny(folder / "sampled", corpus, estimator="sampled", k=5, **common)
    build_tiny(
        folder / "zarr", corpus, teacher=teacher(), container="zarr", profile="packed", **common
    )
    build_tiny(folder / "plain-zarr", corpus, container="zarr", **common)
    build_tiny(folder / "some", corpus, positions="entropy:0.3", **common)
    build_tiny(folder / "warm", corpus, estimator="sampled", temperature=(2.0,), **common)
    return folder


def report(store: Path, out: Path, *flags: str) -> str:
    result = CliRunner().invoke(main, ["report", str(store), "--out", str(out), *flags])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(("report: ", "{"))
    return check_page(out.read_text(encoding="utf-8"))


def test_figures_equal_those_of_the_dense_teacher(stores):
    store = open_store(stores / "topk")
    found = gather(store, rows=100)
    p = torch.cat([torch.softmax(TinyTeacher().dense(r.row).double(), 1) for r in store])
    top = p.sort(dim=1, descending=True).values.numpy()
    assert found.rows == 20
    assert found.positions == len(p)
    for k, mass in found.mass_at.items():
        assert mass == pytest.approx(top[:, :k].sum(1).mean(), abs=1e-3)
    assert list(found.mass_at) == [1, 2, 4, 5]
    np.testing.assert_allclose(found.tail, 1 - top[:, :5].sum(1), atol=2e-3)
    full = -(top * np.log(np.maximum(top, 1e-300))).sum(1)
    assert (np.abs(found.entropy - full) <= entropy_bound(full)).all()
    labels = np.concatenate([stored.row.labels for stored in store])
    logp = p.gather(1, torch.from_numpy(labels.astype(np.int64))[:, None]).log()[:, 0]
    np.testing.assert_allclose(found.label_logp, logp, rtol=1e-3)


def test_without_summaries_a_head_bounds_the_entropy_and_a_sample_says_nothing(stores, tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    old = {"limit_rows": 4, "position_summary": False}
    build_tiny(tmp_path / "topk", corpus, k=5, **old)
    build_tiny(tmp_path / "sampled", corpus, k=5, estimator="sampled", **old)
    store = open_store(tmp_path / "topk")
    found = gather(store, rows=100)
    p = torch.cat([torch.softmax(TinyTeacher().dense(r.row).double(), 1) for r in store])
    top = p.sort(dim=1, descending=True).values.numpy()
    bins = np.concatenate([top[:, :5], 1 - top[:, :5].sum(1, keepdims=True)], axis=1)
    np.testing.assert_allclose(found.entropy, -(bins * np.log(bins)).sum(1), atol=5e-3)
    assert "the teacher's own is at least this" in report(tmp_path / "topk", tmp_path / "x.html")
    found = gather(open_store(tmp_path / "sampled"), rows=100)
    assert len(found.entropy) == len(found.label_logp) == len(found.texts) == 0
    said = report(tmp_path / "sampled", tmp_path / "x.html")
    assert "nothing is known of the teacher's certainty at any one position" in said
    assert "median entropy" not in said


def test_what_is_sure_in_a_sample_is_the_teachers_own(stores):
    """No mass "outside": of each position the ids that were sure to be kept."""
    store = open_store(stores / "sampled")
    found = gather(store, rows=100)
    assert (len(found.tail), found.mass_at) == (0, {})
    p = torch.cat([torch.softmax(TinyTeacher().dense(r.row).double(), 1) for r in store]).numpy()
    expected = []
    for one in -np.sort(-p, axis=1):
        beyond = one[::-1].cumsum()[::-1]
        head = next(h for h in range(5) if one[h] <= beyond[h] / (5 - h))
        expected.append(one[:head].sum())
    np.testing.assert_allclose(found.sure, expected, atol=2e-3)


def test_the_loss_is_over_the_positions_that_have_a_label(tmp_path):
    """8.569 was shown as 1.308."""
    texts = [{"text": f"film {i}", "label": 0} if i < 2 else {"text": f"f {i}"} for i in range(9)]
    manifest = build_texts(tmp_path / "s", "sequence-classification", texts)
    loss, wrong = manifest.statistics.teacher_nll / 2, manifest.statistics.teacher_nll / 9
    assert figures_of(manifest).teacher_nll == loss
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "s")]).stdout
    card = (tmp_path / "s" / "README.md").read_text(encoding="utf-8")
    for said in (report(tmp_path / "s", tmp_path / "x.html"), shown, card):
        assert f"{loss:.3f}" in said
        assert f"{wrong:.3f}" not in said


@pytest.mark.parametrize("name", ["topk", "sampled", "zarr", "plain-zarr", "some", "warm"])
def test_bytes_by_column_are_all_bytes_of_the_shards(stores, name):
    store = open_store(stores / name)
    found = gather(store, rows=100)
    assert sum(found.column_bytes.values()) == store.manifest.data_bytes
    assert len(found.column_bytes) > 4
    assert all(size >= 0 for size in found.column_bytes.values())
    largest = max(found.column_bytes, key=lambda c: found.column_bytes[c])
    assert largest in ("ids", "logp", "values", "input_digest", "(the file's own)")
    assert len(found.entropy) == len(found.label_logp) == found.positions


class Third:
    """A container that is neither of ours: Parquet behind a mark."""

    suffix = "third"

    @staticmethod
    def write_columns(columns: Any, facts: Any) -> bytes:
        return b"third" + parquet.write_columns(columns, facts)

    @staticmethod
    def read_columns(data: bytes, expected: Any, **rest: Any) -> Any:
        return parquet.read_columns(data[5:], expected, **rest)

    @staticmethod
    def read_facts(data: bytes, *, where: str) -> dict[str, str]:
        return parquet.read_facts(data[5:], where=where)

    @staticmethod
    def column_bytes(path: Path) -> dict[str, int]:
        return {"all": path.stat().st_size - 5}


def test_a_container_of_somebody_elses_has_its_page(tmp_path, monkeypatch):
    monkeypatch.setitem(encoding.CONTAINERS.builtin, "third", "tests.third")
    monkeypatch.setitem(sys.modules, "tests.third", Third)
    manifest = build_tiny(
        tmp_path / "s", write_corpus(tmp_path / "c"), limit_rows=2, container="third"
    )
    said = report(tmp_path / "s", tmp_path / "x.html")
    assert "profile open in third" in said
    assert f"all{manifest.data_bytes - 5:,}" in said
    assert "(the file's own)5" in said


@pytest.mark.parametrize("name", ["topk", "sampled", "zarr", "plain-zarr", "some", "warm"])
def test_the_page_of_each_kind_of_store(stores, name, tmp_path):
    said = report(stores / name, tmp_path / "x.html")
    store = open_store(stores / name)
    manifest = store.manifest
    for words in (
        manifest.content_digest,
        manifest.identity.teacher.weights_sha256,
        f"{manifest.identity.corpus.positions:,} predictions of tiny",
        "What is kept",
        "Where the teacher hesitates",
        "What it costs",
        "Everything below is over the whole store.",
    ):
        assert words in said
    assert ("What lies outside" in said) == (name not in ("sampled", "warm"))
    assert ("one position alone they say little" in said) == (name in ("sampled", "warm"))
    assert ("T=2" in said) == (name == "warm")
    surest = gather(store, rows=100).surest("certain")
    assert ("One id has nearly all of the mass" in said) == (surest >= 0.9)
    assert ("Even here no id has nearly all" in said) == (0 < surest < 0.9)


def test_the_surest_of_a_kind_is_what_the_dense_teacher_gave(stores):
    store = open_store(stores / "topk")
    p = torch.cat([torch.softmax(TinyTeacher().dense(r.row).double(), 1) for r in store])
    found = gather(store, rows=100)
    assert found.surest("certain") == pytest.approx(float(p.max()), abs=1e-3)
    assert found.surest("none of these") == 0


def test_the_least_expected_positions_come_first_one_of_a_row(stores):
    store = open_store(stores / "topk")
    found = gather(store, rows=100)
    logps = []
    for h in found.hardest:
        stored = store.row(h.row)
        n = stored.row.positions.tolist().index(h.position)
        logps.append(float(stored.targets.summary.label_logp[n]))
        assert logps[-1] == stored.targets.summary.label_logp.min()
        assert h.reading.label_p == pytest.approx(np.exp(logps[-1]))
        p = float(stored.targets[n : n + 1].probs(1.0).max())
        assert h.reading.top.p == pytest.approx(p)
        label = int(stored.row.labels[n])
        assert h.reading.label_words == (
            HOSTILE if label == ord("e") else "<end>" if label == EOS else chr(label)
        )
    assert logps == sorted(logps)
    assert logps[0] == found.label_logp.min()
    assert len({h.row for h in found.hardest}) == len(found.hardest) == 12


def test_a_part_of_the_shards_is_said_to_be_one(stores, tmp_path):
    found = gather(open_store(stores / "topk"), rows=7)
    assert (found.rows, found.shards) == (8, 2)
    said = report(stores / "topk", tmp_path / "x.html", "--rows", "7")
    assert "over 8 of 20 rows, in 2 whole shards" in said


def test_hard_label_only_positions_have_a_colour_from_their_summary_alone(stores, tmp_path):
    found = gather(open_store(stores / "some"), rows=100)
    for _, tokens in found.texts:
        read = [t.reading for t in tokens if t.reading is not None]
        assert 0.1 < np.mean([r.soft for r in read]) < 0.6
        assert all(r.top is not None and r.label_p is not None for r in read)
    corpus = write_corpus(tmp_path / "corpus")
    build_tiny(
        tmp_path / "old", corpus, positions="entropy:0.3", limit_rows=4, position_summary=False
    )
    for _, tokens in gather(open_store(tmp_path / "old"), rows=100).texts:
        some = [t.entropy is not None for t in tokens]
        assert 0.1 < np.mean(some) < 0.6
        assert [t.reading is not None for t in tokens] == some


def hostile_page(tmp_path: Path) -> str:
    corpus = write_corpus(tmp_path / "corpus")
    bad = teacher(name=HOSTILE, engine=HOSTILE, dtype=HOSTILE, device=HOSTILE)
    build_tiny(tmp_path / "store", corpus, teacher=bad, limit_rows=4, licence=HOSTILE)
    return report(tmp_path / "store", tmp_path / "x.html")


def test_nothing_from_a_store_becomes_markup(tmp_path):
    said = hostile_page(tmp_path)
    assert said.count("<script>alert('x')</script>") > 20
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "<script" not in page.lower()
    assert "<img" not in page.lower()


@pytest.mark.slow
def test_a_browser_runs_nothing_of_a_hostile_store(tmp_path):
    hostile_page(tmp_path)
    with browser() as chromium:
        seen: list[str] = []
        tab = chromium.new_page()
        tab.on("dialog", lambda d: seen.append(d.message))
        tab.on("console", lambda m: seen.append(m.text))
        tab.on("request", lambda r: seen.append(r.url))
        tab.goto((tmp_path / "x.html").as_uri())
        assert seen == [(tmp_path / "x.html").as_uri()]


@pytest.mark.slow
def test_a_browser_finds_nothing_to_complain_about(stores, tmp_path):
    report(stores / "topk", tmp_path / "topk.html")
    with browser() as chromium:
        screens = look_at(tmp_path / "topk.html", chromium)
    assert all("predictions of tiny" in s for s in screens)


def test_json_and_errors(stores, tmp_path):
    out = tmp_path / "deep" / "x.html"
    result = CliRunner().invoke(main, ["report", str(stores / "topk"), "--out", str(out), "--json"])
    assert json.loads(result.stdout)["report"] == str(out)
    assert out.is_file()
    assert [p.name for p in out.parent.iterdir()] == ["x.html"]
    missing = CliRunner().invoke(main, ["report", str(tmp_path), "--out", str(tmp_path / "y.html")])
    assert missing.exit_code == 1
    assert "not a store" in missing.stderr
    assert not (tmp_path / "y.html").exists()


def test_a_page_is_the_same_each_time(stores):
    store = open_store(stores / "topk")
    found = gather(store, rows=100)
    assert render(store, found) == render(store, dataclasses.replace(found))
    assert render(store, gather(store, rows=100)) == render(store, found)
