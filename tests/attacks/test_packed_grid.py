"""Hostile stores of the profile packed with a large grid of temperatures: some bytes for each of its streams."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from softlabels import open_store
from softlabels.core.rows import Row
from softlabels.core.summary import Summary
from softlabels.core.targets import SoftTargets
from softlabels.errors import TargetError
from softlabels.format import packed
from softlabels.format.manifest import load_manifest
from softlabels.format.packed_rows import check_size
from softlabels.format.plain import log_odds_column
from softlabels.format.shard import Shard
from tests.attacks.test_attacks import MEGABYTES, SECONDS
from tests.attacks.test_packed_attacks import in_vocabulary, put_streams, tried
from tests.fakes import build_tiny, write_corpus
from tests.store.made_up import reseal, write_sealed


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    corpus = write_corpus(folder / "corpus", documents=2, repeat=1)
    build_tiny(folder / "store", corpus, limit_rows=6, shard_rows=3, profile="packed")
    return folder / "store"


def odds_at(store: Path, temperatures: int, tokens: int) -> None:
    """Put rows of so many tokens into the first shard, with log-odds of 0; all digests are right."""
    identity = load_manifest(store).identity
    row = Row(
        input_ids=np.zeros(tokens, np.int32),
        segment_lengths=np.array([tokens], np.int32),
        documents=np.array([0], np.int64),
        label_mask=np.arange(tokens) < tokens - 1,
    )
    n = 3 * (tokens - 1)
    zeros = np.zeros((n, 1), np.float32)
    targets = SoftTargets(
        ids=np.zeros((n, 1), np.int32),
        gaps=zeros,
        log_odds=zeros,
        temperatures=(1.0,),
        vocab_size=identity.teacher.vocab_size,
        estimator=identity.targets.estimator,
        summary=Summary(label_logp=zeros[:, 0], entropy=zeros[:, 0], top=np.zeros(n, np.int32)),
    )
    made = packed.streams_of(Shard(start_row=0, rows=[row] * 3, targets=targets), identity, None)
    odds, grid = made["log_odds_T1"], [1 + i / 2**20 for i in range(temperatures)]
    put_streams(store, lambda _: made | {log_odds_column(t): odds for t in grid})
    for record in ("manifest.json", "plan.json"):
        reseal(store / record, shards__0__positions=n)
    reseal(store / "commits/00000.json", positions=n)
    in_vocabulary(store, targets__temperatures=grid, corpus__seq_len=tokens)
    raw = json.loads((store / "manifest.json").read_bytes())
    raw["statistics"]["kept_mass"] = [0.5] * temperatures
    raw["identity"]["corpus"]["positions"] = sum(s["positions"] for s in raw["shards"])
    write_sealed(store / "manifest.json", raw)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux tells it"
)
def test_log_odds_at_a_thousand_temperatures_are_refused(good, tmp_path):
    """They would decode to 1.6 GB, besides what is kept."""
    bad = Path(shutil.copytree(good, tmp_path / "bad"))
    odds_at(bad, 1024, 2**17)
    results = tried(good, bad)
    assert results["read"][0] == results["verify"][0] == "refused", results
    for work, (_, seconds, megabytes) in results.items():
        assert seconds < SECONDS, (work, results)
        assert megabytes < MEGABYTES, (work, results)
    n = 3 * (2**17 - 1)
    with pytest.raises(TargetError, match=rf"log-odds of {n} positions at 1024 temperatures take"):
        open_store(bad).shard(0)


def test_a_grid_within_the_bound_is_read(good, tmp_path):
    """Nothing else of the attack would be refused."""
    copy = Path(shutil.copytree(good, tmp_path / "copy"))
    odds_at(copy, 64, 2**10)
    odds = open_store(copy).shard(0).targets.log_odds
    assert odds.shape == (3 * (2**10 - 1), 64)
    assert odds.dtype == np.float32
    assert not odds.any()


def test_the_bound_of_a_grid_is_its_own():
    """What was written before grids were counted is read: with up to 2 K temperatures it is within the bound."""
    n, k = 2**20, 127
    check_size(n, k, n, grid=2 * k)
    check_size(2**18, 0, 0, grid=1024)
    with pytest.raises(TargetError, match=r"w: the log-odds .* lower --shard-rows"):
        check_size(2**18 + 1, 0, 0, "w: ", grid=1024)
