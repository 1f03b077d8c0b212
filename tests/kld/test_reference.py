"""`softlabels reference`: a store, wide rows beside it, both made whole whatever happens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from softlabels import open_store
from softlabels.cli.main import main
from softlabels.errors import ConfigError, PlanError
from softlabels.kld.reference import make_reference, wide_every
from softlabels.kld.reference_config import ReferenceConfig
from softlabels.store.verify import verify_store
from softlabels.teachers import TEACHERS
from tests.fakes import Notices, TinyTeacher, write_corpus
from tests.kld.test_compare import dense_of
from tests.kld.test_kld_command import Near


@pytest.fixture(autouse=True)
def _back_ends(monkeypatch):
    monkeypatch.setitem(TEACHERS.builtin, "fake", "tests.fakes:load_tiny")
    monkeypatch.setitem(TEACHERS.builtin, "near", "tests.kld.test_kld_command:load_near")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    return write_corpus(tmp_path_factory.mktemp("text") / "t").removeprefix("text:")


def config_of(text: str, **changes) -> ReferenceConfig:
    values = {"k": 20, "seq_len": 64, "wide_every": 4, "wide_k": 100, "shard_rows": 4}
    return ReferenceConfig(text=(text,), **(values | changes))


def test_it_is_a_store_and_every_so_many_rows_have_more_ids(text, tmp_path):
    out = tmp_path / "ref"
    made = make_reference("fake:0", config_of(text), out, teacher=TinyTeacher())
    assert made.wide is not None
    store, wide = open_store(out), open_store(tmp_path / "ref-wide")
    for path in (out, tmp_path / "ref-wide"):
        assert verify_store(path).problems == []
    assert len(wide) == -(-len(store) // 4)
    for i, row in enumerate(wide):
        same = store.row(4 * i)
        assert row.row.digest() == same.row.digest()
        assert row.targets.k == 100
        for ours, theirs in zip(row.targets.ids, same.targets.ids, strict=True):
            assert set(theirs) <= set(ours)
    assert store.manifest.identity.summary is not None


def test_the_card_says_how_to_use_it(text, tmp_path):
    make_reference("fake:0", config_of(text), tmp_path / "ref", teacher=TinyTeacher())
    assert "softlabels kld MODEL --store" in (tmp_path / "ref" / "README.md").read_text()


def test_wide_rows_are_found_and_bring_the_estimate_near(text, tmp_path):
    out = tmp_path / "ref"
    make_reference("fake:0", config_of(text, values="nat64"), out, teacher=TinyTeacher())
    result = CliRunner().invoke(main, ["kld", "a=near:0.2", "--store", str(out), "--json"])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["candidates"]
    true = dense_of(out, Near(0.2))["kl"].mean()
    assert found["kl_from"] == "wide rows"
    assert found["figures"]["kl_bins"]["value"] < true
    assert found["figures"]["kl"]["value"] == pytest.approx(true, rel=0.03)
    assert found["kl_least"] <= true <= found["kl_most"]
    assert 0 < found["kl_error"] < 0.1


def test_it_goes_on_where_it_was_stopped(text, tmp_path, monkeypatch):
    out = tmp_path / "ref"
    whole = make_reference("fake:0", config_of(text), tmp_path / "whole", teacher=TinyTeacher())
    make_reference("fake:0", config_of(text, wide_every=0), out, teacher=TinyTeacher())
    assert not (tmp_path / "ref-wide").exists()
    notices = Notices()
    made = make_reference("fake:0", config_of(text), out, teacher=TinyTeacher(), reporter=notices)
    assert "complete already" in notices.lines[0]
    assert made.manifest.content_digest == whole.manifest.content_digest
    assert made.wide is not None
    assert whole.wide is not None
    assert [s.sha256 for s in made.wide.shards] == [s.sha256 for s in whole.wide.shards]


def test_a_foreign_folder_beside_it_is_refused_before_the_work(text, tmp_path):
    (tmp_path / "ref-wide").mkdir()
    (tmp_path / "ref-wide" / "mine.txt").write_text("mine")
    with pytest.raises(PlanError, match="ref-wide"):
        make_reference("fake:0", config_of(text), tmp_path / "ref", teacher=TinyTeacher())
    assert not (tmp_path / "ref").exists()


def test_a_wide_store_of_another_model_is_said_and_not_taken(text, tmp_path):
    config = config_of(text)
    make_reference("fake:0", config, tmp_path / "a", teacher=TinyTeacher())
    make_reference("fake:0", config, tmp_path / "b", teacher=TinyTeacher(seed=3))
    said = CliRunner().invoke(
        main, ["kld", "near:0", "--store", f"{tmp_path}/a", "--wide", f"{tmp_path}/b-wide"]
    )
    assert said.exit_code == 1
    assert "is of another model" in said.stderr
    Path(tmp_path / "a-wide").rename(tmp_path / "elsewhere")
    Path(tmp_path / "b-wide").rename(tmp_path / "a-wide")
    said = CliRunner().invoke(main, ["kld", "near:0", "--store", f"{tmp_path}/a"])
    assert said.exit_code == 0, said.output
    assert "is not taken for the wide rows" in said.stderr


@pytest.mark.parametrize(
    ("rows", "positions", "every"),
    [
        (41, 20_951, 41),  # one row has nearly 512
        (300, 153_300, 256),
        (5_000, 2_555_000, 256),
        (100, 1_900, 3),  # 27 rows have 512; 100 // 27
        (10, 90, 1),
        (1, 511, 1),
    ],
)
def test_wide_rows_are_512_positions_or_one_in_256(rows, positions, every):
    assert wide_every(rows, positions) == every
    taken = -(-rows // every)
    assert taken * positions / rows >= 500 or taken == rows


def test_impossible_settings(text):
    with pytest.raises(ConfigError, match="--text"):
        ReferenceConfig()
    with pytest.raises(ConfigError, match="--wide-k 20"):
        config_of(text, wide_k=20)
    replace(config_of(text), wide_k=20, wide_every=0)


def test_a_vocabulary_of_no_more_ids_needs_no_wide_rows(text, tmp_path):
    config = config_of(text, k=300, wide_k=301)
    made = make_reference("fake:0", config, tmp_path / "ref", teacher=TinyTeacher())
    assert made.wide is None
    assert np.isneginf(open_store(tmp_path / "ref").row(0).targets.log_odds).all()
