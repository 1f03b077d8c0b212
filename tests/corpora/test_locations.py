"""Corpora that are read from where a shard begins: the same documents, rows and digests, and nothing before them."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from softlabels.builder.build import Taught
from softlabels.builder.plan import plan_build
from softlabels.core.progress import Silent
from softlabels.core.rows import BEGINNING, Cursor
from softlabels.corpora import Corpus, Document, open_corpora
from softlabels.corpora.files import JsonLines
from softlabels.domains import DOMAINS
from softlabels.domains.maker import CorpusPass
from softlabels.errors import CorpusError
from softlabels.format.manifest import load_manifest
from softlabels.making.job import begin
from softlabels.making.plan import read_plan
from softlabels.testing import check_corpus
from tests.domains.fakes import TinyTextTeacher
from tests.fakes import TinyTeacher, build_tiny, config_of
from tests.store.made_up import files_of

N = 41
"""Documents of each corpus, in two or three files."""


def texts(seed: int = 0) -> list[str]:
    """Most fit in a row of 32 tokens, some take several, some are empty."""
    rng = random.Random(seed)
    lengths = rng.choices((0, 3, 9, 20, 70), (1, 4, 6, 4, 3), k=N - 1)
    return ["begin", *("".join(rng.choices("abcdefé ", k=n)) for n in lengths)]


def parts() -> list[list[str]]:
    return [texts()[:17], texts()[17:30], texts()[30:]]


def write_text(folder: Path) -> str:
    for i, text in enumerate(texts()):
        (folder / f"{i:02d}.txt").write_text(text, encoding="utf-8")
    return f"text:{folder}/*.txt"


def write_jsonl(folder: Path) -> str:
    for i, part in enumerate(parts()):
        lines = [json.dumps({"text": t}, ensure_ascii=False) for t in part]
        (folder / f"{i}.jsonl").write_text("\r\n".join(lines) + "\n" * (i % 2), encoding="utf-8")
    return f"jsonl:{folder}/*.jsonl"


def write_parquet(folder: Path) -> str:
    for i, part in enumerate(parts()):
        table = pa.table({"text": part, "other": list(range(len(part)))})
        pq.write_table(table, folder / f"{i}.parquet", row_group_size=5)
    return f"parquet:{folder}/*.parquet"


def write_dataset(folder: Path) -> str:
    names = []
    for i, part in enumerate(parts()):
        names.append(f"data-{i}.arrow")
        table = pa.table({"text": part})
        with pa.ipc.new_stream(folder / names[-1], table.schema) as out:
            out.write_table(table, max_chunksize=4)
    state = {"_data_files": [{"filename": n} for n in names]}
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    return f"dataset:{folder}"


def write_ids(folder: Path) -> str:
    rng = np.random.default_rng(0)
    np.save(folder / "a.npy", rng.integers(0, 256, (9, 40)))
    np.save(folder / "b.npy", rng.integers(0, 256, 70))
    rows = [rng.integers(0, 256, n).tolist() for n in rng.integers(2, 50, 21)]
    pq.write_table(pa.table({"input_ids": rows}), folder / "c.parquet", row_group_size=4)
    return f"ids:{folder}/*"


WRITERS = [write_text, write_jsonl, write_parquet, write_dataset, write_ids]
CHANGES = {"shard_rows": 2, "seq_len": 32, "skip_empty": True}


@pytest.fixture(params=WRITERS, ids=lambda w: w.__name__.removeprefix("write_"))
def spec(request, tmp_path) -> str:
    (tmp_path / "corpus").mkdir()
    return request.param(tmp_path / "corpus")


def test_documents_from_each_location_are_the_rest(spec):
    check_corpus(spec)
    (corpus,) = open_corpora([spec])
    whole = list(corpus.documents())
    locations = [d.location for d in whole]
    assert len(set(locations)) == len(whole) > 20, "each has its own"
    for i, location in enumerate(locations):
        rest = list(corpus.documents_from(location))
        assert [d.where for d in rest] == [d.where for d in whole[i:]]
        assert [d.location for d in rest] == locations[i:]
        assert all(np.array_equal(a.ids, b.ids) for a, b in zip(rest, whole[i:], strict=True))
        assert [d.text for d in rest] == [d.text for d in whole[i:]]


def rows_from(config, corpora, start=BEGINNING):
    maker = DOMAINS.load(config.domain).maker
    over = CorpusPass(config=config, corpora=corpora, teacher=TinyTeacher(), start=start)
    return [(cursor, row.digest(), row.documents.tolist()) for cursor, row in maker.rows(over)]


def test_rows_from_the_place_of_each_are_those_of_one_pass(spec, tmp_path):
    """With a second corpus behind it, so that locations tell the corpus, too."""
    (tmp_path / "more.txt").write_text("x" * 100, encoding="utf-8")
    config = config_of(spec, **CHANGES)
    corpora = [*open_corpora([spec]), *open_corpora([f"text:{tmp_path}/more.txt"])]
    whole = rows_from(config, corpora)
    assert {cursor.location.corpus for cursor, _, _ in whole} == {0, 1}
    assert any(cursor.offset for cursor, _, _ in whole), "some rows begin within a document"
    for i, (cursor, _, _) in enumerate(whole):
        assert rows_from(config, corpora, cursor) == whole[i:]
        assert rows_from(config, corpora, Cursor(*cursor[:2])) == whole[i:], "as plans of before"


def test_a_builder_reads_nothing_before_its_shard(tmp_path, monkeypatch):
    (tmp_path / "corpus").mkdir()
    spec, store = write_jsonl(tmp_path / "corpus"), tmp_path / "s"
    build_tiny(store, spec, **CHANGES)
    whole, shards = files_of(store), read_plan(store).shards
    for shard in (shards[-1], shards[-2]):
        for name in (f"commits/{shard.index:05d}.json", shard.name):
            (store / name).unlink()
    (store / "manifest.json").unlink()
    read, original = [], JsonLines.documents_from

    def documents_from(self, location):
        for document in original(self, location):
            read.append(document.location)
            yield document

    monkeypatch.setattr(JsonLines, "documents_from", documents_from)
    build_tiny(store, spec, **CHANGES)
    taught = [
        at for at in read if at.file or at.row >= 8
    ]  # 8 are looked at when a corpus is opened
    assert taught[0] == shards[-2].source, "one seek, to the first of two shards in order"
    assert len(taught) == len(set(taught)), "and nothing is read twice"
    assert files_of(store).keys() == whole.keys()
    assert all(whole[n] == d for n, d in files_of(store).items() if n.startswith("data/"))


class Bare(Corpus):
    """A corpus that gives no locations: a plug-in, or what a plan of before was made from."""

    def __init__(self, spec: str) -> None:
        self.spec, (self._corpus,) = spec, open_corpora([spec])

    def documents(self):
        for d in self._corpus.documents():
            yield Document(where=d.where, text=d.text, ids=d.ids, learn=d.learn)


def test_a_plan_without_places_goes_on(spec, tmp_path):
    config, out = config_of(spec, **CHANGES), tmp_path / "s"
    plan, files = plan_build(config, open_corpora([spec]), TinyTeacher(), Silent())
    bare, _ = plan_build(config, [Bare(spec)], TinyTeacher(), Silent())
    assert all(s.source is not None for s in plan.shards)
    assert [replace(s, source=None) for s in plan.shards] == bare.shards
    assert plan.identity == bare.identity
    begin(out, bare, files, Silent())
    begin(out, plan, files, Silent())  # the same job
    build_tiny(out, spec, **CHANGES)
    assert read_plan(out).shards == bare.shards
    manifest = build_tiny(tmp_path / "new", spec, **CHANGES)
    assert load_manifest(out).content_digest == manifest.content_digest


def test_claims_are_renewed_while_a_corpus_is_read_from_its_beginning(tmp_path):
    """A plan of before: many documents are passed over, and each is a sign of life."""
    (tmp_path / "corpus").mkdir()
    spec = write_jsonl(tmp_path / "corpus")
    signs = []
    config = config_of(spec, **CHANGES)
    over = CorpusPass(
        config=config,
        corpora=open_corpora([spec]),
        teacher=TinyTeacher(),
        start=Cursor(N - 2, 0),
        alive=lambda: signs.append(1),
    )
    list(DOMAINS.load(config.domain).maker.rows(over))
    assert len(signs) == N


def test_a_line_that_begins_elsewhere_now_is_said(tmp_path):
    (tmp_path / "corpus").mkdir()
    (corpus,) = open_corpora([write_jsonl(tmp_path / "corpus")])
    at = [d.location for d in corpus.documents()][5]
    file = tmp_path / "corpus/0.jsonl"
    file.write_text(" " + file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(
        CorpusError, match=r"0\.jsonl:6: no line begins at byte .*the corpus changed"
    ):
        next(corpus.documents_from(at))


@pytest.mark.parametrize("name", ["masked-lm", "sequence-classification"])
def test_other_domains_begin_at_a_place(name, tmp_path):
    """A masked LM goes through its corpus several times; each view begins anywhere."""
    (tmp_path / "corpus").mkdir()
    spec = write_jsonl(tmp_path / "corpus")
    teacher = TinyTextTeacher(None if name == "masked-lm" else ("bad", "good"))
    changes = {"seq_len": 12, "skip_empty": True, "domain": name}
    changes |= {"views": 3} if name == "masked-lm" else {"truncate": True}
    config = config_of(spec, **changes)
    maker = DOMAINS.load(name).maker

    def rows(start=BEGINNING):
        over = CorpusPass(config=config, corpora=open_corpora([spec]), teacher=teacher, start=start)
        return [(cursor, row.digest(), row.document) for cursor, row in maker.rows(over)]

    whole = rows()
    assert {c.location.view for c, _, _ in whole} == ({0, 1, 2} if name == "masked-lm" else {0})
    for i, (cursor, _, _) in enumerate(whole[::3]):
        assert rows(cursor) == whole[3 * i :]


def test_a_shard_that_is_far_in_a_corpus_gives_signs_of_life_on_the_way(tmp_path):
    """What renews the claim is told of each document, though the shard has come no further."""
    (tmp_path / "corpus").mkdir()
    spec = write_jsonl(tmp_path / "corpus")
    config, corpora = config_of(spec, **CHANGES), [Bare(spec)]
    plan, _ = plan_build(config, corpora, TinyTeacher(), Silent())
    job = Taught(config, tmp_path / "s", teacher=TinyTeacher(), corpora=corpora)
    signs: list[int] = []
    job.shard(plan, len(plan.shards) - 1, signs.append)
    last = plan.shards[-1]
    assert signs[: last.document] == [0] * last.document
    assert sum(signs) == last.positions
