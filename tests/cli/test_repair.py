"""`softlabels repair`: what it says, as text and as JSON, and how it ends."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from softlabels.cli.main import main
from tests.fakes import build_tiny, write_corpus

SHARD = "data/train-00001-of-00003.parquet"

LOST = "; a licence, fidelity or release recorded after the build, which was in it, must be recorded again"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("repair")
    build_tiny(folder / "store", write_corpus(folder / "corpus"), limit_rows=6, shard_rows=2)
    return folder / "store"


@pytest.fixture
def store(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "store"))


@pytest.fixture(autouse=True)
def _restore_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def repair(*arguments, exit_code: int) -> Result:
    result = CliRunner().invoke(main, ["repair", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result


def test_a_whole_store(store):
    assert repair(store, exit_code=0).stdout == f"{store}: whole; 0 repairs\n"
    assert json.loads(repair(store, "--json", exit_code=0).stdout) == {
        "store": str(store),
        "whole": True,
        "dry_run": False,
        "actions": [],
        "rebuild": [],
        "problems": [],
        "quarantine": [],
    }


def test_a_lost_manifest_is_made_again(store):
    (store / "manifest.json").unlink()
    dry = repair(store, "--dry-run", exit_code=0)
    assert dry.stdout == (
        f"would publish manifest.json: missing{LOST}\n{store}: would be whole; 1 repair\n"
    )
    assert not (store / "manifest.json").exists()
    done = repair(store, exit_code=0)
    assert done.stdout == f"publish manifest.json: missing{LOST}\n{store}: whole; 1 repair\n"
    assert CliRunner().invoke(main, ["verify", str(store)]).exit_code == 0


def test_a_damaged_shard_needs_a_build(store):
    (store / SHARD).write_bytes(b"")
    dry = repair(store, "--dry-run", exit_code=1)
    assert f"\nwould withdraw {SHARD}: sha256 is " in dry.stdout
    assert "`softlabels build` after `softlabels repair` to make exactly those" in dry.stderr
    assert (store / SHARD).exists()
    values = json.loads(repair(store, "--json", exit_code=1).stdout)
    assert values["rebuild"] == [SHARD]
    assert [a["file"] for a in values["actions"]] == [
        "manifest.json",
        "README.md",
        SHARD,
        "commits/00001.json",
    ]
    (aside,) = values["quarantine"]
    assert (store / aside).read_bytes() == b""
    again = repair(store, exit_code=1)
    assert again.stdout.strip() == (
        f"{store}: 1 files lie in its quarantine folder, which belongs to no store; look at them, and move them to "
        "where they belong"
    )
    assert f"error: {store}: 1 shards must be built; run the same `softlabels build` again" in (
        again.stderr
    )


def test_a_damaged_plan_is_a_sentence(store):
    (store / "plan.json").write_bytes(b"{}")
    result = repair(store, exit_code=1)
    assert result.stdout == ""
    assert f"error: {store / 'plan.json'}: " in result.stderr
    assert "nothing was changed" in result.stderr


def test_what_is_not_a_store(tmp_path):
    assert "not a store" in repair(tmp_path / "none", exit_code=1).stderr
