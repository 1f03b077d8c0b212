"""The card, Croissant and the licence: what other tools make of them."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from softlabels import open_store
from softlabels.algebra.merge import merge
from softlabels.builder.config import MeasureConfig
from softlabels.builder.measure import measure
from softlabels.cli.main import main
from softlabels.errors import ConfigError, MissingExtraError
from softlabels.format.manifest import Manifest, load_manifest
from softlabels.making.amend import amend
from softlabels.making.card import card
from softlabels.making.croissant import croissant
from softlabels.making.finish import MADE
from softlabels.making.licences import require_spdx
from softlabels.making.repair import repair_store
from softlabels.store.verify import verify_store
from tests.fakes import TinyTeacher, build_tiny
from tests.store.made_up import files_of, held_by

DOCS = Path(__file__).parents[2] / "docs"
SNIPPETS = dict(
    re.findall(
        r"^## (\w+)\n.*?^```python\n(.*?)^```",
        (DOCS / "read-with.md").read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
)
NEEDS = {"DuckDB": "duckdb", "Croissant": "mlcroissant"}


@pytest.fixture
def carded(store) -> Path:
    result = CliRunner().invoke(main, ["card", str(store)])
    assert result.exit_code == 0, result.output
    return store


@pytest.mark.parametrize("name", ["datasets", "polars", "DuckDB", "pandas", "Croissant"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_snippets_of_other_tools(carded, monkeypatch, tmp_path, name):
    """As printed; each finds what this project's reader finds."""
    assert len(SNIPPETS) == 6  # with Zarr, which is in test_scan.py
    pytest.importorskip(NEEDS.get(name, name))
    if name == "datasets":
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names: dict[str, Any] = {"STORE": str(carded)}
    exec(compile(SNIPPETS[name], "read-with.md", "exec"), names)
    targets = open_store(carded).row(0).targets
    kept = targets.kept[0]
    ids, logp = zip(*names["first"], strict=True)
    assert list(ids) == targets.ids[0][kept].tolist()
    np.testing.assert_allclose(np.array(logp, np.float64), targets.logp[0][kept], atol=0.01)
    if name == "datasets":
        assert len(names["rows"]) == len(open_store(carded))


# -- card -----------------------------------------------------------------------------------------


def head(manifest: Manifest) -> str:
    return card(manifest).split("---\n")[1]


def with_licence(manifest: Manifest, licence: str) -> Manifest:
    identity = msgspec.structs.replace(manifest.identity, licence=licence)
    return msgspec.structs.replace(manifest, identity=identity)


@pytest.mark.parametrize(
    ("licence", "lines"),
    [
        ("unknown", "license: unknown\n"),
        ("CC-BY-4.0", "license: cc-by-4.0\n"),
        ("MIT OR Apache-2.0", "license: other\nlicense_name: mit-or-apache-2.0\n"),
        ("LicenseRef-Ours: all\nmine", "license: other\nlicense_name: licenseref-ours--all-mine\n"),
    ],
)
def test_the_licence_in_the_head_is_one_the_hub_takes(built, licence, lines):
    assert head(with_licence(load_manifest(built), licence)).endswith(lines)


def test_bytes_by_column_are_those_of_the_files(built):
    manifest = load_manifest(built)
    sizes = manifest.column_bytes
    assert set(sizes) >= {"ids", "logp", "log_odds_T1", "log_odds_T2", "input_ids"}
    assert sum(sizes.values()) < manifest.data_bytes < sum(sizes.values()) * 3
    n = manifest.identity.corpus.positions
    assert f"`ids` {sizes['ids'] / n:.2f}" in card(manifest)


def test_no_columns_where_they_are_not_parquet_s_own(corpus, tmp_path):
    manifest = build_tiny(tmp_path / "s", corpus, limit_rows=4, profile="packed")
    assert manifest.column_bytes is None
    assert "by column" not in card(manifest)
    assert "load_dataset" not in card(manifest)


def test_card_renews_and_changes_nothing_else(built, carded):
    before, after = files_of(built), files_of(carded)
    changed = {n for n in after if after[n] != before.get(n)}
    assert changed == {"manifest.json", "croissant.json"}
    assert load_manifest(carded).content_digest == load_manifest(built).content_digest
    assert verify_store(carded).problems == []
    assert CliRunner().invoke(main, ["card", str(carded)]).exit_code == 0
    assert files_of(carded) == after  # again: nothing new
    measure(carded, MeasureConfig(teacher="fake:tiny"), teacher=TinyTeacher())
    assert verify_store(carded).problems == []
    assert "croissant.json" in load_manifest(carded).files


@pytest.mark.parametrize("name", ["croissant.json", "README.md"])
@pytest.mark.parametrize("change", ["missing", "altered"])
@pytest.mark.parametrize("manifest", ["there", "missing"])
def test_repair_makes_both_again(carded, name, change, manifest):
    before = files_of(carded)
    if change == "missing":
        (carded / name).unlink()
    else:
        (carded / name).write_bytes(b"{}")
    if manifest == "missing":
        (carded / "manifest.json").unlink()
    else:
        (problem,) = verify_store(carded).problems
        assert "`softlabels repair" in problem
    assert repair_store(carded).whole
    assert verify_store(carded).problems == []
    lost = manifest == change == "missing" and name == "croissant.json"  # nothing says that it was
    assert held_by(carded).keys() == before.keys() - ({name} if lost else set())
    if not lost:
        assert files_of(carded)[name] == before[name]


def test_a_withdrawn_shard_takes_both_with_it(carded, corpus):
    next((carded / "data").iterdir()).unlink()
    repair = repair_store(carded)
    assert {"README.md", "croissant.json", "manifest.json"} <= {a.file for a in repair.actions}
    build_tiny(carded, corpus, limit_rows=8, shard_rows=3, temperature=(1.0, 2.0))
    assert verify_store(carded).problems == []


# -- Croissant ------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["open", "packed"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_croissant_is_valid(corpus, tmp_path, profile):
    mlcroissant = pytest.importorskip("mlcroissant")
    store = tmp_path / "store"
    manifest = build_tiny(store, corpus, limit_rows=4, profile=profile, licence="CC-BY-4.0")
    amend(store, lambda present: present, make=list(MADE))
    dataset = mlcroissant.Dataset(store / "croissant.json")  # raises what is invalid
    assert not dataset.metadata.ctx.issues.errors
    raw = json.loads((store / "croissant.json").read_text(encoding="utf-8"))
    assert raw["license"] == "CC-BY-4.0"
    listed = [f for f in raw["distribution"] if f["@type"] == "cr:FileObject"]
    assert [(f["contentUrl"], f["sha256"]) for f in listed] == [
        (s.name, s.sha256) for s in manifest.shards
    ]
    if profile == "open":
        records = list(dataset.records("rows"))
        assert len(records) == len(open_store(store))
    else:
        assert "recordSet" not in raw


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_croissant_checks_are_not_empty(built, tmp_path):
    mlcroissant = pytest.importorskip("mlcroissant")
    bad = json.loads(croissant(load_manifest(built)))
    del bad["recordSet"][0]["field"][0]["source"]
    bad["distribution"][0].pop("contentUrl")
    (tmp_path / "croissant.json").write_text(json.dumps(bad), encoding="utf-8")
    with pytest.raises(mlcroissant.ValidationError):
        mlcroissant.Dataset(tmp_path / "croissant.json")


# -- licence --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("licence", "spelt"),
    [
        ("CC-BY-4.0", "CC-BY-4.0"),
        ("mit or apache-2.0", "MIT OR Apache-2.0"),
        ("LicenseRef-llama-outputs", "LicenseRef-llama-outputs"),
    ],
)
def test_spdx_is_accepted(licence, spelt):
    pytest.importorskip("license_expression")
    assert require_spdx(licence) == spelt


@pytest.mark.parametrize(
    ("licence", "says"),
    [
        ("unknown", "not stated"),
        ("", "not stated"),
        ("free for all", "SPDX does not know 'free for all'"),
        ("MIT AND", "not an SPDX expression"),
        ("llama3", "SPDX does not know 'llama3'"),
    ],
)
def test_what_is_not_spdx_is_refused(licence, says):
    pytest.importorskip("license_expression")
    with pytest.raises(ConfigError, match=says) as e:
        require_spdx(licence)
    assert "--licence CC-BY-4.0" in str(e.value)


def test_spdx_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "license_expression", None)
    with pytest.raises(MissingExtraError, match=r"\[spdx\]'"):
        require_spdx("MIT")


def test_a_licence_is_stated_after_the_build(store):
    """It is what every reader of the manifest says from then on, and not content."""
    pytest.importorskip("license_expression")
    before = load_manifest(store)
    assert before.licence == "unknown"
    result = CliRunner().invoke(main, ["card", str(store), "--licence", " CC-BY-4.0 ", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["licence"] == "CC-BY-4.0"
    manifest = load_manifest(store)
    assert manifest.content_digest == before.content_digest
    assert (manifest.identity, manifest.licence) == (before.identity, "CC-BY-4.0")
    assert verify_store(store).problems == []
    assert "license: cc-by-4.0" in (store / "README.md").read_text(encoding="utf-8")
    assert json.loads((store / "croissant.json").read_text())["license"] == "CC-BY-4.0"
    shown = CliRunner().invoke(main, ["inspect", str(store)]).stdout
    assert "licence  CC-BY-4.0" in shown
    again = CliRunner().invoke(main, ["card", str(store), "--check-licence"])
    assert again.exit_code == 0, again.output


def test_what_was_stated_is_kept_by_measuring_repairing_and_deriving(store, tmp_path):
    assert CliRunner().invoke(main, ["card", str(store), "--licence", "MIT"]).exit_code == 0
    measure(store, MeasureConfig(teacher="fake:tiny"), teacher=TinyTeacher())
    manifest = load_manifest(store)
    assert (manifest.licence, manifest.fidelity is None) == ("MIT", False)
    (store / "README.md").unlink()
    assert repair_store(store).actions
    assert load_manifest(store).licence == "MIT"
    assert merge([store, store], tmp_path / "merged").identity.licence == "MIT"


@pytest.mark.parametrize("licence", ["", " ", "MIT\nlicense: other", "MIT\x1b[2J"])
def test_a_licence_that_says_nothing_or_more_than_a_line(store, licence):
    before = files_of(store)
    result = CliRunner().invoke(main, ["card", str(store), "--licence", licence])
    assert result.exit_code == 2
    assert "expected an SPDX expression" in result.stderr
    assert files_of(store) == before


def test_check_licence_on_the_command_line(store):
    pytest.importorskip("license_expression")
    before = files_of(store)
    result = CliRunner().invoke(main, ["card", str(store), "--check-licence"])
    assert result.exit_code == 2
    assert "not stated" in result.stderr
    assert files_of(store) == before


def test_a_stale_signature_is_mentioned(store, tmp_path):
    (store / "manifest.json.sig").write_bytes(b"{}")
    result = CliRunner().invoke(main, ["card", str(store), "--json"])
    assert json.loads(result.stdout)["signature_stale"] is True
    assert "must be renewed" in result.stderr
    shutil.copytree(store, tmp_path / "again")
    again = CliRunner().invoke(main, ["card", str(tmp_path / "again"), "--json"])
    assert json.loads(again.stdout)["signature_stale"] is False
