"""A store as a table: every profile and container gives the same, and no more is decoded than is asked for."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

import softlabels
from softlabels.algebra.convert import convert
from softlabels.algebra.subset import subset
from softlabels.algebra.subset_config import SubsetConfig
from softlabels.core.kept import KeptSet
from softlabels.errors import IntegrityError, PairingError
from softlabels.format.shard import Shard, rows_alone
from softlabels.store.reader import Store, open_store
from tests.blocks import to_run
from tests.fakes import build_tiny, write_corpus
from tests.fixtures.make import DERIVED, STORES, TEXT_STORES
from tests.store.made_up import identity_of

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
READ_WITH = (ROOT / "docs" / "read-with.md").read_text(encoding="utf-8")
FORMS = [("open", "parquet"), ("open", "zarr"), ("packed", "parquet"), ("packed", "zarr")]


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[tuple[str, str], Path]:
    """The same targets, exact, in every form; some positions without."""
    folder = tmp_path_factory.mktemp("scan")
    corpus = write_corpus(folder / "corpus", documents=2, repeat=1)
    first = folder / "open-parquet"
    build_tiny(
        first,
        corpus,
        limit_rows=9,
        shard_rows=3,
        values="float32",
        positions="random:0.8",
        temperature=(1.0, 2.0),
        position_summary=True,
    )
    found = {FORMS[0]: first}
    for form in FORMS[1:]:
        found[form] = folder / "-".join(form)
        profile, container = form
        convert(first, found[form], profile=profile, container=container)
    return found


@pytest.fixture
def read(monkeypatch) -> list[tuple[int, bool]]:
    """Which shards were decoded, and whether with their targets."""
    asked: list[tuple[int, bool]] = []
    real = Store.read_shard

    def read_shard(self: Store, index: int, **how: Any) -> Shard:
        asked.append((index, how["targets"]))
        return real(self, index, **how)

    monkeypatch.setattr(Store, "read_shard", read_shard)
    return asked


def lines_of(store: Store, temperature: float) -> list[dict[str, Any]]:
    """What must be in the table, position by position."""
    found = []
    for stored in store:
        t, row = stored.targets, stored.row
        inputs = row.inputs if store.manifest.identity.encoding.has_inputs else {}
        for p in range(t.n):
            order = np.argsort(t.gaps[p], kind="stable")[: int(t.kept[p].sum())]
            line = {"row": stored.index, "position": p}
            if "input_ids" in inputs:
                fed = inputs.get("decoder_input_ids")
                fed = inputs["input_ids"][inputs["label_mask"]] if fed is None else fed
                line["token"] = int(fed[p])
            if inputs:
                line["label"] = None if row.labels[p] < 0 else int(row.labels[p])
            if (s := t.summary) is not None:
                line["label_logp"], line["entropy"] = (
                    None if math.isnan(x) else x
                    for x in (float(s.label_logp[p]), float(s.entropy[p]))
                )
                line["top"] = None if s.top[p] < 0 else int(s.top[p])
            line["ids"] = t.ids[p][order].tolist()
            line["logp"] = t.log_probs(temperature)[p][order].tolist()
            known = t.soft[p] and not t.keeps.sample
            line["tail"] = float(t.tail(temperature)[p]) if known else None
            found.append(line)
    return found


@pytest.mark.parametrize("form", FORMS, ids="-".join)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_every_position_in_every_form(stores, form, temperature):
    frame = softlabels.scan(stores[form], temperature=temperature).collect()
    expected = lines_of(open_store(stores[form]), temperature)
    assert frame.columns == list(expected[0])
    assert frame.to_dicts() == expected
    assert frame["ids"].list.len().min() == 0
    assert frame["tail"].null_count() > 0


@pytest.mark.parametrize("name", [*STORES, *TEXT_STORES, *DERIVED])
def test_every_fixture_is_a_table(name):
    """Parts of several builds, samples, classes, masked tokens, targets alone: whatever opens."""
    store = open_store(FIXTURES / name)
    lazy = softlabels.scan(FIXTURES / name)
    frame = lazy.collect()
    assert dict(frame.schema) == dict(lazy.collect_schema())
    assert len(frame) == store.manifest.identity.corpus.positions
    assert frame["ids"].list.len().sum() == store.manifest.statistics.kept_ids
    if store.manifest.identity.encoding.has_inputs:
        grid = store.manifest.identity.targets.temperatures
        assert frame.to_dicts() == lines_of(store, 1.0 if 1.0 in grid else grid[0])
    else:
        assert not {"token", "label"} & set(frame.columns)


def test_targets_alone_with_their_inputs(stores, tmp_path):
    source = stores["open", "parquet"]
    subset(source, SubsetConfig(drop_inputs=True), tmp_path / "targets")
    alone = softlabels.scan(tmp_path / "targets")
    assert alone.collect().columns == [
        "row",
        "position",
        "label_logp",
        "entropy",
        "top",
        "ids",
        "logp",
        "tail",
    ]
    both = softlabels.scan(tmp_path / "targets", inputs=source).select("label", "ids").collect()
    assert both.equals(softlabels.scan(source).select("label", "ids").collect())


# -- no more than is asked for --------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_only_what_is_asked_for_is_decoded(stores, read, form):
    whole = softlabels.scan(stores[form]).collect()
    read.clear()
    cheap = (
        softlabels.scan(stores[form])
        .filter(pl.col("entropy") > 1)
        .select("label_logp", "token")
        .collect()
    )
    assert read == [(0, False), (1, False), (2, False)]
    assert cheap.equals(whole.filter(pl.col("entropy") > 1).select("label_logp", "token"))
    read.clear()
    tails = softlabels.scan(stores[form]).filter(pl.col("entropy") > 1).select("tail").collect()
    assert read == [(0, True), (1, True), (2, True)]
    assert tails.equals(whole.filter(pl.col("entropy") > 1).select("tail"))


@pytest.mark.parametrize(
    ("predicate", "shards"),
    [
        (pl.col("row") < 3, [0]),
        ((pl.col("row") >= 3) & (pl.col("entropy") > 0) & (pl.col("row") < 6), [1]),
        (pl.col("row").is_in([0, 8]) & (pl.col("tail") > 0), [0, 2]),
        ((pl.col("row") < 3) | (pl.col("entropy") > 0), [0, 1, 2]),
        ((pl.col("row") < 3) == (pl.col("position") > 4), [0, 1, 2]),
        (pl.col("row") > 99, []),
    ],
)
def test_shards_without_such_a_row_are_not_opened(stores, read, predicate, shards):
    path = stores["packed", "zarr"]
    whole = softlabels.scan(path).collect()
    read.clear()
    assert softlabels.scan(path).filter(predicate).collect().equals(whole.filter(predicate))
    assert [index for index, _ in read] == shards


def test_what_looks_at_all_rows_sees_all_rows(stores):
    lazy = softlabels.scan(stores["packed", "zarr"])
    last = lazy.filter(pl.col("row") == pl.col("row").max()).select("row").unique().collect()
    assert last["row"].to_list() == [8]
    top = lazy.group_by("row").agg(pl.col("entropy").mean()).sort("row").collect()
    assert len(top) == 9


def test_a_limit_ends_the_reading(stores, read):
    assert len(softlabels.scan(stores["open", "parquet"]).head(5).collect()) == 5
    assert [index for index, _ in read] == [0]


# -- refusals -------------------------------------------------------------------------------------


def test_a_temperature_outside_the_grid(stores):
    with pytest.raises(PairingError, match="temperature 3 is not in the store's grid"):
        softlabels.scan(stores["open", "zarr"], temperature=3.0)


def test_a_damaged_shard_is_an_error_of_ours(stores, tmp_path):
    import shutil

    store = Path(shutil.copytree(stores["packed", "zarr"], tmp_path / "s"))
    shard = store / open_store(store).manifest.shards[1].name
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(IntegrityError, match=re.escape(str(shard))):
        softlabels.scan(store).collect()
    assert len(softlabels.scan(store).filter(pl.col("row") < 3).collect())


# -- docs/read-with.md ----------------------------------------------------------------------------


def snippet(heading: str) -> str:
    (text,) = to_run("read-with.md", "python", heading=heading)
    return text


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_the_page_on_scan(stores, form):
    names: dict[str, Any] = {"STORE": str(stores[form])}
    exec(compile(snippet("softlabels.scan"), "read-with.md", "exec"), names)
    lines = lines_of(open_store(stores[form]), 1.0)
    hard = [x for x in lines if x["entropy"] > 2]
    assert 0 < len(hard) < len(lines)
    assert names["hard"].to_dicts() == [{c: x[c] for c in names["hard"].columns} for x in hard]


def test_the_page_names_every_column(stores):
    table = READ_WITH.partition("| column | type | holds |")[2].partition("\n\n")[0]
    named = [
        n
        for line in table.splitlines()
        for n in re.findall(r"`(\w+)`", line.split("|")[1] if line else "")
    ]
    assert named == softlabels.scan(stores["open", "zarr"]).collect_schema().names()


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
@pytest.mark.parametrize("profile", ["open", "packed"])
def test_the_page_on_zarr(stores, profile):
    store = open_store(stores[profile, "zarr"])
    names: dict[str, Any] = {"SHARD": store.folder / store.manifest.shards[0].name}
    exec(compile(snippet("Zarr"), "read-with.md", "exec"), names)
    t = store.shard(0).targets
    assert names["ids"].shape == (t.kept.sum(),)
    if profile == "open":
        assert names["ids"].tolist() == t.ids[t.kept].tolist()


def test_rows_read_alone_keep_what_their_estimator_declares():
    """Of an estimator that is not installed: who reads rows only is not asked for it."""
    identity, keeps = identity_of(), KeptSet(largest=True)
    told = msgspec.structs.replace(identity.targets, estimator="theirs", declared=keeps)
    identity = msgspec.structs.replace(identity, targets=told)
    assert rows_alone(0, (), identity, None).targets.keeps == keeps
