"""Generated pages are what would be generated now; the snippets of the format's specification run."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from softlabels import open_store
from softlabels.algebra.convert import convert
from softlabels.cli.main import main as softlabels_main
from softlabels.core.records import FORMAT_VERSION, PAGED_VERSION
from tests.blocks import to_run
from tests.fakes import build_tiny, write_corpus
from trainers.cli import main as softtrain_main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FORMAT_MD = (DOCS / "format.md").read_text(encoding="utf-8")
PYTHON = to_run("format.md", "python")
README = (ROOT / "README.md").read_text(encoding="utf-8")
SQL = to_run("format.md", "sql")


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("docs")
    corpus = write_corpus(folder / "corpus", documents=2, repeat=1)
    build_tiny(folder / "topk", corpus, temperature=(0.5, 1.0, 2.0))
    build_tiny(folder / "sampled", corpus, estimator="sampled")
    build_tiny(folder / "some", corpus, temperature=(0.5, 1.0, 2.0), k=2, positions="entropy:0.3")
    build_tiny(folder / "zarr", corpus, temperature=(0.5, 1.0, 2.0), container="zarr", shard_rows=3)
    return {name: folder / name for name in ("topk", "sampled", "some", "zarr")}


def _page(script: str) -> tuple[str, Path, str]:
    module = runpy.run_path(str(DOCS / script))
    return module["render"](), module["PATH"], module["COMMAND"]


# -- generated files ------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["make_cli.py", "make_schema.py"])
def test_generated_page_is_up_to_date(script):
    page, path, command = _page(script)
    assert path.read_text(encoding="utf-8") == page, f"{path} is out of date; run: {command}"
    assert command == f"python docs/{script}"


@pytest.mark.slow
@pytest.mark.parametrize("script", ["make_cli.py", "make_schema.py"])
def test_check_finds_a_stale_page(script, tmp_path):
    """On a copy, so that the page of the checkout is left alone."""
    copy = tmp_path / script
    copy.write_text((DOCS / script).read_text(encoding="utf-8"), encoding="utf-8")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", RUN_IN_ROOT, str(copy), *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    missing = run("--check")
    assert missing.returncode == 1
    assert f"run: python docs/{script}" in missing.stderr
    assert run("--chekc").returncode == 2
    assert run().returncode == 0
    assert run("--check").returncode == 0
    (page,) = (p for p in tmp_path.iterdir() if p != copy)
    page.write_text(page.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert run("--check").returncode == 1


def test_the_table_of_what_can_be_added_is_up_to_date():
    made = runpy.run_path(str(DOCS / "make_contributing.py"))
    page = made["PATH"].read_text(encoding="utf-8")
    assert made["render"](page) == page, f"out of date; run: {made['COMMAND']}"
    stale = page.replace("softlabels.testing.check_codec", "nothing")
    assert stale != page
    assert made["render"](stale) == page


RUN_IN_ROOT = """
import runpy, sys
sys.path.insert(0, ".")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_cli_page_does_not_depend_on_the_terminal(monkeypatch):
    page = _page("make_cli.py")[0]
    monkeypatch.setenv("COLUMNS", "40")
    assert _page("make_cli.py")[0] == page
    assert max(map(len, page.split("```text")[1].splitlines())) > 60


def test_cli_page_names_every_command_and_flag():
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    for program, main in (("softlabels", softlabels_main), ("softtrain", softtrain_main)):
        for name, command in main.commands.items():
            _, _, section = page.partition(f"\n### {program} {name}\n")
            section = section.partition("\n##")[0]
            for parameter in command.params:
                for flag in parameter.opts if parameter.param_type_name == "option" else ():
                    assert re.search(rf"^  {flag} ", section, re.MULTILINE), (program, name, flag)


# -- schema ---------------------------------------------------------------------------------------


def _validate(record: Any, definition: str) -> None:
    schema = json.loads((DOCS / "manifest.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema | {"$ref": f"#/$defs/{definition}"}).validate(record)


@pytest.mark.parametrize("estimator", ["topk", "sampled", "some"])
def test_real_records_fit_the_schema(stores, estimator):
    store = stores[estimator]
    schema = json.loads((DOCS / "manifest.schema.json").read_text(encoding="utf-8"))
    manifest = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
    jsonschema.validate(manifest, schema)
    _validate(json.loads((store / "plan.json").read_text(encoding="utf-8")), "Plan")
    commits = sorted((store / "commits").iterdir())
    assert commits
    for path in commits:
        _validate(json.loads(path.read_text(encoding="utf-8")), "Commit")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("format",), "softlabel"),
        (("version",), "2.0"),
        (("content_digest",), "ABC"),
        (("identity", "teacher", "vocab_size"), 0),
        (("identity", "targets", "temperatures"), [0.0]),
        (("shards", 0, "name"), "../outside"),
        (("shards", 0, "rows"), "8"),
    ],
)
def test_schema_refuses(stores, where, value):
    manifest = json.loads((stores["topk"] / "manifest.json").read_text(encoding="utf-8"))
    *path, last = where
    place = manifest
    for key in path:
        place = place[key]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        _validate(manifest, "Manifest")


def test_schema_allows_what_a_later_minor_version_adds(stores):
    manifest = json.loads((stores["topk"] / "manifest.json").read_text(encoding="utf-8"))
    manifest["version"] = "1.8"
    manifest["news"] = manifest["identity"]["news"] = {"a": 1}
    _validate(manifest, "Manifest")


# -- format.md ------------------------------------------------------------------------------------


def test_format_page_names_its_version():
    assert FORMAT_MD.splitlines()[0].endswith(f"format {PAGED_VERSION}")
    assert FORMAT_VERSION < PAGED_VERSION  # of stores without pages


def test_format_page_names_every_column_and_only_those(stores):
    import pyarrow.parquet as pq

    shard = next((stores["topk"] / "data").iterdir())
    names = set(pq.read_schema(shard).names)
    table = FORMAT_MD.partition("## 4. Shards")[2].partition("**Positions.**")[0]
    table += FORMAT_MD.partition("## 15. Summaries")[2].partition("With u =")[0]
    documented = set(re.findall(r"^\| `(\w+)…?` \|", table, re.MULTILINE))
    assert documented == {re.sub("_T.*", "_T", name) for name in names}


def _entries_of(store: Path) -> list[tuple[int, int, int, float]]:
    """(row, position, id, log-probability) of every kept id, as this project's reader has them."""
    found = []
    for stored in open_store(store):
        t = stored.targets
        for p, s in np.argwhere(t.kept).tolist():
            found.append((stored.index, p, int(t.ids[p, s]), float(t.log_probs(1.0)[p, s])))
    return found


@pytest.mark.parametrize("estimator", ["topk", "sampled", "some"])
def test_polars_snippet(stores, estimator):
    (snippet,) = (s for s in PYTHON if "polars" in s)
    names: dict[str, Any] = {"STORE": str(stores[estimator])}
    exec(compile(snippet, "format.md", "exec"), names)
    entries = names["entries"]
    expected = _entries_of(stores[estimator])
    assert entries.select("row", "position", "ids").rows() == [e[:3] for e in expected]
    logp = [e[3] for e in expected]
    np.testing.assert_allclose(entries["logp"].to_numpy(), logp, atol=0.02)
    positions = names["positions"]
    rows = list(open_store(stores[estimator]))
    assert positions["token"].to_list() == [int(t) for r in rows for t in r.row.positions]
    odds = np.concatenate([r.targets.log_odds[:, r.targets.grid_index(1.0)] for r in rows])
    np.testing.assert_array_equal(positions["log_odds"].to_numpy(), odds)


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
def test_packed_zarr_snippet(stores, tmp_path):
    """Every id and log-probability, ragged or not, with labels that are left out."""
    (snippet,) = (s for s in PYTHON if "import numcodecs" in s)
    convert(
        stores["some"],
        tmp_path / "p",
        profile="packed",
        container="zarr",
        values="nat64",
        dictionary="none",
    )
    store = open_store(tmp_path / "p")
    for i, record in enumerate(store.manifest.shards):
        names: dict[str, Any] = {
            "SHARD": store.folder / record.name,
            "VOCAB_SIZE": store.manifest.identity.teacher.vocab_size,
        }
        exec(compile(snippet, "format.md", "exec"), names)
        t = store.shard(i).targets
        at, slot = np.nonzero(t.kept)
        expected = np.lexsort((t.ids[at, slot], at))
        found = np.lexsort((names["ids"], names["position"]))
        np.testing.assert_array_equal(names["position"][found], at[expected])
        np.testing.assert_array_equal(names["ids"][found], t.ids[at, slot][expected])
        np.testing.assert_allclose(names["logp"][found], t.logp[at, slot][expected], atol=1e-5)


def test_zarr_snippet(stores):
    (snippet,) = (s for s in PYTHON if "found[row]" in s)
    names: dict[str, Any] = {"shards": sorted((stores["zarr"] / "data").iterdir())}
    assert len(names["shards"]) > 1
    exec(compile(snippet, "format.md", "exec"), names)
    rows = list(open_store(stores["zarr"]))
    assert list(names["found"]) == [r.index for r in rows]
    for stored in rows:
        t = stored.targets
        ids, logp, odds = names["found"][stored.index]
        assert ids.tolist() == t.ids[t.kept].tolist()
        np.testing.assert_allclose(logp, t.log_probs(1.0)[t.kept], atol=0.02)
        np.testing.assert_array_equal(odds, t.log_odds[:, t.grid_index(1.0)])


@pytest.mark.parametrize("estimator", ["topk", "sampled", "some"])
def test_stand_alone_reader_snippet(stores, estimator):
    """Every digest and probability, by code that was written from the page."""
    (snippet,) = (s for s in PYTHON if "hashlib" in s)
    assert "softlabels." not in snippet.replace('b"softlabels causal', "")
    assert "import softlabels" not in snippet
    names: dict[str, Any] = {"STORE": str(stores[estimator])}
    exec(compile(snippet, "format.md", "exec"), names)
    store = open_store(stores[estimator])
    last = store.row(len(store) - 1).targets
    last = last[last.soft]
    kept = last.kept[-1]
    assert names["T"] == last.temperatures[0]
    assert names["ids"] == last.ids[-1][kept].tolist()
    np.testing.assert_allclose(names["p"], last.probs(names["T"])[-1][kept], rtol=1e-5)
    np.testing.assert_allclose(names["tail"], last.tail(names["T"])[-1], rtol=1e-5)


@pytest.mark.parametrize("what", ["digest", "content_digest", "fingerprint", "shard"])
def test_stand_alone_reader_snippet_finds_damage(stores, tmp_path, what):
    import shutil

    (snippet,) = (s for s in PYTHON if "hashlib" in s)
    store = Path(shutil.copytree(stores["topk"], tmp_path / "store"))
    if what == "shard":
        path = sorted((store / "data").iterdir())[-1]
        path.write_bytes(path.read_bytes()[:-9] + b"x" + path.read_bytes()[-8:])
    else:
        path = store / "manifest.json"
        text = path.read_text(encoding="utf-8")
        digest = re.search(rf'"{what}": "([0-9a-f]+)"', text)
        assert digest is not None
        path.write_text(text.replace(digest[1], digest[1][::-1], 1), encoding="utf-8")
    with pytest.raises(AssertionError):
        exec(compile(snippet, "format.md", "exec"), {"STORE": str(store)})


@pytest.mark.parametrize("estimator", ["topk", "some"])
def test_duckdb_snippet(stores, estimator):
    duckdb = pytest.importorskip("duckdb")
    (query,) = SQL
    query = query.replace("STORE", str(stores[estimator]))
    ((mean,),) = duckdb.connect().execute(query).fetchall()
    manifest = open_store(stores[estimator]).manifest
    kept = manifest.statistics.kept_mass[manifest.identity.targets.temperatures.index(1.0)]
    soft = manifest.statistics.soft_of(manifest.identity.corpus.positions)
    assert mean == pytest.approx(kept / soft, rel=1e-3)


# -- README.md ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_readme_s_own_loop(stores, tmp_path, monkeypatch):
    """As printed, but for two steps; the student's weights move, and every name is there."""
    pytest.importorskip("transformers")
    (snippet,) = (
        s
        for s in re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
        if "open_store" in s
    )
    assert snippet.count("range(100)") == 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").symlink_to(stores["sampled"])
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(compile(snippet.replace("range(100)", "range(2)"), "README.md", "exec"), names)
    first = names["make_student"]("new:10M", seed=0, task=names["Task"].of(names["store"]))
    before, after = (dict(s.named_parameters()) for s in (first, names["student"]))
    assert names["step"] == 1
    assert any(not before[n].equal(after[n]) for n in before)
