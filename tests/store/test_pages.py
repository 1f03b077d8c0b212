"""Stores whose shards lie in pages: the same rows, and every lie of a page refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softlabels.algebra.merge import merge
from softlabels.algebra.subset import subset
from softlabels.algebra.subset_config import SubsetConfig
from softlabels.core.records import canonical, digest_of, file_record
from softlabels.errors import FormatError, IntegrityError, PlanError
from softlabels.format import pages
from softlabels.format.manifest import MANIFEST, content_digest, load_manifest
from softlabels.format.pages import Pages, chunks, column, positions_of
from softlabels.format.shard_records import ManifestPages
from softlabels.making.place.plan import Mirror
from softlabels.making.place.repair import repair_in
from softlabels.making.plan import read_plan
from softlabels.making.repair import repair_store
from softlabels.store.known import KnownNames
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.fakes import build_tiny, write_corpus
from tests.store.made_up import files_of
from tests.store.memory_place import MemoryPlace

SHARDS = 5


def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of two shards, from three shards on."""
    monkeypatch.setattr(pages, "PAGED_ABOVE", 2)
    monkeypatch.setattr(pages, "PAGE_SHARDS", 2)


@pytest.fixture(scope="module")
def both(tmp_path_factory, corpus) -> tuple[Path, Path]:
    """One job, without pages and with them. Read only."""
    folder = tmp_path_factory.mktemp("both")
    build_tiny(folder / "single", corpus, limit_rows=10, shard_rows=2, temperature=(1.0,))
    with pytest.MonkeyPatch.context() as patch:
        small_pages(patch)
        build_tiny(folder / "paged", corpus, limit_rows=10, shard_rows=2, temperature=(1.0,))
    return folder / "single", folder / "paged"


@pytest.fixture
def paged(both, tmp_path) -> Path:
    """A copy of the store with pages, to break."""
    return Path(shutil.copytree(both[1], tmp_path / "paged"))


def page_files(store: Path, stem: str = "manifest") -> list[Path]:
    return sorted((store / "pages").glob(f"{stem}-*.parquet"))


def test_a_store_in_pages_holds_the_same_rows(both):
    single, found = (open_store(path) for path in both)
    assert isinstance(found.manifest.shards, Pages)
    assert not isinstance(single.manifest.shards, Pages)
    assert found.manifest.version == "1.7"
    assert single.manifest.version == "1.6"
    records = list(single.manifest.shards)
    assert list(found.manifest.shards) == records
    assert [found.manifest.shards[i] for i in range(-SHARDS, SHARDS)] == records * 2
    assert found.manifest.shards[1:4] == records[1:4]
    assert len(found.manifest.shards) == SHARDS
    assert found.manifest.data_bytes == single.manifest.data_bytes
    assert found.manifest.statistics == single.manifest.statistics
    for row in range(len(single)):
        assert found.locate(row) == single.locate(row)
        np.testing.assert_array_equal(found.row(row).targets.gaps, single.row(row).targets.gaps)
    with pytest.raises(IndexError):
        found.manifest.shards[SHARDS]


def test_no_page_is_read_before_a_shard_is_asked_for(paged):
    for page in page_files(paged):
        page.unlink()
    store = open_store(paged)
    assert len(store) == 10
    with pytest.raises(IntegrityError, match=r"pages/manifest-00001-.*missing"):
        store.row(5)


def test_the_plan_is_in_pages_and_says_the_same(both):
    single, found = (read_plan(path) for path in both)
    assert list(found.shards) == single.shards
    assert [found.shards[i] for i in (4, 0)] == [single.shards[4], single.shards[0]]
    assert {p.name.partition("-")[0] for p in (both[1] / "pages").iterdir()} == {"plan", "manifest"}
    assert len(page_files(both[1], "plan")) == 3
    assert positions_of(found.shards) == positions_of(single.shards)
    for some in ([0, 1, 2], [], [4], [3, 1]):
        chosen = np.array(some, np.int64)
        assert positions_of(found.shards, chosen) == positions_of(single.shards, chosen)
    np.testing.assert_array_equal(column(found.shards, "rows"), column(single.shards, "rows"))


def test_the_content_digest_is_over_what_the_pages_hold(both):
    manifest = load_manifest(both[1])
    assert manifest.content_digest == content_digest(manifest.identity, manifest.shards)
    with pytest.MonkeyPatch.context() as patch:
        small_pages(patch)
        again, _ = ManifestPages.written(load_manifest(both[0]).shards)
    assert content_digest(manifest.identity, again) == manifest.content_digest
    assert manifest.content_digest != load_manifest(both[0]).content_digest


def test_verify_checks_pages_and_goes_on_after_a_damaged_one(paged):
    report = verify_store(paged)
    assert report.problems == []
    assert report.files == SHARDS + 6 + len(load_manifest(paged).files) + 1
    second = page_files(paged)[1]
    data = bytearray(second.read_bytes())
    data[len(data) // 2] ^= 1
    second.write_bytes(data)
    torn = paged / "data" / sorted(p.name for p in (paged / "data").iterdir())[4]
    torn.write_bytes(b"torn")
    for deep in (True, False):
        problems = verify_store(paged, deep=deep).problems
        assert any(str(second) in p and "altered" in p for p in problems)
        assert any(torn.name in p and "torn" in p for p in problems), "the last page was reached"


def test_a_stranger_among_the_pages_is_reported(paged):
    (paged / "pages" / "manifest-00007-0123456789ab.parquet").write_bytes(b"mine")
    (problem,) = verify_store(paged).problems
    assert "no record of the store names it" in problem


def test_repair_makes_a_manifest_page_again(paged):
    before = load_manifest(paged)
    first = page_files(paged)[0]
    data = first.read_bytes()
    first.write_bytes(data[:-1])
    assert "torn" in verify_store(paged, deep=False).problems[0]
    assert repair_store(paged).whole
    assert first.read_bytes() == data
    assert load_manifest(paged).content_digest == before.content_digest
    assert [p for p in verify_store(paged).problems if "quarantine" not in p] == []


@pytest.mark.parametrize("manifest", [True, False])
def test_a_torn_page_is_no_strangers_though_the_manifest_is_gone_that_named_it(paged, manifest):
    """A repair that died between the two leaves it so; in a bucket as in a folder."""
    page = sorted((paged / "pages").glob("manifest-*"))[1]
    page.write_bytes(page.read_bytes()[:-1])
    if not manifest:
        (paged / "manifest.json").unlink()
    place = MemoryPlace()
    for name, data in files_of(paged).items():
        place.put(name, data)
    assert repair_store(paged, dry_run=True).problems == []
    assert repair_store(paged).whole
    assert verify_store(paged).problems == []
    assert repair_in(Mirror(place, paged.parent / "scratch")).whole
    ours = {n for n in place.files if not n.startswith("quarantine/")}
    assert ours == {n for n in files_of(paged) if not n.startswith("quarantine/")}


def test_repair_does_not_touch_a_store_whose_plan_lost_a_page(paged):
    page_files(paged, "plan")[2].unlink()
    with pytest.raises(IntegrityError, match="The plan cannot be made from the other files"):
        repair_store(paged)


def test_a_build_that_broke_off_goes_on(paged, corpus, monkeypatch):
    digest = load_manifest(paged).content_digest
    (paged / MANIFEST).unlink()
    (paged / "commits/00003.json").unlink()
    for page in page_files(paged)[1:]:
        page.unlink()
    small_pages(monkeypatch)
    build_tiny(paged, corpus, limit_rows=10, shard_rows=2, temperature=(1.0,))
    assert load_manifest(paged).content_digest == digest
    assert verify_store(paged).problems == []


def test_a_store_of_before_goes_on_without_pages(both, tmp_path, corpus, monkeypatch):
    """What a version without pages began is finished as it would have been, to the byte."""
    store = Path(shutil.copytree(both[0], tmp_path / "s"))
    before = (store / MANIFEST).read_bytes()
    (store / MANIFEST).unlink()
    small_pages(monkeypatch)
    build_tiny(store, corpus, limit_rows=10, shard_rows=2, temperature=(1.0,))
    assert not (store / "pages").exists()
    first, second = (json.loads(d) for d in (before, (store / MANIFEST).read_bytes()))
    assert first["shards"] == second["shards"]
    assert first["content_digest"] == second["content_digest"]


def test_pages_that_no_record_names_are_cleared(paged, corpus, monkeypatch):
    """A page of a builder whose manifest was not the one in force; what is not ours stays."""
    small_pages(monkeypatch)
    _, files = ManifestPages.written(list(load_manifest(paged).shards)[:1])
    ((left, data),) = files.items()
    (paged / left).write_bytes(data)
    mine = paged / "pages" / "manifest-00000-0123456789ab.parquet"
    mine.write_bytes(b"mine")
    build_tiny(paged, corpus, limit_rows=10, shard_rows=2, temperature=(1.0,))
    assert not (paged / left).exists()
    assert mine.read_bytes() == b"mine"
    assert len(verify_store(paged).problems) == 1


def test_another_job_is_refused(paged, corpus, monkeypatch):
    small_pages(monkeypatch)
    with pytest.raises(PlanError, match="--shard-rows"):
        build_tiny(paged, corpus, limit_rows=10, shard_rows=1, temperature=(1.0,))


def test_a_merge_of_stores_in_pages_is_in_pages(paged, tmp_path, monkeypatch):
    small_pages(monkeypatch)
    other = build_tiny(
        tmp_path / "other", write_corpus(tmp_path / "text", documents=5), limit_rows=3, shard_rows=2
    )
    merged = merge([paged, tmp_path / "other"], tmp_path / "merged")
    assert [p.shards for p in merged.shards.pages] == [2, 2, 2, 1]
    assert [s.sha256 for s in merged.shards] == [
        s.sha256 for m in (load_manifest(paged), other) for s in m.shards
    ]
    assert len(list(open_store(tmp_path / "merged"))) == 13
    assert verify_store(tmp_path / "merged").problems == []
    again = merge([paged, tmp_path / "other"], tmp_path / "merged")
    assert again.digest == merged.digest


def test_what_is_derived_from_a_store_in_pages(paged, tmp_path):
    made = subset(paged, SubsetConfig(where="row < 4"), tmp_path / "s")
    assert not isinstance(made.shards, Pages), "it has no more than a store has without pages"
    assert len(list(open_store(tmp_path / "s"))) == 4


# -- hostile pages ----------------------------------------------------------------------------------


def rewritten(store: Path, change, *, says=lambda page: None) -> None:
    """Change the table of the second page, and have the root say what it then is, its digests right.

    Args:
        change: given the table, the new one, or the bytes of the file.
        says: changes what the root says of the page beyond the file's digest and size.
    """
    raw = json.loads((store / MANIFEST).read_bytes())
    page = raw["shards"]["pages"][1]
    path = store / page["name"]
    found = change(pq.read_table(path))
    if isinstance(found, pa.Table):
        how = {"use_dictionary": False, "compression": "zstd", "store_schema": False}
        pq.write_table(found, path, **how)
        data = path.read_bytes()
    else:
        data = found
        path.write_bytes(data)
    page |= msgspec.to_builtins(file_record(data))
    says(page)
    sealed(store, raw)


def sealed(store: Path, raw: dict) -> None:
    """Write a root whose digests are right."""
    named = {"pages": [[p["shards"], p["content"]] for p in raw["shards"]["pages"]]}
    content = canonical({"identity": raw["identity"], "shards": named})
    raw["content_digest"] = hashlib.sha256(content).hexdigest()
    raw["digest"] = digest_of(raw)
    (store / MANIFEST).write_bytes(canonical(raw))


def column_of(name: str, values) -> callable:
    """A change of one column."""

    def changed(table: pa.Table) -> pa.Table:
        field = table.schema.field(name)
        made = pa.array(values, field.type if not isinstance(values, pa.Array) else None)
        at = table.schema.get_field_index(name)
        return table.set_column(at, pa.field(name, made.type), made)

    return changed


NAMES = ["data/train-00002-of-00005.parquet", "data/train-00003-of-00005.parquet"]
LIES = {
    "not Parquet": (lambda t: b"PAR1 no PAR1", "not a readable Parquet file"),
    "empty": (lambda t: b"\0", "not a readable Parquet file"),
    "fewer shards": (lambda t: t.slice(0, 1), "holds 1 shards, the record says 2"),
    "more shards": (lambda t: pa.concat_tables([t, t]), "holds 4 shards, the record says 2"),
    "other rows": (column_of("rows", [2, 3]), "do not follow one another|rows are 5"),
    "fewer rows": (column_of("rows", [2, 1]), "rows are 3 in all"),
    "no rows": (column_of("rows", [0, 4]), "do not follow one another"),
    "a gap": (column_of("start_row", [4, 7]), "do not follow one another from row 4"),
    "other positions": (column_of("positions", [1, 1]), "its positions are 2 in all"),
    "a negative number": (column_of("positions", [-1, 1]), "outside 0..9007199254740992"),
    "a number beyond all": (column_of("bytes", [2**62, 1]), "outside 0..9007199254740992"),
    "other bytes": (column_of("bytes", [1, 1]), "its bytes are 2 in all"),
    "other names": (column_of("name", NAMES[::-1]), "are not those of the manifest's content digest"),
    "other digests": (column_of("sha256", [b"0" * 32] * 2), "are not those of the manifest's content"),
    "no digest": (lambda t: t.drop_columns("sha256"), "has no column 'sha256'"),
    "short digests": (column_of("sha256", pa.array([b"0"] * 2)), "column 'sha256' is binary"),
    "nulls": (column_of("positions", [None, 4]), "column 'positions' holds nulls"),
    "text for a number": (column_of("rows", pa.array(["2", "2"])), "column 'rows' is string"),
    "counts of parts": (column_of("counts_from", [0, None]), "belongs to the profile"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_page_that_lies_is_refused_in_a_sentence(paged, lie):
    change, sentence = LIES[lie]
    rewritten(paged, change)
    store = open_store(paged)
    assert store.row(0).targets.n, "the other pages are read"
    with pytest.raises((IntegrityError, FormatError), match=sentence) as refused:
        store.row(5)
    assert "pages/manifest-00001" in str(refused.value)
    with pytest.raises((IntegrityError, FormatError), match=sentence):
        list(store.manifest.shards)
    assert any(re.search(sentence, p) for p in verify_store(paged, deep=False).problems)


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "data/\n", ""])
def test_names_that_lead_out_of_the_store_are_refused(paged, name):
    before = load_manifest(paged)
    assert before.shards[2].name == NAMES[0]
    shas = [s.sha256 for s in before.shards[2:4]]
    text = "".join(f"{n} {sha}\n" for n, sha in zip([NAMES[0], name], shas, strict=True))
    digest = hashlib.sha256(text.encode()).hexdigest()
    rewritten(
        paged, column_of("name", [NAMES[0], name]), says=lambda page: page.update(content=digest)
    )
    with pytest.raises(FormatError, match="not a valid page"):
        open_store(paged).row(7)


def test_a_dictionary_in_a_page_is_refused_before_it_is_decoded(paged):
    """A few bytes would stand for any number of long names."""

    def coded(table: pa.Table) -> bytes:
        sink = io.BytesIO()
        pq.write_table(table, sink, use_dictionary=["name"], store_schema=False)
        return sink.getvalue()

    rewritten(paged, coded)
    with pytest.raises(IntegrityError, match="column 'name' is coded once more"):
        open_store(paged).row(5)


ROOTS = {
    "no page": (lambda pages: pages.clear(), "names no page, or one twice"),
    "a page twice": (lambda pages: pages[1].update(name=pages[0]["name"]), "names no page, or one"),
    "a huge page": (lambda pages: pages[1].update(bytes=2**40), "at most 65,536 in 16,777,216"),
    "many shards": (lambda pages: pages[1].update(shards=10**9), "at most 65,536 in 16,777,216"),
    "endless rows": (lambda pages: [p.update(rows=2**53) for p in pages], "more than 9007199254"),
    "other rows": (lambda pages: pages[1].update(rows=7), "shards hold 13 rows, the corpus record"),
    "out of the store": (lambda pages: pages[1].update(name="../x"), "not a valid manifest"),
    "no shards": (lambda pages: pages[1].update(shards=0), "not a valid manifest"),
}


@pytest.mark.parametrize("lie", ROOTS)
def test_a_root_that_lies_is_refused_when_it_is_opened(paged, lie):
    change, sentence = ROOTS[lie]
    raw = json.loads((paged / MANIFEST).read_bytes())
    change(raw["shards"]["pages"])
    sealed(paged, raw)
    with pytest.raises(FormatError, match=sentence):
        open_store(paged)


def test_a_page_that_is_exchanged_is_another_store(paged):
    """The content digest is over what pages hold, so a page cannot be exchanged behind it."""
    digest = load_manifest(paged).content_digest
    raw = json.loads((paged / MANIFEST).read_bytes())
    raw["shards"]["pages"][0]["content"] = "0" * 64
    raw["digest"] = digest_of(raw)
    (paged / MANIFEST).write_bytes(canonical(raw))
    with pytest.raises(IntegrityError, match="content_digest does not match"):
        open_store(paged)
    sealed(paged, raw)
    assert load_manifest(paged).content_digest != digest
    with pytest.raises(IntegrityError, match="content digest"):
        open_store(paged, digest=digest)


def test_a_pipe_for_a_page_is_refused_and_a_link_is_followed(paged, tmp_path):
    first, second, _ = page_files(paged)
    first.rename(tmp_path / "elsewhere.parquet")
    first.symlink_to(tmp_path / "elsewhere.parquet")
    second.unlink()
    os.mkfifo(second)
    store = open_store(paged)
    assert store.row(0).targets.n
    with pytest.raises(IntegrityError, match="not a regular file"):
        store.row(5)


def test_a_name_in_two_pages_is_found_by_verify(paged):
    shards = list(load_manifest(paged).shards)
    shards[4] = msgspec.structs.replace(shards[4], name=shards[0].name)
    with pytest.MonkeyPatch.context() as patch:
        small_pages(patch)
        found, files = ManifestPages.written(shards)
    for name, data in files.items():
        (paged / name).parent.mkdir(exist_ok=True)
        (paged / name).write_bytes(data)
    raw = json.loads((paged / MANIFEST).read_bytes())
    raw["shards"] = msgspec.to_builtins(found)
    sealed(paged, raw)
    problems = verify_store(paged, deep=False).problems
    assert any("1 shards have the name of another" in p for p in problems)


def test_a_plan_page_that_lies_is_refused(paged, corpus, monkeypatch):
    small_pages(monkeypatch)
    (paged / MANIFEST).unlink()
    (paged / "commits/00002.json").unlink()
    second = page_files(paged, "plan")[1]
    second.write_bytes(second.read_bytes()[:-4] + b"PAR2")
    with pytest.raises(IntegrityError, match=r"pages/plan-00001.*altered"):
        build_tiny(paged, corpus, limit_rows=10, shard_rows=2, temperature=(1.0,))


# -- names ------------------------------------------------------------------------------------------


def test_known_names():
    known = KnownNames(f"data/{i}" for i in range(1000))
    for i in range(5):
        known.add(f"commits/{i}")
    there = [f"data/{i}" for i in range(0, 1002)] + ["commits/4", "x", "\udcff"]
    assert list(known.strangers(there)) == ["data/1000", "data/1001", "x", "\udcff"]
    assert known.repeated() == 0
    known.add("data/7")
    assert known.repeated() == 1
    assert list(KnownNames().strangers(["a"])) == ["a"]


def test_chunks_are_all_shards(both):
    for store in both:
        shards = load_manifest(store).shards
        found = [s for chunk in chunks(shards) for s in chunk.read()]
        assert found == list(shards)
        assert sum(c.shards for c in chunks(shards)) == SHARDS
