"""Rows of a shard: more where there would be too many shards, said before the corpus is read."""

from __future__ import annotations

import msgspec
import pytest

from softlabels.builder import plan as plan_module
from softlabels.builder import shard_size
from softlabels.builder.plan import plan_build
from softlabels.builder.shard_size import LARGE_ROWS, MOST, ROWS, USUAL, with_shard_rows
from softlabels.core.progress import Silent
from softlabels.core.records import ENTRIES_LIMIT, RECORD_LIMIT, canonical
from softlabels.core.rows import Location
from softlabels.corpora import BytesRead, Corpus, Document, open_corpora
from softlabels.errors import PlanError
from softlabels.format.pages import PAGED_ABOVE
from softlabels.format.shard_records import PlannedShard
from softlabels.making.plan import read_plan
from tests.fakes import TinyTeacher, build_tiny, config_of, write_corpus


class Endless(Corpus):
    """A corpus that says that it is so large; a document has 64 bytes, which are a row of 65 tokens."""

    def __init__(self, size: int) -> None:
        self.spec, self.read = "jsonl:huge", BytesRead(total=size)

    def documents(self):
        while True:
            yield Document(where="huge:1", text="x" * 64)
            self.read.done += 100


@pytest.fixture
def sampled(monkeypatch):
    monkeypatch.setattr(shard_size, "SAMPLE", 2**13)


def asked(shard_rows: int | None, size: int, **changes):
    notices: list[str] = []

    class Noted(Silent):
        def notice(self, message: str) -> None:
            notices.append(message)

    config = config_of("text:/nowhere", seq_len=80, shard_rows=shard_rows, **changes)
    found = with_shard_rows(config, [Endless(size)], TinyTeacher(), Noted())
    return found.shard_rows, notices


def test_a_large_corpus_has_larger_shards_and_says_so(sampled):
    rows = 10**9
    shard_rows, notices = asked(None, 100 * rows)
    assert shard_rows % ROWS == 0
    assert shard_rows == LARGE_ROWS, (
        "what a builder holds in memory, and then there are more shards"
    )
    assert USUAL < rows / shard_rows < MOST
    few = 10**8
    smaller, _ = asked(None, 100 * few)
    assert ROWS < smaller < LARGE_ROWS
    assert 1.2 * few / smaller <= USUAL, "with room for doubt"
    assert 1.5 * few / smaller > USUAL, "and no larger than needed"
    larger, _ = asked(None, 1000 * 10**10)
    assert larger > LARGE_ROWS
    assert 1.2 * 10**11 / larger <= MOST
    (said,) = notices
    assert f"{shard_rows:,} in a shard (--shard-rows)" in said


def test_a_corpus_that_fits_has_the_usual_ones(sampled):
    assert asked(None, 5 * 10**8) == (ROWS, [])
    assert asked(None, 10**5) == (ROWS, [])
    assert asked(None, 10**13, limit_rows=1000) == (ROWS, [])
    assert asked(60, 3 * 10**8) == (60, [])


def test_a_number_that_cannot_fit_is_refused_before_the_pass(sampled):
    with pytest.raises(
        PlanError, match=r"--shard-rows 16: the corpus has about .* use --shard-rows \d+ or more"
    ):
        asked(16, 10**11)


def test_a_pass_ends_as_soon_as_its_shards_cannot_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "CANNOT_FIT", 3)
    config = config_of(write_corpus(tmp_path / "corpus"), shard_rows=1)
    with pytest.raises(PlanError, match="more than 3 shards of 1 rows, which is more than a build"):
        plan_build(config, open_corpora(config.corpus), TinyTeacher(), Silent())


def test_a_plan_without_pages_fits_in_a_record():
    """Of numbers as long as they can be."""
    long = 10**13 - 1
    (largest,) = (
        PlannedShard(
            name=f"data/train-{n:05d}-of-{n:05d}.parquet",
            start_row=n,
            rows=min(n, 10**6),
            positions=min(n, 10**10),
            index=min(n, 10**5),
            document=n,
            offset=min(n, 10**7),
            inputs_sha256="0" * 64,
            source=source,
        )
        for n, source in ((long, Location(corpus=9, file=10**5, row=10**9, byte=long)),)
    )

    plan = canonical({"shards": [msgspec.to_builtins(largest)] * PAGED_ABOVE})
    assert len(plan) < RECORD_LIMIT
    assert sum(plan.count(c) for c in (b",", b"[", b"{")) < ENTRIES_LIMIT


def test_a_build_goes_on_with_the_rows_that_were_planned(tmp_path):
    corpus, out = write_corpus(tmp_path / "corpus"), tmp_path / "s"
    build_tiny(out, corpus, shard_rows=5)
    (out / "manifest.json").unlink()
    build_tiny(out, corpus, shard_rows=None)
    assert read_plan(out).shard_rows == 5
