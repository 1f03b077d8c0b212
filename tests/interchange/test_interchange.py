"""Other tools' files: what goes out comes back, what cannot be imported is refused, and measure agrees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from softlabels import open_store
from softlabels.builder.config import ImportConfig, MeasureConfig
from softlabels.builder.measure import measure
from softlabels.cli.main import main
from softlabels.codecs.floating import Float32
from softlabels.errors import (
    ConfigError,
    CorpusError,
    IntegrityError,
    PairingError,
    PlanError,
)
from softlabels.format.manifest import load_manifest
from softlabels.interchange import importing
from softlabels.interchange.exporting import export_store
from softlabels.interchange.importing import import_store
from softlabels.making import builder
from softlabels.making.repair import repair_store
from softlabels.store.verify import verify_store
from softlabels.teachers import TEACHERS
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.store.made_up import files_of

V = 300
CONFIG = ImportConfig(teacher="fake:tiny", values="float32", shard_rows=3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text", documents=4, repeat=1)


@pytest.fixture(scope="module")
def built(tmp_path_factory, corpus) -> Path:
    store = tmp_path_factory.mktemp("built") / "store"
    build_tiny(store, corpus, k=9, values="float32", seq_len=200, temperature=(1.0, 2.0))
    return store


def run(kind: str, path: Path, out: Path, config: ImportConfig = CONFIG, **more: Any):
    return import_store(kind, path, out, config, teacher=TinyTeacher(), **more)


def same(a: Path, b: Path) -> None:
    """The same text in as many documents, with the same targets at T = 1."""
    found = []
    for store in (a, b):
        entries = []
        for stored in open_store(store):
            starts = np.concatenate([[0], np.cumsum(stored.row.segment_lengths)])
            t = stored.targets
            for i, at in enumerate(stored.row.positions.tolist()):
                begin = int(starts[np.searchsorted(starts, at, side="right") - 1])
                before = stored.row.input_ids[begin : at + 2].tolist()  # with its label
                order = np.argsort(t.ids[i])
                entries.append((before, t.ids[i][order], t.logp[i][order], t.tail(1.0)[i]))
        found.append(entries)
    assert len(found[0]) == len(found[1]) > 100
    for x, y in zip(*found, strict=True):
        assert x[0] == y[0]
        assert x[1].tolist() == y[1].tolist()
        np.testing.assert_allclose(x[2], y[2], atol=2e-5)
        np.testing.assert_allclose(x[3], y[3], atol=2e-6)


def as_arrays(store: Path) -> dict[str, np.ndarray]:
    """Of rows of one document, padded."""
    rows = [s for s in open_store(store) if len(s.row.segment_lengths) == 1]
    width = max(s.row.size for s in rows)
    k = rows[0].targets.k
    out = {
        "input_ids": np.zeros((len(rows), width), np.int64),
        "ids": np.zeros((len(rows), width - 1, k), np.int32),
        "logp": np.zeros((len(rows), width - 1, k), np.float32),
        "lengths": np.array([s.row.size for s in rows]),
        "label_mask": np.zeros((len(rows), width), np.bool_),
    }
    for i, s in enumerate(rows):
        out["input_ids"][i, : s.row.size] = s.row.input_ids
        out["label_mask"][i, : s.row.size] = s.row.label_mask
        out["ids"][i, s.row.positions] = s.targets.ids
        out["logp"][i, s.row.positions] = s.targets.logp
    return out


@pytest.fixture(scope="module")
def axolotl(tmp_path_factory, built) -> Path:
    out = tmp_path_factory.mktemp("axolotl") / "rows.parquet"
    export_store(built, "axolotl", out)
    return out


# -- there and back -------------------------------------------------------------------------------


def test_axolotl_there_and_back(built, axolotl, tmp_path):
    done = run("axolotl", axolotl, tmp_path / "back")
    same(built, tmp_path / "back")
    assert verify_store(tmp_path / "back").problems == []
    assert done.manifest.identity.targets.temperatures == [1.0]
    assert done.manifest.identity.teacher.engine == "axolotl files, imported"
    assert done.without_tail < done.manifest.identity.corpus.positions / 20
    lines = tmp_path / "rows.jsonl"
    with lines.open("w") as f:
        for record in pq.read_table(axolotl).to_pylist():
            mask = np.array(record["target_mask"])
            logp = np.where(mask == 0, -99.0, np.array(record["target_logprobs"]))
            f.write(json.dumps(record | {"target_logprobs": logp.tolist()}) + "\n")
    again = run("axolotl", lines, tmp_path / "lines")
    assert again.manifest.content_digest != done.manifest.content_digest  # another file name
    same(built, tmp_path / "lines")


def test_measure_tells_whether_an_import_is_right(axolotl, tmp_path):
    """The right rows pass; rows whose targets are off by one position do not."""
    run("axolotl", axolotl, tmp_path / "good")
    good = measure(
        tmp_path / "good", MeasureConfig(teacher="fake:tiny"), teacher=TinyTeacher()
    ).temperatures[0]
    assert good.kl_tail_bucket.mean < 1e-5
    assert good.log_prob_error.within == 1.0
    table = pq.read_table(axolotl).to_pylist()
    for record in table:
        for name in ("target_token_ids", "target_logprobs", "target_mask"):
            record[name] = [record[name][0], *record[name][:-1]]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "off.parquet")
    run("axolotl", tmp_path / "off.parquet", tmp_path / "bad")
    bad = measure(
        tmp_path / "bad", MeasureConfig(teacher="fake:tiny"), teacher=TinyTeacher()
    ).temperatures[0]
    assert bad.kl.mean > 1
    assert bad.top1_agreement.mean < 0.2


@pytest.mark.parametrize("container", ["npz", "folder"])
def test_arrays(corpus, tmp_path, container):
    build_tiny(tmp_path / "store", corpus, k=9, values="float32", seq_len=48, limit_rows=5)
    arrays = as_arrays(tmp_path / "store")
    path = tmp_path / ("a.npz" if container == "npz" else "a")
    if container == "npz":
        np.savez_compressed(path, **arrays)
    else:
        path.mkdir()
        for name, values in arrays.items():
            np.save(path / f"{name}.npy", values)
    config = ImportConfig(teacher="fake:tiny", profile="packed", values="float32", container="zarr")
    run("arrays", path, tmp_path / "back", config)
    same(tmp_path / "store", tmp_path / "back")
    assert verify_store(tmp_path / "back").problems == []


# -- DistillKit -----------------------------------------------------------------------------------


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """`[n, count]` whole numbers as bytes, bit by bit."""
    text = ["".join(format(int(v), f"0{bits}b") for v in row) for row in values]
    size = -(-len(text[0]) // 8)
    return np.array(
        [[int(t.ljust(8 * size, "0")[8 * i : 8 * i + 8], 2) for i in range(size)] for t in text],
        np.uint8,
    )


def capture(folder: Path, store: Path, *, exact: int, polynomial: bool, delta: bool) -> np.ndarray:
    """Write a capture as its format says; returns the log-probabilities that it holds."""
    folder.mkdir()
    k = 9
    terms = "[0, 1, sqrt]" if polynomial else "null"
    count = k - exact
    bins = (
        [{"scale_dtype": "float16", "element_bits": 5, "num_elements": count - 1}]
        if exact < k
        else []
    )
    (folder / "compression_config.yaml").write_text(
        f"d: {V}\nk: {k}\nexact_k: {exact}\nexact_dtype: bfloat16\npolynomial_terms: {terms}\n"
        f"term_dtype: float32\nresidual_bins: {json.dumps(bins)}\n"
        f"delta_encoding: {str(delta).lower()}\n"
    )
    rows, held = [], []
    for s in open_store(store):
        t = s.targets
        order = np.argsort(-t.logp, axis=1, kind="stable")
        ids = np.take_along_axis(t.ids, order, 1)
        v = np.take_along_axis(t.logp, order, 1).astype(np.float64)
        if delta:
            v = np.diff(v, axis=1, prepend=0.0)
        parts = []
        high = (v[:, :exact].astype("<f4").view("<u4") >> 16).astype("<u2")  # cut to bfloat16
        parts.append(high.view(np.uint8))
        back = (high.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        rest, fit = v[:, exact:], np.zeros((len(v), count))
        if polynomial:
            x = np.stack([np.ones(count), np.arange(count), np.sqrt(np.arange(count))], 1)
            c = np.linalg.lstsq(x, rest.T, rcond=None)[0].T.astype("<f4")
            parts.append(np.ascontiguousarray(c).view(np.uint8))
            fit = c.astype(np.float64) @ x.T
        for b in bins:
            n = b["num_elements"]
            left = (rest - fit)[:, :n]
            scale = (np.abs(left).max(1, keepdims=True) / 16).astype("<f2")
            wide = np.where(scale == 0, 1, scale.astype(np.float64))
            steps = np.clip(np.round(left / wide), -16, 15)
            parts += [scale.view(np.uint8), pack(steps + 16, 5)]
            fit[:, :n] += steps * scale.astype(np.float64)
        values = np.concatenate([back, fit], 1)
        held.append(values.cumsum(1) if delta else values)
        rows.append(
            {
                "input_ids": s.row.input_ids.tolist(),
                "compressed_logprobs": np.concatenate(parts, 1).tolist(),
                "bytepacked_indices": pack(ids, 9).tolist(),
            }
        )
    kind = pa.list_(pa.list_(pa.uint8()))
    schema = pa.schema(
        {
            "input_ids": pa.list_(pa.uint64()),
            "compressed_logprobs": kind,
            "bytepacked_indices": kind,
        }
    )
    half = len(rows) // 2
    for i, part in enumerate((rows[:half], rows[half:])):
        pq.write_table(pa.Table.from_pylist(part, schema=schema), folder / f"data_{i}.parquet")
    return np.concatenate(held)


@pytest.fixture(scope="module")
def single(tmp_path_factory, corpus) -> Path:
    """Rows of one document each, all of whose tokens but the last have a target."""
    store = tmp_path_factory.mktemp("single") / "store"
    build_tiny(store, corpus, k=9, values="float32", seq_len=48, limit_rows=5)
    assert all(len(s.row.segment_lengths) == 1 for s in open_store(store))
    return store


@pytest.mark.parametrize(
    ("exact", "polynomial", "delta"),
    [(9, False, False), (9, False, True), (2, True, True), (2, True, False), (1, False, True)],
)
def test_distillkit(single, tmp_path, exact, polynomial, delta):
    held = capture(
        tmp_path / "capture", single, exact=exact, polynomial=polynomial, delta=delta
    ).astype(np.float32)
    run("distillkit", tmp_path / "capture", tmp_path / "store")
    assert verify_store(tmp_path / "store").problems == []
    at = 0
    for stored, original in zip(open_store(tmp_path / "store"), open_store(single), strict=True):
        t = stored.targets
        assert stored.row.input_ids.tolist() == original.row.input_ids.tolist()
        for i in range(t.n):
            order = np.argsort(-original.targets.logp[i], kind="stable")
            assert t.ids[i].tolist() == original.targets.ids[i][order].tolist()
            mine, theirs = -t.gaps[i].astype(np.float64), held[at].astype(np.float64)
            np.testing.assert_allclose(mine, theirs - theirs.max(), atol=1e-4)
            left = max(0.0, 1 - np.exp(theirs).sum())
            assert t.tail(1.0)[i] == pytest.approx(left, abs=3e-6)
            at += 1
    assert at == len(held)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / "compression_config.yaml").unlink(), "older captures have none"),
        (
            lambda f: (f / "compression_config.yaml").write_text("d: 300\nk: 9\n"),
            "is not the configuration",
        ),
        (
            lambda f: (f / "compression_config.yaml").write_text(
                "d: 300\nk: 9\nexact_k: 9\nexact_dtype: float64\nresidual_bins: []\n"
            ),
            r"data_0.parquet: row 0: 18 bytes of a position, the configuration asks for 72",
        ),
        (lambda f: (f / "data_0.parquet").write_bytes(b"PAR1"), "cannot be read as Parquet"),
    ],
)
def test_bad_captures(single, tmp_path, change, says):
    capture(tmp_path / "capture", single, exact=9, polynomial=False, delta=False)
    change(tmp_path / "capture")
    with pytest.raises(CorpusError, match=says):
        run("distillkit", tmp_path / "capture", tmp_path / "store")
    assert not (tmp_path / "store").exists()


# -- what is refused ------------------------------------------------------------------------------


def plain(**changes: Any) -> dict[str, np.ndarray]:
    """Two rows of four tokens with two ids at each position."""
    values: dict[str, Any] = {
        "input_ids": np.arange(8).reshape(2, 4),
        "ids": np.tile(np.array([5, 6]), (2, 3, 1)),
        "logp": np.log(np.tile(np.array([0.5, 0.25], np.float32), (2, 3, 1))),
    }
    for name, change in changes.items():
        if callable(change):
            change(values[name])
        elif change is None:
            del values[name]
        else:
            values[name] = change
    return values


def put(place: tuple[int, ...], value: float):
    return lambda array: array.__setitem__(place, value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"logp": put((1, 2, 0), 0.5)}, r"row 1: the probabilities of position 2 sum to 1\.899"),
        ({"logp": put((0, 1, 1), -np.inf)}, "row 0: position 1 has a log-probability of -inf"),
        ({"logp": put((0, 1, 1), np.nan)}, "log-probability of nan for id 6"),
        ({"ids": put((1, 0, 0), 300)}, r"row 1: a target holds id 300, .* 0\.\.299"),
        ({"ids": put((1, 0, 0), -1)}, "row 1: a target holds id -1"),
        ({"ids": put((1, 0, 0), 6)}, "row 1: position 0 keeps an id twice"),
        ({"input_ids": put((0, 3), 300)}, "row 0: input_ids holds id 300"),
        ({"logp": np.full((2, 3, 2), np.log(0.5), np.float32)}, "they were renormalised"),
        ({"logp": None}, "has no array 'logp'"),
        ({"ids": np.zeros((2, 2, 2), int)}, r"must be \[R, S\], \[R, P, K\]"),
        ({"lengths": np.array([4, 5])}, "row 1: a length of 5; expected 1 to 4"),
        ({"label_mask": np.zeros((2, 4), bool)}, "no position with a target"),
        ({"ids": np.zeros((2, 3, 2))}, "ids is float64"),
    ],
)
def test_bad_arrays(tmp_path, changes, says):
    np.savez(tmp_path / "a.npz", **plain(**changes))
    with pytest.raises(CorpusError, match=says):
        run("arrays", tmp_path / "a.npz", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_no_pickle_is_opened(tmp_path):
    np.savez(tmp_path / "a.npz", **plain(ids=np.array([{}, []], object)), allow_pickle=True)
    with pytest.raises(CorpusError, match="cannot be read"):
        run("arrays", tmp_path / "a.npz", tmp_path / "store")


def test_positions_whose_ids_are_all_of_it_are_counted(tmp_path):
    np.savez(tmp_path / "a.npz", **plain(logp=put((0, 1), np.log(0.5))))
    done = run("arrays", tmp_path / "a.npz", tmp_path / "store")
    assert done.without_tail == 1
    t = open_store(tmp_path / "store").row(0).targets
    np.testing.assert_allclose(t.tail(1.0), [0.25, 0, 0.25], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"target_mask": None}, "row 0: has no 'target_mask'"),
        ({"target_mask": [[1, 0]] * 3}, "marks some ids of a position only"),
        ({"target_logprobs": [[-1.0, -2.0]] * 2}, "3 target_token_ids, 2 target_logprobs"),
        ({"target_token_ids": [[1, 2], [3], [4, 5]]}, "differ in length"),
        ({"labels": [1]}, "1 labels for 3 input_ids"),
        ({"input_ids": ["a", "b", "c"]}, "is not a list of whole numbers"),
    ],
)
def test_bad_rows(tmp_path, change, says):
    record = {
        "input_ids": [1, 2, 3],
        "labels": [-100, 2, 3],
        "target_token_ids": [[1, 2]] * 3,
        "target_logprobs": [[-1.0, -2.0]] * 3,
        "target_mask": [[1, 1]] * 3,
    }
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(record) + "\n")
    good = run("axolotl", path, tmp_path / "good").manifest
    assert good.identity.corpus.positions == 2  # nothing follows the last token
    path.write_text(json.dumps({k: v for k, v in (record | change).items() if v is not None}))
    with pytest.raises(CorpusError, match=says):
        run("axolotl", path, tmp_path / "store")


def test_rows_of_different_k(tmp_path):
    lines = [
        {
            "input_ids": [1, 2],
            "target_token_ids": [[*range(k)]] * 2,
            "target_logprobs": [[-3.0] * k] * 2,
            "target_mask": [[1] * k] * 2,
        }
        for k in (2, 3)
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(CorpusError, match="row 1: keeps 3 ids at a position, earlier rows 2"):
        run("axolotl", tmp_path / "r.jsonl", tmp_path / "store")


# -- resuming -------------------------------------------------------------------------------------


def test_an_interrupted_import_goes_on(axolotl, tmp_path, monkeypatch):
    run("axolotl", axolotl, tmp_path / "whole")
    real, calls = builder.commit_shard, []

    def dies(*arguments: Any, **options: Any):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(builder, "commit_shard", dies)
        with pytest.raises(KeyboardInterrupt):
            run("axolotl", axolotl, tmp_path / "store")
    first = {n: d for n, d in files_of(tmp_path / "store").items() if n.startswith("commits/")}
    assert len(first) == 2
    run("axolotl", axolotl, tmp_path / "store")
    now = files_of(tmp_path / "store")
    assert first.items() <= now.items()
    digest = load_manifest(tmp_path / "whole").content_digest
    assert load_manifest(tmp_path / "store").content_digest == digest
    with pytest.raises(
        PlanError, match=r"encoding values = .float32., this import has .float16. \(--values\)"
    ):
        run("axolotl", axolotl, tmp_path / "store", ImportConfig(teacher="fake:tiny"))


@pytest.mark.parametrize("how", ["a shard was damaged", "a shard is gone", "another lies there"])
def test_an_import_mends_what_it_finds_as_a_build_does(axolotl, tmp_path, how):
    out = tmp_path / "store"
    run("axolotl", axolotl, out)
    whole = files_of(out)
    (out / "manifest.json").unlink()
    shard = sorted((out / "data").iterdir())[1]
    if how == "a shard was damaged":
        shard.write_bytes(whole[shard.relative_to(out).as_posix()][:-1])
    elif how == "a shard is gone":
        shard.unlink()
    else:
        (out / "commits/00001.json").unlink()
        shard.write_bytes(b"somebody else's")
    run("axolotl", axolotl, out)
    assert verify_store(out).problems == []
    now = files_of(out)
    assert {n: d for n, d in now.items() if n.startswith("data/")} == {
        n: d for n, d in whole.items() if n.startswith("data/")
    }
    assert [n for n in now if n.startswith("quarantine/")] == sorted(verify_store(out).quarantine)
    assert len(verify_store(out).quarantine) == (how != "a shard is gone")


def test_an_import_publishes_nothing_that_does_not_decode_to_what_it_was(
    axolotl, tmp_path, monkeypatch
):
    """A codec that loses more than it promises is found before anybody reads the store."""
    real = Float32.encode
    monkeypatch.setattr(Float32, "encode", lambda self, values: real(self, values - 1))
    with pytest.raises(IntegrityError, match="decodes to something else than was encoded"):
        run("axolotl", axolotl, tmp_path / "store")
    assert not list((tmp_path / "store").glob("data/*"))


def test_repair_names_the_command_that_makes_a_shard_again(axolotl, tmp_path):
    run("axolotl", axolotl, tmp_path / "store")
    next((tmp_path / "store/data").iterdir()).unlink()
    assert repair_store(tmp_path / "store").command == "import"
    with pytest.raises(PlanError, match="was begun by `softlabels import`"):
        build_tiny(tmp_path / "store", write_corpus(tmp_path / "corpus"))


def test_an_import_goes_on_only_with_the_rows_that_it_planned(axolotl, tmp_path, monkeypatch):
    """The files are read twice; what changed in between is not stored under the name of what was read first."""
    real, passes = importing.IMPORTS.load("axolotl"), []

    def read(path):
        passes.append(path)
        for row in real(path):
            if len(passes) > 1:
                row.input_ids[0] ^= 1
            yield row

    monkeypatch.setattr("softlabels.interchange.axolotl.read", read)
    with pytest.raises(CorpusError, match="not those that were planned"):
        run("axolotl", axolotl, tmp_path / "store")


# -- the other way --------------------------------------------------------------------------------


def test_plain_topk(built, tmp_path):
    records = export_store(built, "topk", tmp_path / "p.parquet")
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert len(table) == records == load_manifest(built).identity.corpus.positions
    at = 0
    for stored in open_store(built):
        t = stored.targets
        for i in range(t.n):
            r = table[at]
            assert (r["row"], r["token"]) == (stored.index, stored.row.positions[i])
            assert r["label"] == stored.row.labels[i]
            assert r["ids"] == t.ids[i].tolist()
            assert np.exp(r["logp"]).sum() + r["tail"] == pytest.approx(1, abs=1e-5)
            at += 1


def test_exports_that_are_refused(built, corpus, tmp_path):
    build_tiny(tmp_path / "sampled", corpus, estimator="sampled", limit_rows=3)
    for kind in ("axolotl", "topk"):
        with pytest.raises(PairingError, match="holds random samples"):
            export_store(tmp_path / "sampled", kind, tmp_path / "x.parquet")
    (tmp_path / "there").touch()
    with pytest.raises(ConfigError, match="exists already"):
        export_store(built, "topk", tmp_path / "there")
    with pytest.raises(ConfigError, match="its folder does not exist"):
        export_store(built, "topk", tmp_path / "no/x.parquet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sampled", "there"]


def test_the_commands(built, tmp_path, monkeypatch):
    monkeypatch.setitem(TEACHERS.builtin, "fake", "tests.fakes:load_tiny")
    rows, store = str(tmp_path / "rows.parquet"), str(tmp_path / "store")
    out = CliRunner().invoke(main, ["export", str(built), "axolotl", "--out", rows, "--json"])
    assert out.exit_code == 0, out.output
    segments = sum(len(s.row.segment_lengths) for s in open_store(built))
    assert json.loads(out.stdout)["records"] == segments  # each has a position
    arguments = ["import", "axolotl", rows, "--teacher", "fake:0", "--out", store]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "without a tail" in done.stdout
    assert CliRunner().invoke(main, ["verify", store]).exit_code == 0
    bad = CliRunner().invoke(main, [*arguments[:-1], str(tmp_path / "b"), "--values", "nat16"])
    assert (bad.exit_code, "--profile packed" in bad.stderr) == (2, True)
